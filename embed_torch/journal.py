"""Keeps the journal of a store in progress: what is on disk already, line by line.

The first line holds the settings of the store. A line is added only after what it notes is on
disk. A line torn by a kill is dropped, and what it noted is done again.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from embed_torch.cli import UserError
from embed_torch.files import naming, refuse_other_settings, replacing, require_file
from embed_torch.manifest import remedy_for

_Window = Annotated[int, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct, omit_defaults=True, frozen=True):
    window: _Window
    done: tuple[str, ...] = ()
    complete: bool = False
    split: str | None = None
    budget: tuple[_Window, int] | None = (
        None  # first window, and most tokens in a batch from there on
    )


class Journal:
    """The journal of a store.

    Attributes:
      done: names of the batches on disk, by window.
      complete: windows with nothing left to do.
      split: names, by window, of batches that did not fit into memory and are done in halves.
      windows: number of windows that may have been planned already, and so keep their budget.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """Opens the journal of an earlier run, or begins a new one.

        Raises:
          UserError: it belongs to a store with other settings, or is damaged.
        """
        self.done: defaultdict[int, set[str]] = defaultdict(set)
        self.split: defaultdict[int, set[str]] = defaultdict(set)
        self.complete: set[int] = set()
        self.windows = 0
        self._budgets: list[tuple[int, int]] = []
        if not path.exists():
            with replacing(path) as file:
                file.write(msgspec.json.encode(settings) + b"\n")
        data = require_file(path, remedy_for(path.parent)).read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        self._path = path
        header, *lines = whole.splitlines() or [b""]
        try:
            before = msgspec.json.decode(header, type=dict[str, Any])
            known = [msgspec.json.decode(line, type=_Line) for line in lines]
        except (msgspec.DecodeError, RecursionError):
            raise self.damaged() from None
        refuse_other_settings(path.parent, before, settings)
        os.truncate(path, len(whole))
        for line in known:
            self._replay(line)

    def damaged(self) -> UserError:
        """The error for a line that cannot be right."""
        return UserError(f"{self._path} is damaged: {remedy_for(self._path.parent)}")

    def budget(self, window: int, at_first: int) -> int:
        """Most tokens in a batch of a window: fewer after a batch did not fit into memory."""
        return next((n for first, n in reversed(self._budgets) if first <= window), at_first)

    def note_done(self, window: int, batches: list[str]) -> None:
        """Notes batches that are on disk."""
        self._note(_Line(window, done=tuple(batches)))

    def note_complete(self, window: int) -> None:
        """Notes that nothing of a window is left to do."""
        self._note(_Line(window, complete=True))

    def note_split(self, window: int, batch: str, *, budget: int, budget_from: int) -> None:
        """Notes a batch to be done in halves, and the budget of windows not yet planned."""
        self._note(_Line(window, split=batch, budget=(budget_from, budget)))

    def _note(self, line: _Line) -> None:
        with naming(self._path), self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._replay(line)

    def _replay(self, line: _Line) -> None:
        """Applies a line, when it is written and when it is read again."""
        self.windows = max(self.windows, line.window + 1)
        self.done[line.window].update(line.done)
        if line.complete:
            self.complete.add(line.window)
        if line.split is not None:
            self.split[line.window].add(line.split)
        if line.budget is not None:
            self._budgets.append(line.budget)
