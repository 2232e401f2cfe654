"""`python -m sasnet_jax.crossvalidate`: models over disjoint folds of users (docs/design.md 5).

The folds are the record: what is complete in them is not computed again. So a command that was
killed resumes, and more seeds or models in the same folder only add what is missing.
"""

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sasnet_jax import cli, files
from sasnet_jax.baselines import registry
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.cli import EXIT_MISTAKE, Preempted, ProgressBar, UserError, setting
from sasnet_jax.corpus import transform
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.splits import folds_of_users
from sasnet_jax.corpus.store import open_store
from sasnet_jax.crossvalidate import comparison, results
from sasnet_jax.crossvalidate.fold import Fold, Plan
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.train import flagfile

_LOG = "worker.log"
_POLL_SECONDS = 0.2
_PROTOCOL = ("target_review", "classes")  # what models must share to be compared


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CrossvalidateConfig:
    """What to train on which folds."""

    corpus: str = setting(
        "", help="corpus folder, of any --split: users are split anew", topic="data", required=True
    )
    store: tuple[str, ...] = setting(
        (), help="embedding store of the corpus; repeatable", topic="data", required=True
    )
    output: str = setting(
        "", help="folder to write; the same command resumes it", topic="data", required=True
    )
    base: tuple[str, ...] = setting(
        (),
        help="flagfile of train; its name without the suffix names the model; repeatable",
        topic="models",
        required=True,
    )
    seeds: int = setting(1, help="number of seeds of each model, from 0", topic="models", minimum=1)
    baselines: bool = setting(True, help="fit the baselines on every fold", topic="models")
    nested: bool = setting(
        False,
        help="add the model that is, per fold, the one with the best validation log-loss",
        topic="models",
    )
    reference: str = setting(
        "", help="model that all are compared with too; empty = the first", topic="models"
    )
    folds: int = setting(10, help="number of folds of users", topic="folds", minimum=3)
    report_folds: str = setting(
        "", help="folds to compute and report, as 5..9, from 0; empty = all", topic="folds"
    )
    seed: int = setting(
        0, help="seed of folds, baselines and bootstrap", topic="folds", minimum=0, below=2**31
    )
    workers: int = setting(
        1, help="number of folds computed at a time, each by a process", topic="folds", minimum=1
    )
    only_fold: int | None = setting(
        None,
        help="compute this fold only, without the comparison",
        topic="folds",
        extra=True,
        minimum=0,
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if self.nested and len(self.base) < 2:
            raise UserError("--nested chooses among models: give several --base=FLAGFILE")
        if self.only_fold not in (None, *_reported(self)):
            raise UserError(f"--only_fold={self.only_fold} is not among the folds to report")


def _reported(config: CrossvalidateConfig) -> range:
    """The folds to compute and report.

    Raises:
      UserError: there are no such folds.
    """
    if not config.report_folds:
        return range(config.folds)
    first, _, last = config.report_folds.partition("..")
    try:
        reported = range(int(first), int(last or first) + 1)
    except ValueError:
        reported = range(0)
    if not reported or reported[0] < 0 or reported[-1] >= config.folds:
        raise UserError(
            f"--report_folds={config.report_folds} must be a fold or FIRST..LAST, "
            f"from 0 to {config.folds - 1}"
        )
    return reported


class FoldsRecord(files.Record, kw_only=True, frozen=True):
    """folds.json."""

    made_by = "python -m sasnet_jax.crossvalidate"
    version = 1
    settings: dict[str, Any]  # what must be the same to add to the folder


def run(config: CrossvalidateConfig) -> None:
    """Computes what is missing of the folds, and compares the models over all of them."""
    plan = _plan(config)
    record = plan.output / "folds.json"
    settings = {"corpus_sha256": plan.corpus.sha256, "stores": plan.stores}
    settings |= {"folds": plan.folds, "seed": config.seed} | plan.protocol
    files.claim(plan.output, record.name)
    if record.exists():
        before = files.read_record(record, FoldsRecord).settings
        files.refuse_other_settings(plan.output, before, settings)
    # A worker's lock is that of its fold: the command that started it has the folder's.
    worker = config.only_fold is not None
    with (
        cli.on_sigterm(_stop),
        contextlib.nullcontext() if worker else files.sole_writer(plan.output),
    ):
        if not record.exists():
            files.write_record(record, FoldsRecord(settings=settings))
        numbers = [config.only_fold] if config.only_fold is not None else _reported(config)
        folds = [Fold(plan, number) for number in numbers]
        _compute(config, folds)
        if not worker:
            compared = comparison.compare(folds, config.nested, config.reference, config.seed)
            path = plan.output / "crossvalidation.json"
            files.write_record(path, compared)
            print(f"{results.table(compared)}\nwritten: {path}, {plan.output}/predictions")


def _plan(config: CrossvalidateConfig) -> Plan:
    """What is to be computed; mistakes in the inputs are reported before anything is."""
    corpus = read_corpus(Path(config.corpus))
    bases = _bases(config)
    first = next(iter(bases.values()))
    for path, base in zip(config.base, bases.values(), strict=True):
        stores = [open_store(Path(store), corpus, base.pooling) for store in config.store]
        transform.refuse_too_many(base.discriminants, stores)
        for name in _PROTOCOL:
            if getattr(base, name) != getattr(first, name):
                raise UserError(f"--base={path} has another --{name} than {config.base[0]}")
    data: dict[str, Any] = {name: getattr(config, name) for name in ("corpus", "store", "output")}
    protocol: dict[str, Any] = {name: getattr(first, name) for name in _PROTOCOL}
    baselines = BaselinesConfig(**data, **protocol, seed=config.seed)
    return Plan(
        corpus=corpus,
        stores=[store.manifest.settings for store in stores],
        protocol=protocol,
        fold_of_user=folds_of_users(corpus.table("users")["user_id"], config.folds, config.seed),
        folds=config.folds,
        fold_seed=config.seed,
        bases=bases,
        seeds=config.seeds,
        baselines=baselines if config.baselines else None,
        output=Path(config.output),
    )


def _bases(config: CrossvalidateConfig) -> dict[str, TrainConfig]:
    """The settings of each model, by its name.

    Raises:
      UserError: a flagfile cannot be used, two models have one name, or none is the reference.
    """
    bases: dict[str, TrainConfig] = {}
    stores = [Path(name).resolve().name for name in config.store]
    names = [one.name for one in registry.baselines_of(stores) if not one.is_ceiling]
    names = [*names, results.BEST, results.BEST_ON_TEXTS] if config.baselines else []
    names += [results.CHOSEN] if config.nested else []
    for path in config.base:
        name = Path(path).stem
        base = flagfile.read(path, config.corpus, config.store, config.output)
        if base.seed:
            raise UserError(f"--base={path} names its own --seed: take it out, and use --seeds")
        if name in names:
            raise UserError(f"--base={path}: another model is called {name}: rename the file")
        names += [name, f"{name} ensemble"] if config.seeds > 1 else [name]
        bases[name] = base
    if config.reference and config.reference not in names:
        raise UserError(f"--reference={config.reference} is none of {', '.join(names)}")
    return bases


def _compute(config: CrossvalidateConfig, folds: Sequence[Fold]) -> None:
    """Computes what is missing of the folds, here or in processes."""
    missing = {fold.number: fold.missing() for fold in folds}
    tasks = len(folds) * (1 + len(config.base) * config.seeds + config.baselines)
    done = tasks - sum(map(len, missing.values()))
    with ProgressBar(total=tasks, initial=done, desc="cross-validation", unit="task") as bar:
        if config.workers > 1 and config.only_fold is None:
            _compute_in_processes(
                config, {number: len(left) for number, left in missing.items()}, bar
            )
            return
        for fold in folds:
            if not missing[fold.number]:
                continue
            with files.sole_writer(fold.folder):
                for name, task in fold.missing().items():
                    ProgressBar.write(f"fold {fold.number}, {name}")
                    try:
                        task()
                    except UserError as error:
                        raise UserError(f"fold {fold.number}, {name}: {error}") from None
                    bar.update()


def _compute_in_processes(
    config: CrossvalidateConfig, tasks: Mapping[int, int], bar: ProgressBar
) -> None:
    """Computes folds by this command restricted to one fold each, `--workers` at a time.

    Raises:
      UserError: one of them failed; the others are stopped, and have saved what they did.
    """
    waiting = [number for number, left in tasks.items() if left]
    running: dict[int, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < config.workers:
                number = waiting.pop(0)
                running[number] = _start(config, number)
            for number, process in [*running.items()]:
                if process.poll() is not None:
                    del running[number]
                    if process.returncode:
                        raise UserError(_why(config, number, process.returncode))
                    bar.update(tasks[number])
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _start(config: CrossvalidateConfig, fold: int) -> subprocess.Popen:
    """Starts this command for one fold; what it prints is appended to the fold's log."""
    command = [sys.executable, "-m", "sasnet_jax.crossvalidate", f"--only_fold={fold}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool):
            command.append(f"--{'' if value else 'no'}{field.name}")
        elif value is not None:
            values = value if isinstance(value, tuple) else (value,)
            command += [f"--{field.name}={one}" for one in values]
    folder = Path(config.output) / f"fold{fold}"
    folder.mkdir(exist_ok=True)
    with (folder / _LOG).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _why(config: CrossvalidateConfig, fold: int, status: int) -> str:
    """Why a fold's process failed: its own words, if it says so."""
    path = Path(config.output) / f"fold{fold}" / _LOG
    last = path.read_text(errors="replace").splitlines()[-1:]
    if status == EXIT_MISTAKE and last:
        return last[0].removeprefix("error: ")
    return f"fold {fold} ended with status {status}: see {path}, and run the same command again"


def _stop(*_: Any) -> None:
    raise Preempted("what is complete is saved; run the same command to resume")
