"""The journal of a store in progress: what is on disk already, line by line.

The first line holds the settings that the store is made with. A line is added only after what it
speaks of is on disk. A line torn by a kill is dropped; what it spoke of is done again.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_torch.cli import UserError
from embed_torch.files import replacing


class Journal:
    """A journal.

    Attributes:
      done: names of the batches on disk, by window.
      complete: windows of which nothing is left to do.
      split: names of the batches that the memory did not hold and that are done in halves.
      windows: those up to this one may have been planned; their budget stays.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        """Opens the journal of an earlier run, or begins one.

        Raises:
          UserError: it belongs to a store with other settings.
        """
        self.done: defaultdict[int, set[str]] = defaultdict(set)
        self.split: defaultdict[int, set[str]] = defaultdict(set)
        self.complete: set[int] = set()
        self.windows = 0
        self._budgets: list[tuple[int, int]] = []  # from a window on, tokens in a batch
        if not path.exists():
            with replacing(path) as file:
                file.write(_line(settings))
        self._path = path
        header, *lines = self._whole_lines()
        changed = sorted(
            name for name in {*settings, *header} if header.get(name) != settings.get(name)
        )
        if changed:
            raise UserError(
                f"{path.parent} holds the beginning of a store made with other "
                f"{', '.join(changed)}: choose another --output, or remove it"
            )
        for line in lines:
            self._replay(line)

    def budget(self, window: int, at_first: int) -> int:
        """Tokens in a batch of a window, fewer once the memory did not hold a batch."""
        return next((n for first, n in reversed(self._budgets) if first <= window), at_first)

    def note_done(self, window: int, batches: list[str]) -> None:
        """Notes batches that are on disk."""
        self._note({"window": window, "done": batches})

    def note_complete(self, window: int) -> None:
        """Notes that nothing of a window is left to do."""
        self._note({"window": window, "complete": True})

    def note_split(self, window: int, batch: str, *, budget: int, budget_from: int) -> None:
        """Notes a batch to be done in halves, and the budget of windows not yet planned."""
        self._note({"window": window, "split": batch, "budget": [budget_from, budget]})

    def _whole_lines(self) -> list[dict[str, Any]]:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        os.truncate(self._path, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            lines = []
        if not lines:
            raise UserError(f"{self._path} is damaged: remove {self._path.parent} and embed again")
        return lines

    def _note(self, line: dict[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(_line(line))
            file.flush()
            os.fsync(file.fileno())
        self._replay(line)

    def _replay(self, line: dict[str, Any]) -> None:
        """What a line means, when it is written and when it is read again."""
        window = line["window"]
        self.windows = max(self.windows, window + 1)
        self.done[window].update(line.get("done", ()))
        if "complete" in line:
            self.complete.add(window)
        if "split" in line:
            self.split[window].add(line["split"])
            self._budgets.append(tuple(line["budget"]))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
