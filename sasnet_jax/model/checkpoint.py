"""Checkpoints through Orbax: the only module that knows it.

A checkpoint holds the training state, the best parameters so far, and the progress (`records.py`),
which names both by their hashes. Orbax writes each into a temporary folder and renames it, so a
checkpoint is whole or absent. A checkpoint that is damaged afterwards is set aside when the run is
resumed, and the run resumes from the one before it.
"""

import functools
import hashlib
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.model import devices, records
from sasnet_jax.model.records import TRAIN, Progress

_OVERHEAD = 1 << 20  # most bytes of a checkpoint that hold no array


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run: Path, *, keep: int = 1, read_only: bool = False):
        """Opens them to write, keeping the last `keep`, or to read while another process writes."""
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised too
        _hide_closed_loops()
        self._run, self._folder = run, run / "checkpoints"
        if read_only and not self._folder.is_dir():
            raise UserError(f"{self._folder} does not exist: run {TRAIN} again")
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._open()

    def save(self, step: int, state: Any, best: Any, reached: Progress) -> None:
        """Saves trees of host arrays, in the background.

        Steps and evaluations are numbered together: a run may be saved before and after the
        evaluation that ends an epoch.

        Raises:
          UserError: this checkpoint, or the one before, cannot be written.
        """
        reached = msgspec.structs.replace(
            reached, state_sha256=_sha256(state), best_sha256=_sha256(best)
        )
        needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((state, best)))
        with files.naming(self._folder):
            self._manager.wait_until_finished()
            free = shutil.disk_usage(self._folder).free
            if needed + _OVERHEAD > free:  # said now, not in the middle of the next epoch
                raise UserError(
                    f"{self._folder} cannot be written: a checkpoint takes {needed / 1e6:,.1f} MB, "
                    f"but only {free / 1e6:,.1f} MB are free"
                )
            self._manager.save(
                step + reached.epochs_evaluated,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    best=ocp.args.StandardSave(best),
                    progress=ocp.args.JsonSave(files.record_values(reached)),
                ),
            )

    def restore(self, state: Any, best: Any) -> tuple[Any, Any, Progress] | None:
        """The latest whole (state, best, progress), shaped as the given trees; None without any.

        Raises:
          UserError: there are checkpoints, and each is damaged or of another shape.
        """
        numbers = records.saved_numbers(self._run)
        damaged = []
        for number in numbers:
            try:
                arrays, reached = self._restore(number, {"state": state, "best": best})
            except UserError as error:
                if number == numbers[-1]:
                    remedy = f"remove {self._run} and run {TRAIN} again"
                    raise UserError(f"{error}, and no earlier one is whole: {remedy}") from None
                print(f"{error}: resuming from the one before it", file=sys.stderr)
                damaged.append(number)
                continue
            self._set_aside(damaged)
            return arrays["state"], arrays["best"], reached
        return None

    def restore_best(self, best: Any) -> Any:
        """The best parameters.

        Raises:
          UserError: there is no checkpoint, or the latest is damaged or of another shape.
        """
        numbers = records.saved_numbers(self._run)
        if not numbers:
            raise UserError(f"{self._folder} holds no checkpoint yet: run {TRAIN} again")
        try:
            return self._restore(numbers[0], {"best": best})[0]["best"]
        except UserError as error:
            remedy = f"run {TRAIN} again, which resumes from the checkpoint before it"
            raise UserError(f"{error}: {remedy}") from None

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: it cannot be written.
        """
        with files.naming(self._folder):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _open(self) -> None:
        with files.naming(self._folder):
            self._manager = ocp.CheckpointManager(self._folder.absolute(), options=self._options)

    def _set_aside(self, numbers: list[int]) -> None:
        """Renames damaged checkpoints, so that their numbers can be saved again."""
        if not numbers:
            return
        self.close()
        for number in numbers if devices.is_writer() else ():
            aside = self._folder / f"damaged-{number}"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(number)).rename(aside)
        devices.wait_for_all("damaged checkpoints are set aside")
        self._open()

    def _restore(self, number: int, trees: dict[str, Any]) -> tuple[Any, Progress]:
        """Arrays shaped as `trees`, and the progress."""
        try:
            for path in (self._folder / str(number)).rglob("*"):
                if not path.is_dir():
                    files.require_file(path, "remove it")  # Orbax would wait for a pipe forever
            reached = records.read_progress(self._run, number)
            wanted = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
            arrays = self._manager.restore(number, args=ocp.args.Composite(**wanted))
            for name, tree in trees.items():
                _refuse_other_shapes(arrays[name], tree)
                if getattr(reached, f"{name}_sha256") not in (None, _sha256(arrays[name])):
                    raise ValueError(f"the sha256 of {name} differs")
        except (UserError, ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error)
            if isinstance(error, UserError):
                reason = reason.rpartition(": ")[0]  # its remedy is for who reads that file alone
            reason = (reason.splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"checkpoint {self._folder / str(number)} does not fit this run's network or is "
                f"damaged ({reason})"
            ) from None
        return arrays, reached


@functools.cache
def _hide_closed_loops() -> None:
    """Hides the messages that TensorStore prints for every file after the first that failed."""
    default_hook = sys.unraisablehook

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            default_hook(unraisable)

    sys.unraisablehook = show


def _sha256(tree: Any) -> str:
    """The SHA-256 over the bytes of every array, its place and its shape."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _refuse_other_shapes(restored: Any, wanted: Any) -> None:
    """Raises ValueError, because Orbax restores arrays of other shapes without a word."""

    def compare(path: Any, have: Any, want: Any) -> None:
        if np.shape(have) != np.shape(want):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has shape {np.shape(have)}, expected {np.shape(want)}")

    jax.tree_util.tree_map_with_path(compare, restored, wanted)
