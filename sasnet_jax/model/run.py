"""A run folder, opened to read: its inputs, its settings, and its results (docs/formats.md).

What needs JAX is imported where it is used, so that listing runs does not wait for it.
"""

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store
from sasnet_jax.corpus.transform import InputTransform
from sasnet_jax.model import records
from sasnet_jax.model.config import RESUMABLE, is_over
from sasnet_jax.model.records import Epoch, RunRecord
from sasnet_jax.scores import predictions
from sasnet_jax.scores.predictions import Evaluation, Predictions

if TYPE_CHECKING:
    from sasnet_jax.model.predictor import Predictor
    from sasnet_jax.model.sets import Context, StoredReviews

_SAME_LOSS = 1e-3  # relative; devices and batch sizes round differently


class Run:
    """A run in any state.

    Attributes:
      folder: where it lies.
      record: config.json.
      config: the settings in it.
      curve: metrics.jsonl, one record per epoch; a last line that is being written is left out.
    """

    def __init__(self, folder: str | Path):
        """Reads config.json, metrics.jsonl, and what the newest checkpoint says of them.

        Raises:
          UserError: one is absent, damaged or of another version.
        """
        self.folder = Path(folder)
        self.record = files.read_record(self.folder / "config.json", RunRecord)
        self.config = self.record.settings(self.folder)
        self._saved = records.newest_progress(self.folder)  # before the curve, which may grow
        self.curve = records.read_curve(self.folder, self._saved)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def corpus_sha256(self) -> str:
        """The SHA-256 of the corpus that it was trained on."""
        return self.record.corpus_sha256

    @property
    def best_sha256(self) -> str | None:
        """The SHA-256 of the best parameters; None if there are none, or the run is too old."""
        return self._saved.best_sha256 if self._saved else None

    @property
    def epochs(self) -> int:
        """The number of epochs that are over."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def best(self) -> Epoch | None:
        """The epoch whose parameters predict; None before the first is over."""
        return self.curve[self.curve[-1].best_epoch - 1] if self.curve else None

    @property
    def finished(self) -> bool:
        """Whether training is at its end."""
        return is_over(self.config, self.epochs, self.best.epoch if self.best else 0)

    @property
    def evaluation(self) -> Evaluation | None:
        """evaluation.json; None if there is none, or if training has found a better epoch since.

        Raises:
          UserError: it is damaged, or of another run.
        """
        return None if self.evaluation_is_stale else self._recorded

    @property
    def evaluation_is_stale(self) -> bool:
        """Whether training resumed after the evaluation and found a better epoch."""
        if self._recorded is None:
            return False
        if self._recorded.best_sha256 not in (None, self.best_sha256):
            return True
        evaluated = self._recorded.validation.log_loss or math.nan
        best = self.best.validation_log_loss if self.best else math.nan
        return not math.isclose(evaluated, best, rel_tol=_SAME_LOSS)

    @property
    def evaluate_again(self) -> str:
        """What to type for another evaluation."""
        return f"run {Evaluation.made_by} --run={self}"

    def predictions(self, corpus: Corpus, evaluation: Evaluation) -> Predictions:
        """Reads what the run predicted when it was evaluated.

        Raises:
          UserError: predictions.parquet is absent, damaged, or of another run, corpus or split.
        """
        path, sha256 = self.folder / "predictions.parquet", evaluation.predictions_sha256
        return predictions.read(path, corpus, sha256, self.evaluate_again)

    @property
    def state(self) -> str:
        """Its progress in words; "finished" if nothing is left to do."""
        state = "finished" if self.finished else f"epoch {self.epochs:,} of {self.config.epochs:,}"
        if self.evaluation_is_stale:
            return f"{state}, evaluate again"
        return f"{state}, not evaluated" if self.finished and not self._recorded else state

    def decisive(self, free: tuple[str, ...] = ("seed",)) -> dict[str, Any]:
        """The settings and inputs that decide its results, except the `free` settings."""
        others = {f"--{name}" for name in (*RESUMABLE, *free)}
        return {k: v for k, v in self.record.bound_to(self.folder).items() if k not in others}

    def open_inputs(self) -> tuple[Corpus, tuple[Store, ...]]:
        """Opens the corpus and the stores.

        Raises:
          UserError: one of them is gone, or is not what the run was trained on.
        """
        from sasnet_jax.model import inputs

        corpus, stores = inputs.open_inputs(self.config)
        if corpus.sha256 != self.corpus_sha256:
            raise UserError(f"corpus {corpus.folder} is not the one that run {self} was trained on")
        for store, identity in zip(stores, self.record.stores, strict=True):
            if store.identity != identity:
                raise UserError(
                    f"store {store.folder} is not the one that run {self} was trained on"
                )
        return corpus, stores

    def transform(self) -> InputTransform:
        """How the run reads a vector.

        Raises:
          UserError: zscore.npz is absent, damaged, or of other stores.
        """
        return self.record.transform(self.folder)

    def class_shares(self) -> Float[np.ndarray, "c"]:
        """The share of each class among the reviews that it was trained on.

        Raises:
          UserError: config.json does not say so.
        """
        shares = self.record.class_shares or []
        if len(shares) != self.config.classes:
            path = self.folder / "config.json"
            raise UserError(f"{path} lacks class_shares: train again into a new folder")
        return np.array(shares, np.float32)

    def best_params(self, like: Any) -> Any:
        """The parameters of the best epoch, shaped as the tree `like`.

        Raises:
          UserError: there is no checkpoint, or it is damaged or of another network.
        """
        from sasnet_jax.model.checkpoint import Checkpoints

        checkpoints = Checkpoints(self.folder, read_only=True)
        try:
            return checkpoints.restore_best(like)
        finally:
            checkpoints.close()

    def users(self, context: "Context" = "all") -> "StoredReviews":
        """The reviews of every user of its corpus; see `businesses`."""
        return self._stored("user", context)

    def businesses(self, context: "Context" = "all") -> "StoredReviews":
        """The reviews of every business of its corpus, as the run reads them.

        Args:
          context: "all" shows every review, "train" only those that the run was trained on, as an
            evaluation sees them.

        Raises:
          UserError: the corpus or a store is gone, or is not what the run was trained on.
        """
        return self._stored("business", context)

    def predictor(self) -> "Predictor":
        """The trained network, ready to score any two sets of reviews; needs no corpus.

        Raises:
          UserError: what was trained is absent or damaged.
        """
        from sasnet_jax.model.predictor import Predictor

        return Predictor([self])

    def __str__(self) -> str:
        """The folder."""
        return str(self.folder)

    def _stored(self, side: Literal["user", "business"], context: "Context") -> "StoredReviews":
        from sasnet_jax.model.sets import StoredReviews

        with_stars = self.config.sees_stars
        return StoredReviews(*self.open_inputs(), side, context=context, with_stars=with_stars)

    @functools.cached_property
    def _recorded(self) -> Evaluation | None:
        path = self.folder / "evaluation.json"
        if not path.exists():
            return None
        recorded = files.read_record(path, Evaluation, self.evaluate_again)
        for name, evaluated, mine in (
            ("target_review", recorded.target_review, self.config.target_review),
            ("corpus_sha256", recorded.corpus_sha256, self.corpus_sha256),
        ):
            if evaluated != mine:
                raise UserError(f"{path} differs from its run in {name}: {self.evaluate_again}")
        return recorded


def load_run(folder: str | Path) -> Run:
    """Opens a run folder that `python -m sasnet_jax.train` wrote.

    Raises:
      UserError: it holds no run, or one that is damaged or of another version.
    """
    return Run(folder)
