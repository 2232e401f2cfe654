"""Measures the SVM baseline on as many pairs as the paper could have had, against scikit-learn's.

The paper stopped at 3,200 pairs of averages of 3072-wide embeddings. Here, on generated averages
whose class depends on a match of both sides:

- one fit (RBF kernel, C = 1) on --compared pairs by `sklearn.svm.SVC` and by what the baseline uses
  (scikit-learn-intelex if it is installed), alternating, medians of --rounds;
- the whole baseline on --pairs: kernel and C tuned on 5,000 of them, fitted once on all, test pairs
  predicted; seconds, and the peak memory of the process.

    python scripts/bench_svm.py

Half an hour and 15 GB on two cores; writes bench_svm.json into --folder.
"""

import dataclasses
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.svm

from sasnet_jax import cli, files
from sasnet_jax.baselines import protocol, svm
from sasnet_jax.cli import UserError, setting
from sasnet_jax.scores import metrics

_DIM = 3072  # embedding width; a pair has the averages of both sides
_FACTORS = 40  # intrinsic dimension of a side's averages
_HELD_OUT = 5000  # validation, and test pairs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """The settings of the measurement."""

    pairs: int = setting(60_000, help="training pairs of the whole baseline", topic="bench")
    compared: int = setting(6000, help="training pairs on which both are fitted", topic="bench")
    rounds: int = setting(3, help="number of times that each is fitted", topic="bench")
    folder: str = setting("work/bench_svm", help="folder for the figures", topic="bench")

    def __post_init__(self):
        """Refuses numbers that are out of range."""
        if not 10 <= self.compared <= self.pairs:
            raise UserError(f"--compared={self.compared} is not in [10, --pairs={self.pairs}]")
        if self.rounds < 1:
            raise UserError(f"--rounds={self.rounds} must be at least 1")


def run(config: BenchConfig) -> None:
    """Measures, prints, and writes bench_svm.json."""
    sizes = {"train": config.pairs, "validation": _HELD_OUT, "test": _HELD_OUT}
    inputs, label = _generated(sizes)
    few = slice(config.compared)
    sides = {
        "scikit-learn": lambda: _fit(sklearn.svm.SVC, inputs["train"][few], label["train"][few]),
        svm.LIBRARY: lambda: _fit(svm.SVC, inputs["train"][few], label["train"][few]),
    }
    seconds = _in_turns(sides, config.rounds)
    ratio = seconds["scikit-learn"] / seconds[svm.LIBRARY]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}\none fit on {config.compared:,} pairs of {2 * _DIM:,} numbers")
    for name, median in seconds.items():
        print(f"  {name:32}{median:9.1f} s")
    print(f"  ratio {ratio:.1f}", flush=True)

    started = time.perf_counter()
    _, fitted, chosen = svm.fit([[(1.0, inputs)]], label, seed=0)
    fit_seconds = time.perf_counter() - started
    probability = fitted.predict(inputs["test"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "machine": machine,
        "compared": config.compared,
        "rounds": config.rounds,
        "seconds_of_one_fit": seconds,
        "ratio": ratio,
        "pairs": config.pairs,
        "seconds_tuned_and_fitted": fit_seconds,
        "seconds_predicted": time.perf_counter() - started - fit_seconds,
        "peak_gigabytes_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * 1024e-9,
        "support_vectors": len(fitted.support),
        "chosen": chosen,
        "test_accuracy": metrics.brief(label["test"], probability)["accuracy"],
    }
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "bench_svm.json", figures)
    print(
        f"the whole baseline on {config.pairs:,}: {figures['seconds_tuned_and_fitted']:.0f} s, "
        f"then {figures['seconds_predicted']:.0f} s for {_HELD_OUT:,} test pairs; "
        f"the process {peak / 1e9:.1f} GB; accuracy {figures['test_accuracy']:.3f}"
    )


def _generated(sizes: dict[str, int]) -> tuple[protocol.Inputs, dict[str, np.ndarray]]:
    """Pairs of averages, and the thirds of their match."""
    rng = np.random.default_rng(0)
    mix = (rng.normal(size=(_FACTORS, _DIM)) / np.sqrt(_FACTORS)).astype(np.float32)
    inputs, label = {}, {}
    for split, n in sizes.items():
        factors = rng.normal(size=(2, n, _FACTORS)).astype(np.float32)
        sides = [side @ mix + rng.standard_normal((n, _DIM), np.float32) for side in factors]
        inputs[split] = np.hstack(sides)
        match = factors.prod(axis=0)[:, :4].sum(axis=1) + factors[1, :, 0] + rng.normal(size=n)
        label[split] = np.digitize(match, [-0.9, 0.9]).astype(np.int8)
    return protocol.scaled(inputs), label


def _fit(kind: Callable[..., Any], inputs: np.ndarray, label: np.ndarray) -> None:
    kind(C=1.0, kernel="rbf", gamma=1.0, cache_size=svm.CACHE_MEGABYTES).fit(inputs, label)


def _in_turns(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    cli.main(BenchConfig, run, "The SVM baseline at the size of the paper's corpus.")
