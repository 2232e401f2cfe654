"""One training, wherever the table lies and however many devices and processes share the work."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess

import jax
import numpy as np
import pytest
from conftest import PATIENCE_SECONDS, TINY, load_data, run_command, start_process

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.model import compilation, devices, step
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.train import loop, memory

SETTINGS = TINY | {
    "epochs": 2,
    "review_features": "text+stars",
    "cross_attention": "set",
    "bias_term": True,
    "average_decay": 0.9,
    "review_loss": 0.5,
    "discriminants": 8,
    "match": True,
}


def _settings(world, run, **settings) -> dict:
    paths = {"corpus": str(world.corpus_folder), "store": [str(world.store_folder)]}
    return SETTINGS | paths | {"output": str(run)} | settings


def _arguments(world, run, **settings) -> list[str]:
    settings = _settings(world, run, **settings)
    (settings["store"],) = settings["store"]
    return [f"--{name}={value}" for name, value in settings.items()]


def _state(run):
    """State and best parameters of the last checkpoint, and the epochs' losses."""
    config = Run(run).config
    _, data = load_data(config)
    mesh = devices.mesh_for(config.batch_size)
    state = jax.device_get(step.build(config, mesh, data.embedding_dim, 100).init())
    checkpoints = loop.Checkpoints(run, read_only=True)
    restored, best, _ = checkpoints.restore(state, state.params)
    checkpoints.close()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [[r["train_loss"], r["validation_log_loss"]] for r in records]
    return jax.tree.leaves((restored, best)), losses


def _assert_close(found, expected):
    for have, want in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.fixture(scope="module")
def one_device(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("one_device") / "run"
    result = run_command("sasnet_jax.train", *_arguments(world, run))
    assert result.returncode == 0, result.stderr
    return _state(run)


def test_a_table_on_the_host_does_not_change_the_training(world, tmp_path, one_device):
    result = run_command("sasnet_jax.train", *_arguments(world, tmp_path / "run", table="host"))
    assert result.returncode == 0, result.stderr
    _assert_close(_state(tmp_path / "run"), one_device)


TRAIN_EACH = """
import dataclasses, json, sys
from sasnet_jax import cli
from sasnet_jax.model import devices, inputs
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.train import loop

def place(config):
    config = dataclasses.replace(config, discriminants=0)  # the table as stored
    corpus, stores = inputs.open_inputs(config)
    data = inputs.build_data(config, corpus, stores, inputs.fit_transform(config, corpus, stores))
    (table,) = inputs.on_devices(config, devices.mesh_of_all(), data).tables
    shards = getattr(table, 'addressable_shards', None)
    return type(table).__name__ if shards is None else [shard.data.shape[0] for shard in shards]

places, refused = {}, []
for settings in json.loads(sys.argv[1]):
    config = TrainConfig(**settings | {'store': tuple(settings['store'])})
    try:
        loop.train(config)
        places[config.table] = place(config)
    except cli.UserError as error:
        refused.append(str(error))
print(json.dumps([places, refused]))
"""
TABLES = ("device", "sharded", "host")


@pytest.fixture(scope="module")
def four_devices(world, tmp_path_factory):
    """Runs trained by one process of four devices; where their tables lay; what was refused."""
    folder = tmp_path_factory.mktemp("four_devices")
    wanted = [_settings(world, folder / table, table=table) for table in TABLES]
    wanted.append(_settings(world, folder / "refused", batch_size=30))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    process = start_process(
        "-c", TRAIN_EACH, json.dumps(wanted), env=os.environ | {"XLA_FLAGS": flags}
    )
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    return folder, *json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("table", TABLES)
def test_neither_devices_nor_the_place_of_the_table_change_the_training(
    four_devices, one_device, table
):
    _assert_close(_state(four_devices[0] / table), one_device)


def test_a_table_lies_where_the_flag_says(world, four_devices):
    rows = world.corpus.user.size
    assert rows % 4  # so the last part is filled up
    part = -(-rows // 4)
    assert four_devices[1] == {"device": [rows] * 4, "sharded": [part] * 4, "host": "memmap"}


def test_a_batch_that_devices_cannot_share_is_refused(four_devices):
    (refused,) = four_devices[2]
    assert "--batch_size=30" in refused and "4 devices" in refused


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("flags.txt", "flags.txt"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_deterministic_kernels_are_asked_for_unless_xla_flags_say(monkeypatch, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    compilation.set_up()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU (JAX_PLATFORMS=cuda)")
def test_a_gpu_trains_the_same_again_where_it_compiles_anew(world, tmp_path):
    states = []
    for name in ("once", "again"):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"{name}-compiled")}
        process = start_process(
            "-m", "sasnet_jax.train", *_arguments(world, tmp_path / name), env=environment
        )
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, output
        states.append(_state(tmp_path / name))
    for once, again in zip(*(leaves for leaves, _ in states), strict=True):
        np.testing.assert_array_equal(once, again)
    assert states[0][1] == states[1][1]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _train_together(world, run, of_process_1=(), **settings) -> list[subprocess.Popen]:
    port = _free_port()
    settings |= {"coordinator": f"localhost:{port}", "processes": 2}
    each = [settings | {"process": 0}, settings | {"process": 1} | dict(of_process_1)]
    return [start_process("-m", "sasnet_jax.train", *_arguments(world, run, **own)) for own in each]


def _finish(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


ALWAYS_SAVED = {"table": "sharded", "checkpoint_seconds": 0.0, "keep": 100}


def _trained_together(world, run, **settings):
    """Two processes train this run."""
    settings = _settings(world, run, coordinator=f"localhost:{_free_port()}", **settings)
    each = [settings | {"processes": 2, "process": number} for number in range(2)]
    _finish([start_process("-c", TRAIN_EACH, json.dumps([mine])) for mine in each])
    return run


@pytest.mark.stress
@pytest.mark.parametrize("table", ["device", "host"])
def test_two_processes_share_a_table(world, tmp_path, one_device, table):
    _assert_close(_state(_trained_together(world, tmp_path / "run", table=table)), one_device)


def test_two_processes_share_a_split_table_and_resume_as_one(world, tmp_path, one_device):
    """As if killed in their second epoch while one wrote a checkpoint."""
    whole = _trained_together(world, tmp_path / "whole", **ALWAYS_SAVED)
    _assert_close(_state(whole), one_device)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    *_, latest, last = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    shutil.rmtree(run / "checkpoints" / str(last))
    for path in (run / "checkpoints" / str(latest)).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    outputs = _finish(_train_together(world, run, **ALWAYS_SAVED))
    assert "resumed at step" in outputs[0]
    assert (run / "checkpoints" / f"damaged-{latest}").is_dir()
    resumed, uninterrupted = _state(run), _state(whole)
    assert resumed[1] == uninterrupted[1]
    for have, want in zip(resumed[0], uninterrupted[0], strict=True):
        np.testing.assert_array_equal(have, want)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("wrong", [pytest.param(0, marks=pytest.mark.stress), 1])
def test_a_mistake_of_one_process_stops_the_other(world, tmp_path, wrong):
    """Process 0 finds the folder in use; process 1 does not find the store."""
    lacking = {"store": [str(tmp_path / "nowhere")]} if wrong else {}
    with contextlib.nullcontext() if wrong else files.sole_writer(tmp_path / "run"):
        processes = _train_together(world, tmp_path / "run", of_process_1=lacking)
        outputs = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    # What is printed to a pipe comes when the process ends, and so after the error.
    mistakes = [re.findall("^error: .*$", output, re.MULTILINE)[-1] for output in outputs]
    assert (
        mistakes[1 - wrong]
        == f"error: process {wrong} of this run has stopped: its output says why"
    )
    assert ("nowhere" if wrong else "is in use by") in mistakes[wrong]


ONE_IS_SLOW = """
import sys, time
from sasnet_jax import cli
from sasnet_jax.model import devices
port, process = sys.argv[1], int(sys.argv[2])
devices.join(f"localhost:{port}", 2, process)
try:
    with devices.stop_together():
        if process == 1:
            raise cli.UserError("the mistake")
        time.sleep(40)  # CPUs give up on a first meeting after 30
except cli.UserError as error:
    print(error)
"""


@pytest.mark.stress
def test_a_mistake_reaches_a_process_that_is_late():
    port = _free_port()
    processes = [start_process("-c", ONE_IS_SLOW, str(port), str(number)) for number in range(2)]
    said = [process.communicate(timeout=PATIENCE_SECONDS)[0].splitlines() for process in processes]
    assert said[0][-1] == "process 1 of this run has stopped: its output says why"
    assert said[1][-1] == "the mistake"


@pytest.mark.parametrize(
    ("table", "batch_size", "helps"),
    [
        ("device", 1, "use --table=sharded or host, or a smaller --batch_size than 1 or --set_"),
        ("device", 512, "use a smaller --batch_size than 512 or --set_size than 5, or --table="),
        ("sharded", 512, "use a smaller --batch_size .* than 5, or --table=host$"),
        ("host", 1, "use a smaller --batch_size than 1 or --set_size than 5$"),
    ],
)
def test_too_little_memory_says_how_much_and_which_flag_helps(
    world, tmp_path, table, batch_size, helps
):
    config = TrainConfig(
        corpus=str(world.corpus_folder),
        store=(str(world.store_folder),),
        output=str(tmp_path),
        table=table,
        batch_size=batch_size,
    )
    _, data = load_data(config)

    def allocate():
        jax.device_put(np.zeros(1, np.float32)).block_until_ready()
        jax.jit(lambda: jax.numpy.zeros((1 << 44,), "float32"))().block_until_ready()

    with (
        pytest.raises(UserError, match=rf"\(70,368\.7 GB more .* take .* GB\): {helps}"),
        devices.enough_memory(data.tables, memory.with_less(config, data)),
    ):
        allocate()
