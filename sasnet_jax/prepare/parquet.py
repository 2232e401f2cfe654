"""Reads the rows of a Parquet file in bounded memory, a few thousand at a time.

In: a path. Out: rows as dicts, with whole numbers and dates as text, as in CSV. The sizes in the
footer are checked before anything is unpacked. A value that the file holds once may be that of a
million rows, so rows are measured before they become Python objects.
"""

import contextlib
import io
import itertools
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from sasnet_jax.cli import UserError
from sasnet_jax.prepare.archives import (
    LONGEST_LINE,
    TOO_LONG,
    most_unpacked,
    shown,
    unpacks_too_far,
)

MALFORMED = ""  # the key of a row or record that says what is wrong with it
_MOST_ROWS = 10_000  # read together
_BYTES_OF_A_VALUE = 8  # in memory, at least

_TEXTUAL: Any = {cs.integer() | cs.temporal() | cs.categorical() | cs.enum(): pl.String}


class ParquetRows:
    """The rows of one file; `names` are its columns, `count` its rows."""

    def __init__(self, path: Path):
        self._path, self._table = path, pl.scan_parquet(path, glob=False)
        self._types = self._table.collect_schema()
        self.names = set(self._types)
        self.count: int = self._table.select(pl.len()).collect().item()

    def read(self, names: Collection[str], most_bytes: int) -> Iterator[list[dict[str, Any]]]:
        """Yields lists of consecutive rows of at most about `most_bytes` each.

        Args:
          names: the columns to read, if the file has them.
          most_bytes: bytes of the rows that are yielded together.

        Raises:
          UserError: a column has an unusable type, or the columns have more bytes than a file of
            this size can plausibly hold.
        """
        types = {name: kind for name, kind in self._types.items() if name in names}
        for name, kind in types.items():
            if not _is_usable(kind):
                raise UserError(
                    f"{self._path}: the column {shown(name)} is of type {shown(str(kind))}, which "
                    "is neither text, a number nor a date: write it as text"
                )
        if (declared := _declared_bytes(self._path, types)) > most_unpacked(self._path):
            raise unpacks_too_far(self._path, declared)
        table, total = self._table.select(list(types)), 0
        sizes = [_bytes_of(pl.col(name), kind) for name, kind in types.items()]
        for first in range(0, self.count, _MOST_ROWS):
            with _without_panic_reports():
                part = table.slice(first, _MOST_ROWS).collect()
            size = part.select(pl.sum_horizontal(sizes)).to_series()
            total += int(size.sum())
            if total > most_unpacked(self._path):
                raise unpacks_too_far(self._path)
            too_long = size > LONGEST_LINE
            if too_long.any():
                part = part.with_columns(pl.when(~too_long).then(pl.all()))  # else null
            ends = np.flatnonzero(np.diff(size.set(too_long, 0).cum_sum() // most_bytes)) + 1
            for start, stop in itertools.pairwise([0, *ends.tolist(), part.height]):
                rows = part[start:stop].cast(_TEXTUAL).rows(named=True)
                for place in too_long[start:stop].arg_true():
                    rows[place] = {MALFORMED: TOO_LONG}
                yield rows


@contextlib.contextmanager
def _without_panic_reports() -> Iterator[None]:
    """Of damaged files polars prints a backtrace besides what it raises."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def _is_usable(kind: Any) -> bool:
    while isinstance(kind, pl.List):
        kind = kind.inner
    textual = kind in (pl.String, pl.Boolean, pl.Null, pl.Categorical, pl.Enum)
    return textual or kind.is_numeric() or kind.is_temporal()


def _bytes_of(value: pl.Expr, kind: Any) -> pl.Expr:
    """The bytes of a column's values, each stored separately."""
    if isinstance(kind, pl.List):
        inner = value.list.eval(_bytes_of(pl.element(), kind.inner)).list.sum()
        return (inner + _BYTES_OF_A_VALUE * value.list.len().cast(pl.Int64)).fill_null(0)
    if kind in (pl.Categorical, pl.Enum):
        return value.cat.len_bytes().cast(pl.Int64).fill_null(0)
    if kind == pl.String:
        return value.str.len_bytes().cast(pl.Int64).fill_null(0)
    return value.is_not_null().cast(pl.Int64) * _BYTES_OF_A_VALUE


def _declared_bytes(path: Path, names: Collection[str]) -> int:
    """The unpacked bytes of some columns, by the footer (parquet.thrift: FileMetaData)."""
    with path.open("rb") as file:
        file.seek(-8, io.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        if length > LONGEST_LINE:
            raise EOFError("a footer of that length")
        file.seek(-8 - length, io.SEEK_END)
        footer = _Thrift(file.read(length))
    total = 0
    try:
        for row_group in footer.struct()[4]:
            for column in row_group[1]:
                metadata = column[3]  # 3: path; 5: values, nulls among them; 6: bytes unpacked
                if metadata[3][0].decode() in names:
                    total += _BYTES_OF_A_VALUE * metadata[5] + metadata[6]
    except (LookupError, TypeError, AttributeError):
        raise EOFError("its footer") from None
    return total


class _Thrift:
    """Decodes Thrift's compact protocol; a struct becomes a dict by field number."""

    def __init__(self, data: bytes):
        self._file = io.BytesIO(data)

    def _byte(self) -> int:
        return self._file.read(1)[0]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) >= 128:
            value |= (byte - 128) << shift
            shift += 7
            if shift > 63:
                raise EOFError("a number without an end")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def struct(self) -> dict[int, Any]:
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == 1 if kind <= 2 else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind <= 3:
            return self._byte()
        if kind <= 6:
            return self._integer()
        if kind == 7:
            return self._file.read(8)
        if kind == 8:
            return self._file.read(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise EOFError(f"a Thrift value of the type {kind}")
