"""`python -m sasnet_jax.sweep`: a search over training settings; every trial is an ordinary run.

The runs are the record. The same command rebuilds Optuna's study from the existing runs: what a
trial tries follows from the trials before it, the seed and its number. So a sweep that was killed
resumes its current run, and ends with the same trials as one that was never killed.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
from optuna.trial import FrozenTrial, TrialState

from sasnet_jax import cli, files
from sasnet_jax.cli import Preempted, UserError, setting
from sasnet_jax.corpus import transform
from sasnet_jax.model import devices, inputs
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions
from sasnet_jax.sweep import search_space
from sasnet_jax.sweep.search_space import INCIDENTAL, Distribution
from sasnet_jax.train import loop

_EPOCHS_BEFORE_PRUNING = 3
# A trial's attributes, from its metrics.jsonl at the best epoch.
_OUTCOME = ("validation_log_loss", "validation_accuracy", "best_epoch")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What to search, on what, and for how long."""

    corpus: str = setting("", help="corpus folder", topic="data", required=True)
    store: tuple[str, ...] = setting(
        (), help="embedding store of the corpus; repeatable", topic="data", required=True
    )
    output: str = setting(
        "", help="folder to write; the same command resumes it", topic="data", required=True
    )
    base: str = setting(
        "",
        help="flagfile of train with the settings that are not varied",
        topic="search",
        required=True,
    )
    vary: tuple[str, ...] = setting(
        (),
        help="setting to vary: NAME=LOW..HIGH[:log] or NAME=A|B|C; repeatable",
        topic="search",
        required=True,
    )
    trials: int = setting(
        30, help="number of runs, including those of earlier calls", topic="search", minimum=1
    )
    prune_after_trials: int = setting(
        5, help="complete runs before a run may be pruned for its losses", topic="search", minimum=1
    )
    seed: int = setting(
        0,
        help="seed of the search; --base holds the seed of the runs",
        topic="search",
        minimum=0,
        below=2**31,
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)


class SweepRecord(files.Record, kw_only=True, frozen=True):
    """sweep.json."""

    made_by = "python -m sasnet_jax.sweep"
    version = 2
    settings: dict[str, Any]  # what must be the same to resume


def run(config: SweepConfig) -> None:
    """Runs the missing trials, and writes best.flags and trials.csv."""
    base, space = _read_search(config)
    # Mistakes in the inputs are reported before any trial.
    corpus, stores = inputs.open_inputs(base)
    corpus.refuse_missing_class(base.classes)
    transform.refuse_too_many(search_space.largest(space, "discriminants"), stores)
    settings = {
        "corpus_sha256": corpus.sha256,
        "stores": [store.identity for store in stores],
        **{f"base.{name}": value for name, value in _decisive(base).items()},
        **{f"vary.{name}": str(values) for name, values in space.items()},
        "prune_after_trials": config.prune_after_trials,
        "seed": config.seed,
    }
    title = f"sweep, {predictions.LEAKY}" if base.target_review == "include" else "sweep"
    output = Path(config.output)
    record = output / "sweep.json"
    files.claim(output, record.name)
    with files.sole_writer(output):
        if record.exists():
            before = files.read_record(record, SweepRecord).settings
            files.refuse_other_settings(output, before, settings)
        else:
            files.write_record(record, SweepRecord(settings=settings))
        # Between two runs there is nothing to save; during a run, its own handler saves it.
        with cli.on_sigterm(_stop):
            study = _search(config, base, space, title)
        _write_trials(output / "trials.csv", study, base)
        if not study.get_trials(states=[TrialState.COMPLETE]):
            raise UserError(f"no trial of {output} has completed: see its trials.csv")
        best = dataclasses.replace(base, **study.best_params)
        winner = study.best_trial
        words = f"{title}, best of {len(study.trials)} trials: {_name(winner)}, "
        words += f"{_outcome(winner)}: {_listed(winner.params)}"
        _write_best(config, best, words, corpus.sha256)
        print(f"{words}\nwritten: {output}/best.flags, {output}/trials.csv")


def _read_search(config: SweepConfig) -> tuple[TrainConfig, dict[str, Distribution]]:
    """The base settings, with the data of the sweep, and the space."""
    arguments = ["sweep", f"--flagfile={config.base}", f"--corpus={config.corpus}"]
    arguments += [*(f"--store={name}" for name in config.store), f"--output={config.output}"]
    try:
        base = cli.parse(TrainConfig, arguments, "")
    except UserError as error:
        raise UserError(f"--base={config.base}: {error}") from None
    if base.store != config.store:
        raise UserError(f"--base={config.base} names its own --store: take it out")
    if base.processes > 1:
        raise UserError(
            f"--base={config.base}: a sweep trains in one process: take --processes out"
        )
    return base, search_space.read(config.vary, arguments)


def _decisive(config: TrainConfig) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in INCIDENTAL}


def _stop(*_: Any) -> None:
    raise Preempted("every epoch is saved; run the same command to resume")


def _search(
    config: SweepConfig, base: TrainConfig, space: dict[str, Distribution], title: str
) -> optuna.Study:
    """Reads, resumes or runs every trial, in order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=config.prune_after_trials, n_warmup_steps=_EPOCHS_BEFORE_PRUNING
    )
    study = optuna.create_study(pruner=pruner)
    for number in range(config.trials):
        # The number seeds the sampler, so that no generator's state has to be saved.
        seed = np.random.SeedSequence([config.seed, number]).generate_state(1)[0]
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        folder = Path(config.output) / f"trial-{number:04d}"
        begun = (folder / "config.json").exists()
        if begun or number == 0:
            known = Run(folder).config if begun else base
            given = {name: getattr(known, name) for name in space}
            if all(search_space.contains(space[name], given[name]) for name in space):
                study.enqueue_trial(given)
            elif begun:
                raise UserError(f"{folder} holds a run outside this sweep's space: move it away")
        trial = study.ask({**space})
        place = f"{title}, {folder.name} ({number + 1} of {config.trials})"
        print(f"{place}: {_listed(trial.params)}", flush=True)
        try:
            value = _train(folder, base, trial)
            study.tell(trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
        except (loop.NotTrainable, devices.TooLittleMemory) as error:
            trial.set_user_attr("problem", str(error))
            study.tell(trial, state=TrialState.FAIL)
        print(f"{place}: {_outcome(study.trials[number])}", flush=True)
    return study


def _train(folder: Path, base: TrainConfig, trial: optuna.Trial) -> float | None:
    """Trains a trial's run; returns the best validation log-loss, or None if it was pruned.

    Raises:
      NotTrainable: these settings cannot be trained.
      TooLittleMemory: they do not fit this device.
    """
    reported = 0

    def watch(*_: Any) -> bool:
        nonlocal reported
        for record in Run(folder).curve[reported:]:  # including the earlier epochs of a resumed run
            trial.report(record.validation_log_loss, record.epoch)
            reported += 1
        return bool(trial.should_prune())  # NumPy's

    try:
        config = dataclasses.replace(base, output=str(folder), **trial.params)
    except UserError as error:  # each value is valid, but not all of them together
        raise loop.NotTrainable(str(error)) from None
    if not (_is_saved(folder) and (watch() or Run(folder).finished)):
        loop.train(config, watch)
        watch()
    trained = Run(folder)
    best = trained.best
    assert best is not None  # an epoch is over
    if not math.isfinite(best.validation_log_loss):
        raise loop.NotTrainable("the validation log-loss is not finite")
    for name in _OUTCOME:
        trial.set_user_attr(name, getattr(best, name))
    trial.set_user_attr("epochs", trained.epochs)
    return best.validation_log_loss if trained.finished else None


def _is_saved(folder: Path) -> bool:
    """Whether the last epoch of a run is in a checkpoint, so that it may have been the end."""
    last = Run(folder).curve[-1:] if (folder / "config.json").exists() else []
    return any((folder / f"checkpoints/{epoch.step + epoch.epoch}").exists() for epoch in last)


def _name(trial: FrozenTrial) -> str:
    return f"trial-{trial.number:04d}"


def _flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(values: dict[str, Any]) -> str:
    texts = {k: f"{v:.4g}" if isinstance(v, float) else _flag(v) for k, v in values.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def _outcome(trial: FrozenTrial) -> str:
    """The outcome of a trial, in words."""
    known = trial.user_attrs
    if trial.state == TrialState.FAIL:
        return f"failed, {known['problem']}"
    pruned = f", pruned after epoch {known['epochs']}" if trial.state == TrialState.PRUNED else ""
    return (
        f"validation log-loss {known['validation_log_loss']:.4f}, "
        f"accuracy {known['validation_accuracy']:.4f} at epoch {known['best_epoch']}{pruned}"
    )


def _write_trials(path: Path, study: optuna.Study, base: TrainConfig) -> None:
    """Writes one line per trial: state, settings, outcome (docs/formats.md)."""
    rows = [
        {"trial": _name(trial), "state": trial.state.name.lower()}
        | {"target_review": base.target_review}
        | trial.params
        | {name: trial.user_attrs.get(name) for name in (*_OUTCOME, "epochs", "problem")}
        for trial in study.trials
    ]
    with files.replacing(path) as file:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(file)


def _write_best(config: SweepConfig, best: TrainConfig, words: str, corpus_sha256: str) -> None:
    """Writes a flagfile of train: every setting except the paths of the data and the run."""
    stores = ", ".join(Path(name).name for name in config.store)
    lines = [
        "# python -m sasnet_jax.train --flagfile=best.flags "
        "--corpus=CORPUS --store=STORE --output=RUN",
        f"# {words}.",
        f"# On corpus {Path(config.corpus).name} (sha256 {corpus_sha256[:12]}), "
        f"store {stores}. Chosen by validation, so better there than on test. Searched from",
        f"# --base={config.base} with --seed={config.seed}:",
        *(f"#   --vary={declaration}" for declaration in config.vary),
    ]
    lines += [f"--{name}={_flag(value)}" for name, value in _decisive(best).items()]
    with files.replacing(Path(config.output) / "best.flags") as file:
        file.write("\n".join([*lines, ""]).encode())
