"""`python -m sasnet_jax.sweep`: a search over training settings; every trial is an ordinary run.

The study (Optuna) holds finished trials only, each written in one transaction. What the next trial
tries follows from them, the seed and its number, so a sweep that was killed goes on with the trial
that it was at, and ends with the trials of one that was never killed.
"""

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from sasnet_jax import __version__, cli, files
from sasnet_jax.cli import Preempted, UserError, setting
from sasnet_jax.corpus import transform
from sasnet_jax.model import devices, inputs
from sasnet_jax.model.config import TrainConfig, with_defaults
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions
from sasnet_jax.sweep import search_results, search_space
from sasnet_jax.train import loop

FORMAT_VERSION = 1
_MADE_BY = "python -m sasnet_jax.sweep"


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
        "", help="flagfile of train: what is not varied", topic="search", required=True
    )
    vary: tuple[str, ...] = setting(
        (), help="NAME=LOW..HIGH[:log] or NAME=A|B|C; repeatable", topic="search", required=True
    )
    trials: int = setting(
        30, help="runs, those of earlier calls included", topic="search", minimum=1
    )
    prune: Literal["median", "none"] = setting(
        "median", help="end a run that is worse than the median run was", topic="search"
    )
    prune_after_trials: int = setting(
        5, help="complete runs before any is ended", topic="search", extra=True, minimum=1
    )
    prune_after_epochs: int = setting(
        3, help="epochs that every run has", topic="search", extra=True, minimum=1
    )
    seed: int = setting(
        0, help="of the search; --base has that of the runs", topic="search", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)


def run(config: SweepConfig) -> None:
    """Makes the trials that are missing, and writes best.flags and trials.csv."""
    base, space = _read_search(config)
    # A mistake in them is told before any trial.
    corpus, stores = inputs.open_inputs(base)
    corpus.refuse_missing_class(base.classes)
    transform.refuse_too_many(search_space.largest(space, "discriminants"), stores)
    settings = {
        "base": _decisive(dataclasses.asdict(base)),
        "vary": {
            name: json.loads(distribution_to_json(distribution))
            for name, distribution in space.items()
        },
        "prune": [config.prune, config.prune_after_trials, config.prune_after_epochs],
        "seed": config.seed,
        "corpus_sha256": corpus.sha256,
        "stores": [store.identity for store in stores],
    }
    output = Path(config.output)
    if output.is_file() or (any(output.glob("[!.]*")) and not (output / "sweep.json").exists()):
        raise UserError(f"--output={output} holds other files: choose a new folder")
    with files.sole_writer(output), _stopped_by_sigterm():
        _write_or_compare(output / "sweep.json", settings)
        with _open_study(output) as study:
            _Sweep(config, base, space, study, corpus.sha256).run()


def _read_search(config: SweepConfig) -> tuple[TrainConfig, dict[str, BaseDistribution]]:
    """The base settings, with the data of the sweep, and the space."""
    arguments = ["sweep", f"--flagfile={config.base}", f"--corpus={config.corpus}"]
    arguments += [*(f"--store={name}" for name in config.store), f"--output={config.output}"]
    try:
        base = cli.parse(TrainConfig, arguments, "")
    except UserError as error:
        raise UserError(f"--base={config.base}: {error}") from None
    if base.store != config.store:
        raise UserError(f"--base={config.base} names a --store of its own: take it out")
    if base.processes > 1:
        raise UserError(f"--base={config.base}: the runs of a sweep have --processes=1")
    return base, search_space.read(config.vary, arguments)


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in search_space.INCIDENTAL}


def _write_or_compare(path: Path, settings: dict[str, Any]) -> None:
    """Writes sweep.json, or refuses settings that are not those of the sweep that is there."""
    if not path.exists():
        versions = {"format_version": FORMAT_VERSION, "program_version": __version__}
        files.write_json(path, versions | settings)
        return
    before = files.read_json(path, _MADE_BY, settings)
    if before["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {before['format_version']}, this program reads "
            f"{FORMAT_VERSION}: choose another --output"
        )
    changed = [f"--{name}" for name in ("prune", "seed") if before[name] != settings[name]] + [
        name for name in ("corpus_sha256", "stores") if before[name] != settings[name]
    ]
    before["base"] = _decisive(with_defaults(before["base"]))
    for group, text in (("vary", "--vary={}"), ("base", "--{} in --base")):
        old, new = before[group], settings[group]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        changed += [text.format(name) for name in names]
    if changed:
        raise UserError(
            f"{path.parent} holds a sweep with other {', '.join(changed)}: choose another --output"
        )


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Between two runs there is nothing to save; within one its own handler saves it."""

    def stop(*_: Any) -> None:
        raise Preempted("every finished trial is saved; run the same command to go on")

    handler = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _open_study(output: Path) -> Iterator[optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = output / "study.sqlite3"
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        try:
            yield optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read or written ({reason}); if it is damaged, remove it: the same "
            "command makes it again from its runs"
        ) from None


class _Sweep:
    """A sweep in progress."""

    def __init__(
        self,
        config: SweepConfig,
        base: TrainConfig,
        space: dict[str, BaseDistribution],
        study: optuna.Study,
        corpus_sha256: str,
    ):
        self.config, self.base, self.space, self.study = config, base, space, study
        self.corpus_sha256 = corpus_sha256
        self.output = Path(config.output)
        leaky = base.target_review == "include"
        self.title = f"sweep, {predictions.LEAKY}" if leaky else "sweep"

    def run(self) -> None:
        """Goes on until there are enough trials, and tells what was found."""
        first, started = len(self.study.trials), time.monotonic()
        for number in range(first, self.config.trials):
            done = self._try(number)
            seconds = (time.monotonic() - started) / (number + 1 - first)
            left = seconds * (self.config.trials - number - 1) / 60
            self._say(f"{search_results.NAME.format(number)}: {search_results.outcome(done)}")
            self._say(f"{seconds:.0f} s a trial, {left:.0f} min left")
        search_results.write_trials(self.output / "trials.csv", self.study, self.base)
        if not self.study.get_trials(states=[TrialState.COMPLETE]):
            raise UserError(f"no trial of {self.output} has completed: see its trials.csv")
        self._write_best()
        self._say(search_results.best(self.study))
        if importances := search_results.importances(self.study):
            self._say(f"importance for the log-loss: {search_results.listed(importances)}")
        print(f"written: {self.output}/best.flags, {self.output}/trials.csv")

    def _say(self, text: str) -> None:
        print(f"{self.title}, {text}", flush=True)

    def _write_best(self) -> None:
        config = dataclasses.replace(self.base, **self.study.best_params)
        stores = ", ".join(Path(name).name for name in config.store)
        comment = [
            f"{self.title}, {search_results.best(self.study)}.",
            f"On corpus {Path(config.corpus).name} (sha256 {self.corpus_sha256[:12]}), "
            f"store {stores}. Chosen by validation, so better there than on test. Searched from",
            f"--base={self.config.base} with --seed={self.config.seed}:",
            *(f"  --vary={declaration}" for declaration in self.config.vary),
        ]
        search_results.write_flags(self.output / "best.flags", config, comment)

    def _try(self, number: int) -> FrozenTrial:
        """Makes, or takes up, one run and adds it to the study."""
        # A copy that is thrown away: a trial enters the study when it is over.
        draft = optuna.create_study(sampler=self._sampler(number), pruner=self._pruner())
        draft.add_trials(self.study.trials)
        folder = self.output / search_results.NAME.format(number)
        if given := self._given(folder, number):
            draft.enqueue_trial(given)
        trial = draft.ask(self.space)
        place = f"{folder.name} ({number + 1} of {self.config.trials})"
        self._say(f"{place}: {search_results.listed(trial.params)}")
        try:
            value = self._train(folder, trial)
            draft.tell(trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
        except (loop.NotTrainable, devices.TooLittleMemory) as error:
            trial.set_user_attr("problem", str(error))
            draft.tell(trial, state=TrialState.FAIL)
        done = draft.trials[number]
        self.study.add_trial(done)
        return done

    def _train(self, folder: Path, trial: optuna.Trial) -> float | None:
        """Trains a trial's run; returns the best validation log-loss, or None of a pruned one.

        Raises:
          NotTrainable: with these settings it cannot be trained.
          TooLittleMemory: not on this device.
        """
        reported = 0

        def report() -> None:
            nonlocal reported
            for record in Run(folder).curve[reported:]:
                trial.report(record["validation_log_loss"], record["epoch"])
                reported += 1

        def watch(record: dict[str, Any]) -> bool:
            report()  # a resumed run's epochs of before, too
            return bool(trial.should_prune())  # NumPy's

        try:
            config = dataclasses.replace(self.base, output=str(folder), **trial.params)
        except UserError as error:  # each value can be meant, but not all of them together
            raise loop.NotTrainable(str(error)) from None
        loop.train(config, watch)
        report()
        trained = Run(folder)
        best = trained.best
        assert best is not None  # an epoch is over
        if not math.isfinite(best["validation_log_loss"]):
            raise loop.NotTrainable("the validation log-loss is not finite")
        for name in search_results.OUTCOME:
            trial.set_user_attr(name, best[name])
        trial.set_user_attr("epochs", trained.epochs)
        return best["validation_log_loss"] if trained.finished else None

    def _given(self, folder: Path, number: int) -> dict[str, Any] | None:
        """The settings of a run that was begun; of the first, the base's if the space has them."""
        if (folder / "config.json").exists():
            config = Run(folder).config
        elif number == 0:
            config = self.base
        else:
            return None
        given = {name: getattr(config, name) for name in self.space}
        if search_space.holds(self.space, given):
            return given
        if config is self.base:
            return None
        raise UserError(f"{folder} is a run outside the space of this sweep: move it away")

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        """Seeded by the number, so that no generator's state has to be saved."""
        seed = np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0]
        return optuna.samplers.TPESampler(seed=int(seed))

    def _pruner(self) -> optuna.pruners.BasePruner:
        if self.config.prune == "none":
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(
            n_startup_trials=self.config.prune_after_trials,
            n_warmup_steps=self.config.prune_after_epochs,
        )
