"""Measures reading and choosing at the size of Yelp, against pandas and the proven bound.

Generates a dump in Yelp's schema (7 M lines, about 5 GB; kept in --folder for the next time), then
measures, alternating, each in a process of its own with the peak memory of that process and its
workers:

- reading: `pandas.read_json(lines=True, chunksize=...)` alone, against prepare's own reading and
  filtering of the same file (validation, counts, the paper's filters, one review per pair);
- choosing: the paper's linear program on the remaining reviews, against its lower bound of 70,000;
- the whole of `python -m sasnet_jax.prepare` with the paper's settings.

Core-seconds of all processes and threads are given next to the seconds: other work on the machine
disturbs them less.

    python scripts/bench_prepare.py --folder=work/bench

Needs pandas (requirements-dev.txt). About ten minutes on two cores.
"""

import dataclasses
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sasnet_jax import cli, files
from sasnet_jax.cli import setting
from sasnet_jax.prepare import filters
from sasnet_jax.prepare.choose import Demand, choose, graph_of
from sasnet_jax.prepare.rejects import Rejects
from sasnet_jax.prepare.reviews import ReviewDumps
from sasnet_jax.synthetic.families import YELP
from sasnet_jax.synthetic.world import generate

_PAPER = {"min_reviews_user": 10, "min_reviews_business": 20}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """The settings of the measurement."""

    folder: str = setting(
        "work/bench_prepare", help="folder of the dump, which is generated if absent", topic="bench"
    )
    reviews: int = setting(7_000_000, help="lines of the dump", topic="bench")
    rounds: int = setting(3, help="number of times that each reader reads it", topic="bench")
    users: int = setting(7000, help="users to choose (10 reviews each)", topic="bench")
    businesses: int = setting(3000, help="businesses to choose (20 reviews each)", topic="bench")


def run(config: BenchConfig) -> None:
    """Measures, prints a table, and writes bench_prepare.json."""
    folder = Path(config.folder)
    dump = _dump(folder, config.reviews)
    megabytes = dump.stat().st_size / 1e6
    reads: dict[str, list[dict[str, float]]] = {"pandas": [], "prepare": []}
    for _ in range(config.rounds):
        reads["pandas"].append(_measured(_read_with_pandas, dump))
        reads["prepare"].append(_measured(_read_and_filter, dump))
    chosen = _measured(_choose, dump, config.users, config.businesses)
    whole = _measured(_prepare, folder, config.users, config.businesses)

    seconds = {name: statistics.median(r["seconds"] for r in runs) for name, runs in reads.items()}
    figures = {
        "machine": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
        "lines": config.reviews,
        "megabytes": megabytes,
        "reads": reads,
        "ratio": seconds["pandas"] / seconds["prepare"],
        "choosing": chosen,
        "whole": whole,
    }
    files.write_json(folder / "bench_prepare.json", figures)
    print(f"\n{figures['machine']}; {config.reviews:,} lines, {megabytes:,.0f} MB")
    print(f"{'':36}{'seconds':>8}{'core-s':>8}{'MB/s':>8}{'peak GB':>9}")
    for name, runs in reads.items():
        _print_row(f"reading, {name}", runs, f"{megabytes / seconds[name]:.0f}")
    print(f"{'ratio':36}{figures['ratio']:>8.1f}")
    _print_row("choosing", [chosen])
    _print_row("whole of prepare, choosing included", [whole])
    report = chosen["result"]
    print(
        f"chosen from {report['from']}: {report['objective']:,} reviews, lower bound "
        f"{report['lower_bound']:,}; {report['seconds']} s after reading"
    )


def _print_row(name: str, runs: list[dict[str, Any]], rate: str = "") -> None:
    seconds, core_seconds = (
        statistics.median(run[key] for run in runs) for key in ("seconds", "core_seconds")
    )
    peak = max(run["peak_gigabytes"] for run in runs)
    print(f"{name:36}{seconds:>8.1f}{core_seconds:>8.1f}{rate:>8}{peak:>9.2f}")


def _dump(folder: Path, reviews: int) -> Path:
    """The generated dump, from an earlier run if there is one."""
    path = folder / "review.ndjson"
    truth = folder / "truth.json"  # written last
    if not truth.exists() or json.loads(truth.read_text())["reviews"] != reviews:
        folder.mkdir(parents=True, exist_ok=True)
        generate(reviews, 0, folder, YELP)
    return path


def _read_with_pandas(dump: Path) -> None:
    import pandas

    for _ in pandas.read_json(dump, lines=True, chunksize=100_000):
        pass


def _read_and_filter(dump: Path):
    with tempfile.TemporaryFile() as file:
        scan = ReviewDumps([dump], {}).scan(Rejects(file, 0.01))
    kept = filters.with_enough_reviews(scan.reviews, *_PAPER.values(), "once")
    return filters.earliest_of_each_pair(kept)


def _choose(dump: Path, users: int, businesses: int) -> dict[str, Any]:
    kept = _read_and_filter(dump)
    graph = graph_of(kept)
    demand = Demand(users=users, user_reviews=10, businesses=businesses, business_reviews=20)
    report = choose(graph, demand, prefer="longer", exact_below=5000, seconds=300.0).report
    users, businesses = graph.user.max() + 1, graph.business.max() + 1
    size = f"{kept.height:,} reviews, {users:,} users, {businesses:,} businesses"
    return {**report, "from": size}


def _prepare(folder: Path, users: int, businesses: int) -> None:
    output = folder / "corpus"
    shutil.rmtree(output, ignore_errors=True)
    flags = {
        "reviews": folder / "review.ndjson",
        "businesses": folder / "business.ndjson",
        "output": output,
        **_PAPER,
        "choose_users": users,
        "choose_businesses": businesses,
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run([sys.executable, "-m", "sasnet_jax.prepare", *arguments], check=True)


def _measured(function: Callable, *arguments: Any) -> dict[str, Any]:
    """Runs a function in a new process; returns its time, result and tree's peak memory (PSS)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(sender, function, *arguments))
    process.start()
    peak = 0.0
    while not receiver.poll(0.5) and process.is_alive():
        peak = max(peak, _tree_gigabytes(process.pid))
    figures = {**receiver.recv(), "peak_gigabytes": peak}
    process.join()
    took = f"{figures['seconds']:.1f} s, {figures['core_seconds']:.1f} core-s"
    print(f"{function.__name__.strip('_')}: {took}, {peak:.2f} GB", flush=True)
    return figures


def _timed(sender, function: Callable, *arguments: Any) -> None:
    started, core_started = time.perf_counter(), _core_seconds()
    result = function(*arguments)
    figures = {
        "seconds": time.perf_counter() - started,
        "core_seconds": _core_seconds() - core_started,
        "result": result if isinstance(result, dict) else None,
    }
    sender.send(figures)


def _core_seconds() -> float:
    """Core-seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _tree_gigabytes(root: int | None) -> float:
    """Proportional set size of a process and all its descendants."""
    parent_of = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has just ended
        parent_of[int(stat.parent.name)] = int(fields[1])
    kilobytes = 0
    for pid in parent_of:
        ancestor: int | None = pid
        while ancestor is not None and ancestor != root:
            ancestor = parent_of.get(ancestor)
        if ancestor == root:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            kilobytes += int(rollup.split("Pss:")[1].split()[0])
    return kilobytes / 1e6


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    cli.main(BenchConfig, run, "prepare at the size of Yelp.")
