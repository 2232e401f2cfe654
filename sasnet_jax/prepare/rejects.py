"""Records what is left out, and stops when that is too much.

In: the lines of each reason, block by block. Out: rejects.ndjson, written line by line, and their
counts. The records themselves are never in memory.
"""

import collections
import io
import math
from array import array
from collections.abc import Mapping

import polars as pl

from sasnet_jax.cli import UserError

# Reasons to leave out a review that is not malformed.
EMPTY_TEXT = "empty text"
REPEATED_ID = "repeated id"
_NOT_MALFORMED = (EMPTY_TEXT, REPEATED_ID)
_WRITTEN_TOGETHER = 10_000  # rejects

Rejected = Mapping[str, array]  # reason -> lines, from 1


class Rejects:
    """What is left out of some dumps, and why.

    Args:
      file: where each is written down.
      max_fraction: of the lines that may be malformed.

    Attributes:
      most_malformed: with more of them, the fraction is exceeded whatever else the dumps hold.
    """

    def __init__(self, file: io.BufferedIOBase, max_fraction: float):
        self._file, self._max_fraction, self._first = file, max_fraction, ""
        self._counts: collections.Counter[str] = collections.Counter()
        self.most_malformed = math.inf

    @property
    def by_reason(self) -> dict[str, int]:
        """The number of rejects by reason, the most frequent first."""
        return dict(self._counts.most_common())

    def expect(self, most_records: float) -> None:
        """Says how many records the dumps can hold that are not malformed, at most."""
        if self._max_fraction < 1:
            self.most_malformed = most_records * self._max_fraction / (1 - self._max_fraction)

    def add(self, name: str, rejected: Rejected, lines_before: int = 0) -> None:
        """Writes down the lines of each reason in the file `name`, in the order of the lines.

        Raises:
          UserError: it is now certain that too many are malformed.
        """
        if not rejected:
            return
        for reason, lines in rejected.items():
            self._counts[reason] += len(lines)
        parts = [
            pl.DataFrame({"line": lines}, {"line": pl.Int64}).with_columns(reason=pl.lit(reason))
            for reason, lines in rejected.items()
        ]
        file, line = pl.lit(name).alias("file"), pl.col("line") + lines_before
        frame = pl.concat(parts).sort("line").select(file, line, "reason")
        for rows in frame.iter_slices(_WRITTEN_TOGETHER):
            self._file.write(rows.write_ndjson().encode())
        malformed = frame.filter(~pl.col("reason").is_in(_NOT_MALFORMED))
        if not self._first and malformed.height:
            self._first = "{}, line {}: {}".format(*malformed.row(0))
        if self._malformed > self.most_malformed:
            raise self._too_many("")

    def refuse_wrong_format(self, lines: int) -> None:
        """Raises UserError where too many of the `lines` of the dumps were malformed."""
        if self._malformed > self._max_fraction * lines:
            raise self._too_many(f"of {lines} ")

    @property
    def _malformed(self) -> int:
        return self._counts.total() - sum(self._counts[reason] for reason in _NOT_MALFORMED)

    def _too_many(self, of_all: str) -> UserError:
        return UserError(
            f"{self._malformed} {of_all}lines are malformed, more than --max_reject_fraction="
            f"{self._max_fraction} allows; the first is {self._first}"
        )
