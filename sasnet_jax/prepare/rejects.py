"""Records what is left out, and stops when that is too much.

In: the lines of each reason, block by block. Out: rejects.ndjson, written line by line, and their
counts. The records themselves are never in memory.
"""

import collections
import io
from array import array
from collections.abc import Mapping

import polars as pl

from sasnet_jax.cli import UserError

# Reasons to leave out a review that is not malformed.
EMPTY_TEXT = "empty text"
REPEATED_ID = "repeated id"
_WRITTEN_TOGETHER = 100_000

Rejected = Mapping[str, array]  # reason -> lines, from 1


class Rejects:
    """What is left out of some dumps, and why.

    Args:
      file: the file that the rejects are written to.
      max_fraction: largest fraction of malformed lines.
    """

    def __init__(self, file: io.BufferedIOBase, max_fraction: float):
        self._file, self._max_fraction, self._first = file, max_fraction, ""
        self._counts: collections.Counter[str] = collections.Counter()

    @property
    def by_reason(self) -> dict[str, int]:
        """The number of rejects by reason, the most frequent first."""
        return dict(self._counts.most_common())

    def add(self, name: str, rejected: Rejected, lines_before: int = 0) -> None:
        """Writes the rejected lines of the file `name` in order, with the reasons."""
        for reason, lines in rejected.items():
            self._counts[reason] += len(lines)
        parts = [
            pl.DataFrame({"line": lines}, {"line": pl.Int64}).with_columns(reason=pl.lit(reason))
            for reason, lines in rejected.items()
        ]
        if not parts:
            return
        frame = (
            pl.concat(parts)
            .sort("line")
            .select(pl.lit(name).alias("file"), pl.col("line") + lines_before, "reason")
        )
        for rows in frame.iter_slices(_WRITTEN_TOGETHER):
            self._file.write(rows.write_ndjson().encode())
        malformed = frame.filter(~pl.col("reason").is_in([EMPTY_TEXT, REPEATED_ID]))
        if not self._first and malformed.height:
            file, line, reason = malformed.row(0)
            self._first = f"{file}, line {line}: {reason}"

    def refuse_wrong_format(self, lines: int, most_to_come: float = 0.0) -> None:
        """Stops if there are too many malformed lines, even if all that follow were good.

        Args:
          lines: number of lines read.
          most_to_come: largest number of lines that can follow.

        Raises:
          UserError: as soon as this is certain.
        """
        malformed = self._counts.total() - self._counts[EMPTY_TEXT] - self._counts[REPEATED_ID]
        if malformed > self._max_fraction * (lines + most_to_come):
            raise UserError(
                f"{malformed} of {'the first ' if most_to_come else ''}{lines} lines are "
                f"malformed, more than --max_reject_fraction={self._max_fraction} allows; "
                f"the first is {self._first}"
            )
