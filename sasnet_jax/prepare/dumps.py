"""Cuts dumps of reviews and of businesses into blocks of whole records.

In: a path to NDJSON or CSV, plain or packed (`archives.py`), or to Parquet. Out: `Block`s of a few
megabytes, in file order, each of which a worker can decode on its own. Only a few blocks are in
memory at once, and a record of more than LONGEST_LINE never is.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.prepare.archives import LONGEST_LINE, ON_DISK, TOO_LONG, unpacked, whole
from sasnet_jax.prepare.parquet import MALFORMED, ParquetRows

BLOCK_BYTES = 16 << 20  # less than LONGEST_LINE
_PIECE_BYTES = 1 << 17  # of lines that are decoded together: while they wait, they stay in cache
_BOM = b"\xef\xbb\xbf"
_BLOCK_RECORDS = 10_000  # of CSV
_CSV_AHEAD = 1 << 16  # bytes that the reader of text may hold, and more
_HEAD_BYTES = 1 << 20  # enough to see the format
_DELIMITERS = ",\t;|"
NOT_UTF8 = "not UTF-8"
TOO_LONG_LINE = f"{TOO_LONG}\n".encode()  # stands for such a line of NDJSON

Record = tuple[int, dict[str, Any]]  # the line in its file, from 1, and the values by column


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of one dump.

    Of a plain NDJSON file only the place is given, so that the process that decodes it also reads
    it: the lines whose first byte is in [start, stop). Otherwise the content itself.
    """

    path: Path
    start: int = 0
    stop: int = 0
    data: bytes | None = None  # whole NDJSON lines
    records: list[Record] | None = None

    def pieces(self) -> Iterator[list[bytes]]:
        """The lines of an NDJSON block, so few at a time that they stay in the cache."""
        file: BinaryIO
        if self.data is None:
            file = self.path.open("rb", buffering=_PIECE_BYTES)
            first, stop = _next_line(file, self.start, self.stop), self.stop
        else:
            file, first, stop = io.BytesIO(self.data), 0, len(self.data)
        with file:
            if self.start or file.read(len(_BOM)) != _BOM:
                file.seek(first)
            while (left := stop - file.tell()) > 0:
                data = _read_lines(file, min(_PIECE_BYTES, left))
                if not data:
                    break
                yield io.BytesIO(data).readlines()


@dataclasses.dataclass(frozen=True, slots=True)
class Dump:
    """One input file, and how its records are written in it."""

    path: Path
    wanted: str  # what the file in an archive is called: "review" or "business"
    kind: Literal["ndjson", "csv", "parquet"]
    size: int  # bytes, at most, unpacked; of Parquet: rows
    head: bytes = b""  # its first bytes, unpacked
    delimiter: str = ","

    def columns(self, record_keys: Callable[[bytes], set[str]]) -> set[str]:
        """The column names; `record_keys` gives those of one NDJSON line."""
        if self.kind == "parquet":
            with whole(self.path):
                return ParquetRows(self.path).names
        lines = self.head.removeprefix(_BOM).splitlines()
        if self.kind == "csv":
            header = lines[0].decode(errors="replace") if lines else ""
            try:
                return set(next(_csv_reader([header], self.delimiter), ()))
            except csv.Error as error:
                raise UserError(f"{self.path}, line 1: malformed CSV: {error}") from None
        return set().union(*(record_keys(line) for line in lines[:1000]))

    def most_records(self, required: Sequence[str]) -> float:
        """An upper bound of the records that have the `required` columns."""
        shortest = 1  # a row
        if self.kind == "csv":
            shortest = 2 * len(required)  # a character and a comma, or the end of the line
        elif self.kind == "ndjson":
            shortest = 2 + sum(len(name) + len('"":1,') for name in required)
        return self.size / shortest

    def blocks(self, columns: Sequence[str]) -> Iterator[tuple[Block, int]]:
        """Yields each block, and the number of bytes of the file read after it.

        Args:
          columns: the columns to read, if the file has them; NDJSON lines come whole.

        Raises:
          UserError: the file is truncated or damaged, or unpacks to more than it can mean.
        """
        if self.kind == "parquet":
            with whole(self.path):
                yield from _parquet_blocks(self.path, columns)
            return
        with unpacked(self.path, self.wanted) as (file, raw):
            if self.kind == "csv":
                blocks = _csv_blocks(self.path, file, self.delimiter, columns)
            elif file is raw:
                blocks = _byte_ranges(self.path)
            else:
                blocks = _line_blocks(self.path, file)
            with whole(self.path):
                for block in blocks:
                    yield block, block.stop or raw.tell()


def open_dump(path: Path, wanted: str) -> Dump:
    """Looks at the first bytes of a file.

    Raises:
      UserError: it is missing, damaged, an archive without such a file, or in no known format.
    """
    files.require_file(path, ON_DISK)
    with unpacked(path, wanted) as (file, raw), whole(path):
        head = file.read(_HEAD_BYTES)
        text = head.removeprefix(_BOM).lstrip()
        if text.startswith(b"["):
            raise UserError(f"{path} is one JSON array: write one object per line (NDJSON) instead")
        if b"\n" not in head:
            head += file.readline(LONGEST_LINE)
            if len(head) > LONGEST_LINE:
                raise UserError(f"{path}, line 1: {TOO_LONG}: write one record a line")
        plain = file is raw
        size = path.stat().st_size if plain else file.size
    if head.startswith(b"PAR1"):
        if not plain:
            raise UserError(f"{path}: a Parquet file inside an archive cannot be read: unpack it")
        with whole(path):
            return Dump(path, wanted, "parquet", ParquetRows(path).count)
    text = head.removeprefix(_BOM).lstrip()
    lines = [line for line in text.splitlines() if line.strip()][:100] or [b"{"]
    header = lines[0].decode(errors="replace")
    delimiter = max(_DELIMITERS, key=header.count)
    objects = sum(line.lstrip().startswith(b"{") for line in lines)
    if 2 * objects >= len(lines) or delimiter not in header:
        return Dump(path, wanted, "ndjson", size, head)
    return Dump(path, wanted, "csv", size, head, delimiter)


def _read_lines(file: Any, size: int) -> bytes:
    """Reads `size` bytes and the rest of the line; replaces a line that is too long."""
    data = file.read(size)
    if not data or data.endswith(b"\n"):
        return data
    begun = len(data) - data.rfind(b"\n") - 1
    allowed = max(LONGEST_LINE - begun, 0)
    rest = file.readline(allowed)
    if rest.endswith(b"\n") or len(rest) < allowed:
        return data + rest
    while (passed := file.readline(_PIECE_BYTES)) and not passed.endswith(b"\n"):
        pass
    return data[: len(data) - begun] + TOO_LONG_LINE


def _next_line(file: BinaryIO, start: int, stop: int) -> int:
    """The first start of a line in [start, stop); `stop` if there is none."""
    if start == 0:
        return 0
    file.seek(start - 1)
    file.readline(stop - start + 1)
    return file.tell()


def _byte_ranges(path: Path) -> Iterator[Block]:
    size = path.stat().st_size
    for start in range(0, size, BLOCK_BYTES):
        yield Block(path, start, min(start + BLOCK_BYTES, size))


def _line_blocks(path: Path, file: Any) -> Iterator[Block]:
    start = 0
    while data := _read_lines(file, BLOCK_BYTES):
        yield Block(path, start, data=data)
        start = file.tell()


class _CsvBytes(io.BufferedIOBase):
    """The bytes of a CSV file, in which no record may exceed LONGEST_LINE.

    Attributes:
      behind: bytes read, of which the last few are not yet in a record.
      record_start: `behind` when the record began that is being read.
    """

    def __init__(self, file: Any, path: Path):
        self._file, self._path = file, path
        self.behind = self.record_start = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        data = self._file.read1(size)
        self.behind += len(data)
        if self.behind - self.record_start > LONGEST_LINE + _CSV_AHEAD:
            raise UserError(
                f"{self._path}: a record of more than {LONGEST_LINE >> 20} MB begins at byte "
                f"{self.record_start:,} or a little before: close its quote, or leave it out"
            )
        return data


def _csv_reader(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(2 * LONGEST_LINE)  # which no record reaches
    return csv.reader(lines, delimiter=delimiter)


def _csv_blocks(path: Path, file: Any, delimiter: str, columns: Sequence[str]) -> Iterator[Block]:
    counted: Any = _CsvBytes(file, path)
    with io.TextIOWrapper(counted, "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = _csv_reader(text, delimiter)
        header: list[str] = next(reader, [])
        width = len(header)
        wanted = [(index, name) for index, name in enumerate(header) if name in columns]
        start, records, more = 0, [], True
        while more:
            line, counted.record_start = reader.line_num + 1, counted.behind
            try:
                values = next(reader)
                if len(values) == width:
                    record = {name: values[index] for index, name in wanted}
                    if not _is_unicode(record.values()):
                        record = {MALFORMED: NOT_UTF8}
                    records.append((line, record))
                elif values:
                    problem = f"{len(values)} fields where the header has {width}"
                    records.append((line, {MALFORMED: problem}))
            except StopIteration:
                more = False
            except csv.Error as error:
                records.append((line, {MALFORMED: f"malformed CSV: {error}"}))
            full = len(records) == _BLOCK_RECORDS or counted.behind - start > BLOCK_BYTES
            if records and (full or not more):
                yield Block(path, records=records)
                start, records = counted.behind, []


def _is_unicode(values: Iterable[str]) -> bool:
    """Whether the bytes were UTF-8; any others were decoded to lone surrogates."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[Block, int]]:
    table, behind = ParquetRows(path), 0
    for rows in table.read(columns, BLOCK_BYTES):
        block = Block(path, records=list(enumerate(rows, start=behind + 1)))
        behind += len(rows)
        yield block, path.stat().st_size * behind // table.count
