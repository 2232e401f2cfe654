"""A run folder, opened to read: what was trained on what, how far, how well (docs/formats.md).

What needs JAX is imported where it is used, so that listing runs does not wait for it.
"""

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store
from sasnet_jax.corpus.transform import InputTransform
from sasnet_jax.files import read_json
from sasnet_jax.model.config import TrainConfig, is_over, with_defaults
from sasnet_jax.scores.predictions import EVALUATED

if TYPE_CHECKING:
    from sasnet_jax.model.predictor import Predictor
    from sasnet_jax.model.sets import Context, StoredReviews

FORMAT_VERSION = 2
_KEYS = ("format_version", "config", "corpus_sha256", "stores")
_SAME_LOSS = 1e-3  # relative; devices and batches round otherwise


class Run:
    """A run, whatever its state.

    Attributes:
      folder: where it lies.
      description: config.json.
      config: the settings in it.
      curve: metrics.jsonl, one record per epoch; a last line that is being written is left out.
    """

    def __init__(self, folder: str | Path):
        """Reads config.json and metrics.jsonl.

        Raises:
          UserError: one is absent, damaged or of another version.
        """
        self.folder = Path(folder)
        self.description = _read_description(self.folder)
        self.config = _config_of(self.folder, self.description)
        self.curve = _read_curve(self.folder / "metrics.jsonl")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def corpus_sha256(self) -> str:
        """Of the corpus that it was trained on."""
        return self.description["corpus_sha256"]

    @property
    def epochs(self) -> int:
        """How many are over."""
        return self.curve[-1]["epoch"] if self.curve else 0

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the epoch whose parameters predict; None before the first is over."""
        return self.curve[self.curve[-1]["best_epoch"] - 1] if self.curve else None

    @property
    def finished(self) -> bool:
        """Whether training is at its end."""
        return is_over(self.config, self.epochs, self.best["epoch"] if self.best else 0)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """evaluation.json; None where there is none, or it is not of the best epoch any more.

        Raises:
          UserError: it is damaged, or of another run.
        """
        return None if self.evaluation_is_stale else self._recorded

    @property
    def evaluation_is_stale(self) -> bool:
        """Whether training went on after the evaluation and found a better epoch."""
        if self._recorded is None:
            return False
        evaluated = self._recorded["validation"]["log_loss"]
        best = self.best["validation_log_loss"] if self.best else math.nan
        return not math.isclose(evaluated, best, rel_tol=_SAME_LOSS)

    @property
    def state(self) -> str:
        """How far it is, in words; "finished" where nothing is left to do."""
        state = "finished" if self.finished else f"epoch {self.epochs:,} of {self.config.epochs:,}"
        if self.evaluation_is_stale:
            return f"{state}, evaluate again"
        return f"{state}, not evaluated" if self.finished and not self._recorded else state

    def open_inputs(self) -> tuple[Corpus, tuple[Store, ...]]:
        """Opens the corpus and the stores.

        Raises:
          UserError: one of them is gone, or is not what the run was trained on.
        """
        from sasnet_jax.model import inputs

        corpus, stores = inputs.open_inputs(self.config)
        if corpus.sha256 != self.corpus_sha256:
            raise UserError(f"corpus {corpus.folder} is not the one that run {self} was trained on")
        for store, identity in zip(stores, self.description["stores"], strict=True):
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
        dims = [store["dim"] for store in self.description["stores"]]
        return InputTransform.load(self.folder / "zscore.npz", dims, self.config.discriminants)

    def class_shares(self) -> Float[np.ndarray, "c"]:
        """The share of each class among the reviews that it was trained on.

        Raises:
          UserError: config.json does not say so.
        """
        shares = self.description.get("class_shares")
        if not isinstance(shares, list) or len(shares) != self.config.classes:
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
          context: "all" shows every review, "train" those only that the run was trained on: what
            an evaluation may see.

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
    def _recorded(self) -> dict[str, Any] | None:
        path = self.folder / "evaluation.json"
        if not path.exists():
            return None
        made_by = f"python -m sasnet_jax.evaluate --run={self}"
        found = read_json(path, made_by, (*EVALUATED, "target_review", "corpus_sha256"))
        split = found["validation"]
        if not isinstance(split, dict) or not isinstance(split.get("log_loss"), float):
            raise UserError(f"{path} is damaged: {made_by}")
        for key in ("target_review", "corpus_sha256"):
            if found[key] != (self.description | self.description["config"])[key]:
                raise UserError(f"{path} is of another {key} than its run: {made_by}")
        return found


def load_run(folder: str | Path) -> Run:
    """Opens a run folder that `python -m sasnet_jax.train` wrote.

    Raises:
      UserError: it holds no run, or one that is damaged or of another version.
    """
    return Run(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has something to resume from."""
    return any((folder / "checkpoints").glob("[0-9]*"))


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    description = read_json(path, "python -m sasnet_jax.train", _KEYS)
    if description["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {description['format_version']}, this program reads "
            f"{FORMAT_VERSION}: train again into a new folder"
        )
    stores = description["stores"]
    if not isinstance(description["config"], dict) or not isinstance(stores, list):
        raise UserError(f"{path} is damaged: train again into a new folder")
    if not all(isinstance(store, dict) and isinstance(store.get("dim"), int) for store in stores):
        raise UserError(f"{path} is damaged (a store has no dim): train again into a new folder")
    return description | {"config": with_defaults(description["config"])}


def _config_of(folder: Path, description: dict[str, Any]) -> TrainConfig:
    settings = description["config"]
    try:
        return TrainConfig(**settings | {"store": tuple(settings["store"])})
    except (TypeError, KeyError) as error:
        path = folder / "config.json"
        raise UserError(f"{path} was written by another version ({error})") from None


def _read_curve(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        curve = [json.loads(line) for line in lines]
        whole = all(
            record["epoch"] == number
            and 1 <= int(record["best_epoch"]) <= number
            and isinstance(record["validation_log_loss"], float)
            for number, record in enumerate(curve, start=1)
        )
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: train again into a new folder")
    return curve
