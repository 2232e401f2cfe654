"""One fold of users: its corpus, its runs and its baselines, and what of them is missing.

Users of the fold are for test, those of the next fold for validation, all others for training.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from sasnet_jax import files
from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines import results
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.corpus import resplit
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.evaluate.command import evaluate
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.train import flagfile, loop


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is computed of every fold."""

    corpus: Corpus
    stores: list[dict[str, Any]]  # the settings of each
    protocol: dict[str, Any]  # settings that all models share: target_review, classes
    fold_of_user: Int32[np.ndarray, "users"]
    folds: int
    fold_seed: int
    bases: Mapping[str, TrainConfig]  # by the model's name
    seeds: int  # of each model
    baselines: BaselinesConfig | None
    output: Path


class Fold:
    """One fold.

    Attributes:
      number: from 0.
      folder: where everything of it lies.
      baselines_folder: where its baselines lie.
    """

    def __init__(self, plan: Plan, number: int):
        self.plan, self.number = plan, number
        self.folder = plan.output / f"fold{number}"
        self.baselines_folder = self.folder / "baselines"

    def corpus(self) -> Corpus:
        """The corpus, split for this fold."""
        place = (self.plan.fold_of_user - self.number) % self.plan.folds
        split = np.where(place == 0, "test", np.where(place == 1, "validation", "train"))
        return resplit.resplit(self.plan.corpus, split, self.folder / "corpus")

    def run(self, model: str, seed: int) -> Path:
        """Where a run lies."""
        return self.folder / "runs" / f"{model}-seed{seed}"

    def missing(self) -> dict[str, Callable[[], None]]:
        """What is to be computed, by name, in an order in which it can be.

        Raises:
          UserError: a run is there that was trained with other settings.
        """
        tasks: dict[str, Callable[[], None]] = {}
        if not resplit.is_written(self.corpus()):
            tasks["corpus"] = self._write_corpus
        for seed in range(self.plan.seeds):
            for name, base in self.plan.bases.items():
                paths = self._paths(self.run(name, seed))
                wanted = dataclasses.replace(base, seed=seed, **paths)
                if not _is_evaluated(wanted):
                    tasks[f"{name}, seed {seed}"] = functools.partial(_train, wanted)
        if self.plan.baselines and not (self.baselines_folder / results.COMPLETE).exists():
            fitted = dataclasses.replace(self.plan.baselines, **self._paths(self.baselines_folder))
            tasks["baselines"] = functools.partial(baselines.run, fitted)
        return tasks

    def _write_corpus(self) -> None:
        folds = self.plan.folds
        boundaries = {"folds": folds, "seed": self.plan.fold_seed, "test_fold": self.number}
        boundaries["validation_fold"] = (self.number + 1) % folds
        resplit.write(self.plan.corpus, self.corpus(), boundaries)

    def _paths(self, output: Path) -> dict[str, Any]:
        return {"corpus": str(self.folder / "corpus"), "output": str(output)}


def _is_evaluated(wanted: TrainConfig) -> bool:
    """Whether a run is complete.

    Raises:
      UserError: it has other settings.
    """
    folder = Path(wanted.output)
    if not (folder / "config.json").exists():
        return False
    run = Run(folder)
    before, now = flagfile.decisive(run.config), flagfile.decisive(wanted)
    files.refuse_other_settings(folder, before, now)
    return run.finished and run.evaluation is not None


def _train(wanted: TrainConfig) -> None:
    loop.train(wanted)  # where nothing is left to train, it says so
    evaluate(Run(wanted.output))
