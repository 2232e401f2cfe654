"""Opens dumps as people download them, and cuts them into blocks of whole records.

In: a path to NDJSON or CSV, plain, gzip, or in a zip or tar (one inside the other, as Yelp packs
them), or to a Parquet file. Out: `Block`s of some megabytes, in file order, each of which a worker
can decode on its own. Nothing is ever unpacked onto the disk, and no more than a few blocks are in
memory.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl
import polars.selectors as cs

from sasnet_jax.cli import UserError

BLOCK_BYTES = 16 << 20
_PIECE_BYTES = 1 << 17  # of lines that are decoded together: while they wait, they stay in cache
_BOM = b"\xef\xbb\xbf"
_BLOCK_RECORDS = 10_000  # of CSV and Parquet
_HEAD_BYTES = 1 << 20  # enough to see the format
_LONGEST_FIELD = 1 << 28  # bytes of a CSV field
_DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_PACKED_SUFFIXES = (".gz", ".tgz", ".tar", ".zip")
_DELIMITERS = ",\t;|"
MALFORMED = ""  # the key of a record that says what is wrong with it
NOT_UTF8 = "not UTF-8"

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
            first, stop = _next_line(file, self.start), self.stop
        else:
            file, first, stop = io.BytesIO(self.data), 0, len(self.data)
        with file:
            if self.start or file.read(len(_BOM)) != _BOM:
                file.seek(first)
            left = stop - file.tell()
            while left > 0 and (data := file.read(min(_PIECE_BYTES, left))):
                if not data.endswith(b"\n"):
                    data += file.readline()
                left -= len(data)
                yield io.BytesIO(data).readlines()


@dataclasses.dataclass(frozen=True, slots=True)
class Dump:
    """One input file, and how its records are written in it."""

    path: Path
    wanted: str  # what the file in an archive is called: "review" or "business"
    kind: Literal["ndjson", "csv", "parquet"]
    head: bytes  # its first bytes, unpacked
    delimiter: str = ","

    def columns(self, record_keys: Callable[[bytes], set[str]]) -> set[str]:
        """The column names; `record_keys` gives those of one NDJSON line."""
        if self.kind == "parquet":
            with _whole(self.path):
                return set(pl.scan_parquet(self.path, glob=False).collect_schema())
        lines = self.head.removeprefix(_BOM).splitlines()
        if self.kind == "csv":
            header = lines[0].decode(errors="replace") if lines else ""
            return set(next(_csv_reader([header], self.delimiter), ()))
        return set().union(*(record_keys(line) for line in lines[:1000]))

    def blocks(self, columns: Sequence[str]) -> Iterator[tuple[Block, int]]:
        """Yields each block, and how many bytes of the file lie behind after it.

        Args:
          columns: those wanted, where the file has them; NDJSON lines come whole.

        Raises:
          UserError: the file is truncated or damaged.
        """
        if self.kind == "parquet":
            with _whole(self.path):
                yield from _parquet_blocks(self.path, columns)
            return
        with _unpacked(self.path, self.wanted) as (file, raw):
            if self.kind == "csv":
                blocks = _csv_blocks(self.path, file, self.delimiter, columns)
            elif file is raw:
                blocks = _byte_ranges(self.path)
            else:
                blocks = _line_blocks(self.path, file)
            with _whole(self.path):
                for block in blocks:
                    yield block, block.stop or raw.tell()


def open_dump(path: Path, wanted: str) -> Dump:
    """Looks at the first bytes of a file.

    Raises:
      UserError: it is missing, damaged, an archive without such a file, or in no known format.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    with _unpacked(path, wanted) as (file, raw), _whole(path):
        head = file.read(_HEAD_BYTES)
        text = head.removeprefix(_BOM).lstrip()
        if text.startswith(b"["):
            raise UserError(f"{path} is one JSON array: write one object a line (NDJSON) instead")
        if b"\n" not in head:
            head += file.readline()
        plain = file is raw
    if head.startswith(b"PAR1"):
        if not plain:
            raise UserError(f"{path}: a Parquet file inside an archive cannot be read: unpack it")
        return Dump(path, wanted, "parquet", b"")
    text = head.removeprefix(_BOM).lstrip()
    lines = [line for line in text.splitlines() if line.strip()][:100] or [b"{"]
    header = lines[0].decode(errors="replace")
    delimiter = max(_DELIMITERS, key=header.count)
    objects = sum(line.lstrip().startswith(b"{") for line in lines)
    if 2 * objects >= len(lines) or delimiter not in header:
        return Dump(path, wanted, "ndjson", head)
    return Dump(path, wanted, "csv", head, delimiter)


def _next_line(file: BinaryIO, position: int) -> int:
    """The first line start at or after a position."""
    if position == 0:
        return 0
    file.seek(position - 1)
    file.readline()
    return file.tell()


def _byte_ranges(path: Path) -> Iterator[Block]:
    size = path.stat().st_size
    for start in range(0, size, BLOCK_BYTES):
        yield Block(path, start, min(start + BLOCK_BYTES, size))


def _line_blocks(path: Path, file: io.BufferedIOBase) -> Iterator[Block]:
    start = 0
    while data := file.read(BLOCK_BYTES):
        if not data.endswith(b"\n"):
            data += file.readline()
        yield Block(path, start, data=data)
        start += len(data)


def _csv_reader(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(_LONGEST_FIELD)
    return csv.reader(lines, delimiter=delimiter)


def _csv_blocks(path: Path, file: Any, delimiter: str, columns: Sequence[str]) -> Iterator[Block]:
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = _csv_reader(text, delimiter)
        header: list[str] = next(reader, [])
        found = _csv_records(reader, header, columns)
        while records := list(itertools.islice(found, _BLOCK_RECORDS)):
            yield Block(path, records=records)


def _csv_records(reader, header: list[str], columns: Sequence[str]) -> Iterator[Record]:
    wanted = [(index, name) for index, name in enumerate(header) if name in columns]
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, {MALFORMED: f"malformed CSV: {error}"}
            continue
        if len(values) == len(header):
            record = {name: values[index] for index, name in wanted}
            yield line, record if _is_unicode(record.values()) else {MALFORMED: NOT_UTF8}
        elif values:
            yield line, {MALFORMED: f"{len(values)} fields where the header has {len(header)}"}


def _is_unicode(values: Iterable[str]) -> bool:
    """Whether the bytes were UTF-8: others were decoded to lone surrogates."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[tuple[Block, int]]:
    """Whole numbers and dates come as text, as in CSV."""
    table = pl.scan_parquet(path, glob=False)
    wanted = [name for name in table.collect_schema() if name in columns]
    textual = {cs.integer() | cs.temporal(): pl.String}
    table = table.select(wanted).cast(textual)  # type: ignore[arg-type]
    height = table.select(pl.len()).collect().item()
    for first in range(0, height, _BLOCK_RECORDS):
        rows = table.slice(first, _BLOCK_RECORDS).collect().rows(named=True)
        done = path.stat().st_size * (first + len(rows)) // height
        yield Block(path, records=list(enumerate(rows, start=first + 1))), done


@contextlib.contextmanager
def _unpacked(path: Path, wanted: str) -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """Yields the unpacked stream, and the raw file, which is the same where nothing is packed."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        file: Any = raw
        with _whole(path):
            while True:
                head = file.peek(512)
                if head.startswith(b"\x1f\x8b"):
                    file = stack.enter_context(gzip.GzipFile(fileobj=file))
                elif head.startswith(b"PK\x03\x04"):
                    file = stack.enter_context(_zip_member(path, file, wanted))
                elif head[257:262] == b"ustar":
                    file = stack.enter_context(_tar_member(path, file, wanted))
                else:
                    break
        yield file, raw


# What the readers of packed files and of Parquet raise where the bytes are not what they should be.
_DAMAGE = (
    EOFError,
    OSError,  # also of gzip and bz2
    UnicodeDecodeError,  # of a name in a zip
    NotImplementedError,  # of a zip version
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    pl.exceptions.PolarsError,
)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into one line."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from None


def _zip_member(path: Path, file: Any, wanted: str) -> Any:
    archive = zipfile.ZipFile(file)
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    chosen = [name for name in names if _is_wanted(name, wanted)]
    chosen = chosen or [name for name in names if _is_packed(name)]
    if not chosen:
        raise _no_member(path, wanted, names)
    try:
        return archive.open(chosen[0])
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise UserError(f"{path}: {error}") from None


def _tar_member(path: Path, file: Any, wanted: str) -> Any:
    archive = tarfile.open(fileobj=file, mode="r|")  # noqa: SIM115  its stream is read on
    names = []
    for member in archive:
        names.append(member.name)
        if member.isfile() and _is_wanted(member.name, wanted):
            found = archive.extractfile(member)
            assert found is not None  # a regular file
            return found
    raise _no_member(path, wanted, names)


def _is_wanted(name: str, wanted: str) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    base_unpacked = base.removesuffix(".gz")
    return wanted in base and base_unpacked.endswith(_DATA_SUFFIXES) and not base.startswith(".")


def _is_packed(name: str) -> bool:
    return name.endswith(_PACKED_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def _no_member(path: Path, wanted: str, names: list[str]) -> UserError:
    return UserError(f"{path} holds no {wanted} file (*{wanted}*.json, .csv): {', '.join(names)}")
