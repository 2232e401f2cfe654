"""How far a run is: what its checkpoints say beside their arrays, read without JAX.

The newest checkpoint holds the epochs that are over, so a `metrics.jsonl` that says anything else
is noticed, and can be written again (docs/formats.md).
"""

import json
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.scores.metrics import Loss, Share

Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
TRAIN = "python -m sasnet_jax.train"


class Epoch(msgspec.Struct, kw_only=True, frozen=True):
    """A line of metrics.jsonl."""

    epoch: Number
    step: Number
    target_review: TargetReview
    train_loss: float  # nats, as the other loss
    validation_log_loss: Loss
    validation_accuracy: Share | None
    validation_macro_f1: Share | None
    best_epoch: Number  # so far

    @property
    def line(self) -> bytes:
        """As metrics.jsonl has it."""
        return json.dumps(msgspec.to_builtins(self)).encode() + b"\n"


class Progress(files.Record, kw_only=True, frozen=True):
    """What a checkpoint says beside its arrays."""

    made_by = TRAIN
    version = 0
    epochs_evaluated: Annotated[int, msgspec.Meta(ge=0)] = 0
    best_epoch: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0 before the first evaluation
    best_log_loss: float | None = None
    curve: list[Epoch] | None = None  # the epochs evaluated
    state_sha256: str | None = None
    best_sha256: str | None = None


def path_of(run: Path, number: int) -> Path:
    """The progress in a checkpoint, where Orbax writes it."""
    return run / "checkpoints" / str(number) / "progress" / "metadata"


def saved_numbers(run: Path) -> list[int]:
    """The numbers of a run's checkpoints, the newest first."""
    names = [path.name for path in (run / "checkpoints").glob("[0-9]*")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def read(run: Path, number: int) -> Progress:
    """Reads the progress in one checkpoint.

    Raises:
      UserError: it is damaged.
    """
    remedy = f"run {TRAIN} again, which resumes from the checkpoint before"
    return files.read_record(path_of(run, number), Progress, remedy)


def newest(run: Path) -> Progress | None:
    """The progress in the newest checkpoint; None without any.

    Raises:
      UserError: it is damaged.
    """
    for number in saved_numbers(run):
        try:
            return read(run, number)
        except UserError:
            if number in saved_numbers(run):  # else its writer has removed it since
                raise
    return None


def read_curve(run: Path, saved: Progress | None) -> list[Epoch]:
    """Reads metrics.jsonl; a last line that is being written is left out.

    Args:
      run: the folder.
      saved: what its newest checkpoint says, or said before.

    Raises:
      UserError: it is damaged, or has other epochs than the checkpoint.
    """
    path = run / "metrics.jsonl"
    again = f"run {TRAIN} again, which writes it anew"
    remedy = again if saved and saved.curve is not None else f"remove {run} and run {TRAIN} again"
    if not path.exists() and not path.is_symlink():
        lines = []
    else:
        lines = files.require_file(path, remedy).read_bytes().split(b"\n")[:-1]
    try:
        curve = [msgspec.json.decode(line, type=Epoch) for line in lines]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    if any(one.epoch != number or one.best_epoch > number for number, one in enumerate(curve, 1)):
        raise UserError(f"{path} is damaged (its epochs are out of order): {remedy}")
    if saved and len(curve) < saved.epochs_evaluated:
        raise UserError(f"{path} has fewer epochs than the newest checkpoint: {remedy}")
    if saved and saved.curve not in (None, curve[: saved.epochs_evaluated]):
        raise UserError(f"{path} has other epochs than the newest checkpoint: {remedy}")
    return curve
