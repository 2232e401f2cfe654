"""Measures SASNet's training against the same network in PyTorch and the machine's peak.

The paper's preset (3072-d float16 table, sets of 5, batch 512) on random embeddings. The sides
alternate in one process; figures are medians of --rounds:

- our compiled step, and the set sampling alone;
- the same network in PyTorch (nn.MultiheadAttention, AdamW), fed by a DataLoader that samples sets
  on the host, and fed by batches prepared in advance;
- a float32 matrix product through XLA: the machine's peak.

Then, each in a process of its own, the time from the start of `train` to its first step, with an
empty compilation cache and with a warm one. If there is a GPU, both sides use it
(PyTorch only if built for it).

    python scripts/bench_train.py

Takes three minutes on two cores, and 0.5 GB of memory for the table of the paper's size.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import torch
from bench_train_torch import TorchTraining

from embed_torch import embed
from embed_torch.config import EmbedConfig
from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import Context, Contexts
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.store import ZScore
from sasnet_jax.manifest import read_manifest, write_manifest
from sasnet_jax.model import compilation, devices, draws, inputs, step
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.prepare import command as prepare
from sasnet_jax.train import loop

_DIM = 3072
_REVIEWS, _USERS, _BUSINESSES = 75_379, 11_117, 3_752  # the paper's corpus
_TRAIN = 60_000  # reviews in an epoch of the paper, which trains for up to 3000
_PEAK_SIZE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """The settings of the measurement."""

    reviews: int = setting(_REVIEWS, help="rows of the table", topic="bench")
    steps: int = setting(4, help="training steps per measurement", topic="bench")
    rounds: int = setting(5, help="number of runs of each side", topic="bench")
    output: str = setting("work/bench_train.json", help="JSON file for the figures", topic="bench")


def run(config: BenchConfig) -> None:
    """Measures, prints a table, and writes the JSON."""
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # leaves PyTorch some of the GPU's memory
    compilation.set_up()
    train_config = TrainConfig(corpus="-", store=("-",), output="-")
    data = _random_data(config.reviews)
    ours = _Ours(train_config, data, config.steps)
    theirs = TorchTraining(train_config, data, config.steps)
    if theirs.parameters != ours.parameters:
        raise UserError(f"{theirs.parameters:,} parameters in PyTorch, {ours.parameters:,} here")
    examples = config.steps * train_config.batch_size
    seconds = _in_turns(
        {
            "sasnet_jax": ours.train,
            "set sampling alone": ours.sample,
            "PyTorch, DataLoader": theirs.train_from_loader,
            "PyTorch, no loader": theirs.train_from_memory,
            "matrix product": ours.multiply,
        },
        config.rounds,
    )
    peak = 2 * _PEAK_SIZE**3 / seconds["matrix product"]
    rate = examples / seconds["sasnet_jax"]
    figures: dict[str, Any] = {
        "machine": _machine(),
        "examples_per_second": {
            name: examples / seconds[name]
            for name in ("sasnet_jax", "PyTorch, DataLoader", "PyTorch, no loader")
        },
        "ratio_to_loader": seconds["PyTorch, DataLoader"] / seconds["sasnet_jax"],
        "ratio_without_loader": seconds["PyTorch, no loader"] / seconds["sasnet_jax"],
        "flops_of_an_example": ours.flops,
        "peak_gigaflops": peak / 1e9,
        "of_peak": rate * ours.flops / peak,
        "share_of_sampling": seconds["set sampling alone"] / seconds["sasnet_jax"],
        "hours_of_3000_epochs": 3000 * _TRAIN / rate / 3600,
        "seconds_to_first_step": _start_times(),
    }
    _print(figures)
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(Path(config.output), figures)


class _Ours:
    """Runs the program's own functions."""

    def __init__(self, config: TrainConfig, host: draws.Data, steps: int):
        self.config, self.steps = config, steps
        self.mesh = devices.mesh_for(config.batch_size)
        self.functions = step.build(config, self.mesh, _DIM, total_steps=1)
        self.data = inputs.on_devices(config, self.mesh, host)
        rows = devices.place(self.mesh, np.arange(len(host.stars), dtype=np.int32))
        self.epoch = draws.shuffle(rows, np.int32(0), config.batch_size, config.seed)
        self.state = self.functions.init()
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        self.flops = _flops_of_an_example(config)
        self.square = jnp.ones((_PEAK_SIZE, _PEAK_SIZE), jnp.float32)
        self.product = jax.jit(jnp.matmul)

        @jax.jit
        def sample(data, epoch, last):
            def body(index, total):
                draw = draws.draw_training(config, data, epoch.targets[index], index)
                return total + draw.rows.sum() + draw.mask.sum()

            return jax.lax.fori_loop(0, last, body, 0)

        self.sampler = sample

    def train(self) -> None:
        """Runs `steps` steps."""
        bounds = (np.int32(0), np.int32(self.steps))
        self.state, _ = self.functions.train_chunk(self.state, self.data, self.epoch, *bounds)
        jax.block_until_ready(self.state)

    def sample(self) -> None:
        """Samples the sets of as many steps."""
        self.sampler(self.data, self.epoch, np.int32(self.steps)).block_until_ready()

    def multiply(self) -> None:
        """Computes a large float32 matrix product."""
        self.product(self.square, self.square).block_until_ready()


def _flops_of_an_example(config: TrainConfig) -> int:
    """Multiplications and additions of the matrix products of a training step, per example.

    The forward pass counts once and the backward twice, minus the gradient of the embeddings, which
    nothing needs.
    """
    d, f, tokens = config.width, config.feed_forward, 2 * config.set_size
    attention = 4 * d * d + 2 * d * f
    project = tokens * _DIM * d
    encoder = tokens * config.depth * attention
    cross, head = attention, 2 * d * d + d * config.classes
    return 2 * (2 * project + 3 * (encoder + cross + head))


def _random_data(reviews: int) -> draws.Data:
    """Random data with the paper's numbers of users and businesses per review."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((reviews, _DIM), np.float32).astype(np.float16)

    def context(entities: int) -> Context:
        entity = np.sort(rng.integers(0, entities, reviews))
        offsets = np.searchsorted(entity, np.arange(entities + 1))
        rows = rng.permutation(reviews).astype(np.int32)
        start, size, skip = np.empty((3, reviews), np.int32)
        start[rows] = offsets[entity]
        size[rows] = np.diff(offsets)[entity] - 1
        skip[rows] = np.arange(reviews) - offsets[entity]
        return Context(rows, start, size, skip)

    scale = reviews / _REVIEWS
    return draws.Data(
        tables=(table,),
        scalings=(ZScore(np.zeros(_DIM, np.float32), np.ones(_DIM, np.float32)),),
        stars=np.full(reviews, 4, np.float32),
        label=rng.integers(0, 3, reviews).astype(np.int8),
        contexts=Contexts(context(int(_USERS * scale)), context(int(_BUSINESSES * scale))),
        counts=None,
        shares=np.full(3, 1 / 3, np.float32),
    )


def _start_times() -> dict[str, float]:
    """Seconds from the start of `train` to its first step, with an empty cache and a warm one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare.run(prepare.PrepareConfig(synthetic=2000, output=str(folder / "corpus")))
        _write_random_store(folder / "store", read_corpus(folder / "corpus"))
        return {cache: _seconds_to_first_step(folder, cache) for cache in ("cold", "warm")}


def _write_random_store(folder: Path, corpus: Corpus) -> None:
    """Writes a store of hashed words, and replaces them by noise of the paper's width."""
    embed.run(EmbedConfig(corpus=str(corpus.folder), output=str(folder), model="words"))
    shape = (corpus.user.size, _DIM)
    np.save(folder / "mean.npy", np.random.default_rng(0).standard_normal(shape, np.float32))
    (folder / "categories.npy").unlink(missing_ok=True)
    manifest = msgspec.structs.replace(read_manifest(folder), dim=_DIM, dtype="float32")
    write_manifest(folder, manifest)


def _seconds_to_first_step(folder: Path, name: str) -> float:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sasnet_jax.train", "--epochs=1"]
    command += [f"--corpus={folder / 'corpus'}", f"--store={folder / 'store'}"]
    command += [f"--output={folder / name}"]
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if loop.FIRST_STEP in line:
                seconds = time.perf_counter() - started
    if process.returncode:
        raise UserError(f"train failed: {' '.join(lines)[-500:]}")
    return seconds


def _print(figures: dict[str, Any]) -> None:
    print(figures["machine"])
    print(f"{'paper preset':<28}{'examples/s':>12}{'ratio':>8}")
    rates = figures["examples_per_second"]
    for name, rate in rates.items():
        print(f"{name:<28}{rate:>12,.0f}{rates['sasnet_jax'] / rate:>8.2f}")
    print(
        f"{figures['flops_of_an_example'] / 1e6:.0f} MFLOP per example, peak "
        f"{figures['peak_gigaflops']:,.0f} GFLOP/s: {figures['of_peak']:.0%} of it\n"
        f"set sampling: {figures['share_of_sampling']:.1%} of the step\n"
        f"3000 epochs of {_TRAIN:,} reviews: {figures['hours_of_3000_epochs']:.2f} hours\n"
        f"start of train to its first step: {json.dumps(figures['seconds_to_first_step'])} s"
    )


def _in_turns(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each side; the first round, which compiles, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _machine() -> str:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            processor = line.split(":")[1].strip()
            break
    device = jax.devices()[0]
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has not
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    versions = (
        f"Python {platform.python_version()}, JAX {jax.__version__}, torch {torch.__version__}"
    )
    return f"{device.device_kind}, {cores} cores of {processor}, {versions}"


if __name__ == "__main__":
    cli.main(BenchConfig, run, "Training speed, against PyTorch and the machine's peak.")
