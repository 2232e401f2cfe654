"""The records of a run beside its arrays, and what reads them (docs/formats.md).

No function here needs JAX. config.json names its inputs and zscore.npz by their hashes. The newest
checkpoint holds the epochs that are over, so a metrics.jsonl that disagrees is noticed, and can be
written again.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.corpus.transform import InputTransform
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.scores.metrics import Loss, Share

if TYPE_CHECKING:
    from sasnet_jax.features.simple_models import SimpleModels

Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
TRAIN = "python -m sasnet_jax.train"
SIMPLE_MODELS = "simple_models.npz"


class RunRecord(files.Record, kw_only=True, frozen=True):
    """config.json."""

    made_by = TRAIN
    version = 2
    program_version: str = ""
    config: dict[str, Any]  # every setting
    corpus_sha256: str
    stores: list[dict[str, Any]]  # the identity of each
    class_shares: list[float] | None = None  # of the training reviews
    ratings: RatingScale = RatingScale()  # of the corpus
    zscore_sha256: str | None = None
    simple_models_sha256: str | None = None  # None if the network builds on none

    def __post_init__(self):
        """Refuses stores of no width."""
        if not all(isinstance(store.get("dim"), int) for store in self.stores):
            raise ValueError("a store has no dim")

    def settings(self, folder: Path) -> TrainConfig:
        """The settings; those newer than the record take their defaults.

        Raises:
          UserError: the record has settings that this version does not know.
        """
        try:
            return TrainConfig(**self.config | {"store": tuple(self.config["store"])})
        except (TypeError, KeyError) as error:
            path = folder / "config.json"
            raise UserError(
                f"{path} was written by another version ({error}): train again into a new folder"
            ) from None

    def bound_to(self, folder: Path) -> dict[str, Any]:
        """Its settings by flag, the corpus and the stores."""
        settings = dataclasses.asdict(self.settings(folder))
        bound = {"corpus_sha256": self.corpus_sha256, "stores": self.stores}
        return {f"--{name}": value for name, value in settings.items()} | bound

    def transform(self, folder: Path) -> InputTransform:
        """How the run reads a vector.

        Raises:
          UserError: zscore.npz is absent, damaged, or of other stores.
        """
        dims = [store["dim"] for store in self.stores]
        kept = self.config.get("discriminants", 0)
        remedy = f"remove {folder} and run {TRAIN} again"
        path = files.require_file(folder / "zscore.npz", remedy, self.zscore_sha256)
        return InputTransform.load(path, dims, kept, remedy)

    def simple_models(self, folder: Path) -> "SimpleModels":
        """What the network builds on.

        Raises:
          UserError: simple_models.npz is absent or damaged.
        """
        from sasnet_jax.features.simple_models import SimpleModels

        if self.simple_models_sha256 is None:
            return SimpleModels()
        remedy = f"remove {folder} and run {TRAIN} again"
        path = files.require_file(folder / SIMPLE_MODELS, remedy, self.simple_models_sha256)
        return SimpleModels.load(path, remedy)


class Epoch(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A line of metrics.jsonl."""

    epoch: Number
    step: Number
    target_review: TargetReview
    train_loss: float  # nats, as the other loss
    validation_log_loss: Loss
    validation_accuracy: Share | None
    validation_macro_f1: Share | None
    best_epoch: Number  # so far
    factor: Share | None = None  # of the network, with --offset

    @property
    def line(self) -> bytes:
        """The record as one line of metrics.jsonl."""
        return json.dumps(msgspec.to_builtins(self)).encode() + b"\n"


class Progress(files.Record, kw_only=True, frozen=True):
    """What a checkpoint says besides its arrays."""

    made_by = TRAIN
    version = 0
    epochs_evaluated: Annotated[int, msgspec.Meta(ge=0)] = 0
    best_epoch: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0 before the first evaluation
    best_log_loss: float | None = None
    curve: list[Epoch] | None = None  # the epochs evaluated
    state_sha256: str | None = None
    best_sha256: str | None = None


def _progress_path(run: Path, number: int) -> Path:
    """The progress in a checkpoint, where Orbax writes it."""
    return run / "checkpoints" / str(number) / "progress" / "metadata"


def saved_numbers(run: Path) -> list[int]:
    """The numbers of a run's checkpoints, the newest first."""
    names = [path.name for path in (run / "checkpoints").glob("[0-9]*")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def read_progress(run: Path, number: int) -> Progress:
    """Reads the progress in one checkpoint.

    Raises:
      UserError: it is damaged.
    """
    remedy = f"run {TRAIN} again, which resumes from the checkpoint before"
    return files.read_record(_progress_path(run, number), Progress, remedy)


def newest_progress(run: Path) -> Progress | None:
    """The progress in the newest checkpoint; None without any.

    Raises:
      UserError: it is damaged.
    """
    for number in saved_numbers(run):
        try:
            return read_progress(run, number)
        except UserError:
            if number in saved_numbers(run):  # else its writer has removed it since
                raise
    return None


def read_curve(run: Path, saved: Progress | None) -> list[Epoch]:
    """Reads metrics.jsonl; a last line that is being written is left out.

    Args:
      run: the folder.
      saved: the progress in its newest checkpoint, or in an earlier one.

    Raises:
      UserError: it is damaged, or its epochs differ from the checkpoint's.
    """
    path = run / "metrics.jsonl"
    again = f"run {TRAIN} again, which rewrites it"
    remedy = again if saved and saved.curve is not None else f"remove {run} and run {TRAIN} again"
    if not path.exists() and not path.is_symlink():
        lines = []
    else:
        lines = files.require_file(path, remedy).read_bytes().split(b"\n")[:-1]
    try:
        curve = [msgspec.json.decode(line, type=Epoch) for line in lines]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    if any(
        epoch.epoch != number or epoch.best_epoch > number for number, epoch in enumerate(curve, 1)
    ):
        raise UserError(f"{path} is damaged (its epochs are out of order): {remedy}")
    if saved and len(curve) < saved.epochs_evaluated:
        raise UserError(f"{path} has fewer epochs than the newest checkpoint: {remedy}")
    if saved and saved.curve not in (None, curve[: saved.epochs_evaluated]):
        raise UserError(f"{path} does not have the epochs of the newest checkpoint: {remedy}")
    return curve
