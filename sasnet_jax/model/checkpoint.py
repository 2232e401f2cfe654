"""Checkpoints through Orbax: the only module that knows it.

A checkpoint holds the training state, the best parameters so far, and the progress (JSON). Orbax
writes each into a temporary folder and renames it, so a checkpoint is whole or absent; one that was
damaged afterwards is set aside when a run goes on, and the one before it is taken.
"""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
import orbax.checkpoint as ocp

from sasnet_jax.cli import UserError
from sasnet_jax.model import devices


class Progress(TypedDict):
    """Where a run stands."""

    epochs_evaluated: int
    best_epoch: int  # counted from 1; 0 before the first evaluation
    best_log_loss: float | None


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run: Path, *, keep: int = 1, read_only: bool = False):
        """Opens them: to write, keeping the last `keep`, or to read beside a writer."""
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised too
        self._folder = run / "checkpoints"
        if read_only and not self._folder.is_dir():
            raise UserError(f"{self._folder} does not exist: run train again")
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._open()

    def save(self, step: int, state: Any, best: Any, progress: Progress) -> None:
        """Saves trees of host arrays, in the background.

        Steps and evaluations are numbered together: a run may be saved before and after the
        evaluation that ends an epoch.
        """
        self._manager.save(
            step + progress["epochs_evaluated"],
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                best=ocp.args.StandardSave(best),
                progress=ocp.args.JsonSave(dict(progress)),
            ),
        )

    def restore(self, state: Any, best: Any) -> tuple[Any, Any, Progress] | None:
        """The latest whole (state, best, progress), shaped as the given trees; None without any.

        Raises:
          UserError: there are checkpoints, and each is damaged or of another shape.
        """
        items = {
            "state": ocp.args.StandardRestore(state),
            "best": ocp.args.StandardRestore(best),
            "progress": ocp.args.JsonRestore(),
        }
        numbers = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for number in numbers:
            try:
                found = self._restore(number, items)
            except UserError as error:
                if number == numbers[-1]:
                    raise
                print(f"{error}: going on from the one before", file=sys.stderr)
                damaged.append(number)
                continue
            self._set_aside(damaged)
            return found["state"], found["best"], found["progress"]
        return None

    def restore_best(self, best: Any) -> Any:
        """The best parameters.

        Raises:
          UserError: there is no checkpoint, or the latest is damaged or of another shape.
        """
        number = self._manager.latest_step()
        if number is None:
            raise UserError(f"{self._folder} holds no checkpoint yet: run train again")
        return self._restore(number, {"best": ocp.args.StandardRestore(best)})["best"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _open(self) -> None:
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

    def _restore(self, number: int, items: dict[str, Any]) -> Any:
        try:
            found = self._manager.restore(number, args=ocp.args.Composite(**items))
            for name, args in items.items():
                if isinstance(args, ocp.args.StandardRestore):
                    _refuse_other_shapes(found[name], args.item)
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"checkpoint {self._folder / str(number)} does not fit this run's network or is "
                f"damaged ({reason})"
            ) from None
        return found


def _refuse_other_shapes(found: Any, wanted: Any) -> None:
    """Raises ValueError: Orbax restores arrays of other shapes without a word."""

    def compare(path: Any, have: Any, want: Any) -> None:
        if np.shape(have) != np.shape(want):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has shape {np.shape(have)}, expected {np.shape(want)}")

    jax.tree_util.tree_map_with_path(compare, found, wanted)
