"""Opens files as people download them: plain, or packed in gzip, zip or tar, also nested.

In: a path. Out: the unpacked stream of the member that is wanted. Nothing is unpacked onto the
disk, and memory stays bounded for any bytes: no read is longer than LONGEST_LINE, and a file that
unpacks to more than text can is refused.
"""

import contextlib
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from sasnet_jax.cli import UserError

LONGEST_LINE = 64 << 20  # bytes of a record; also of a zip's directory
ON_DISK = "give a file on disk, as --reviews and --businesses are read twice"
_LONGEST_TAR_HEADER = 16 << 10  # in longer ones Python before 3.11.10 and 3.12.6 searches for hours
TOO_LONG = f"line longer than {LONGEST_LINE >> 20} MB"
_MOST_LAYERS = 4  # Yelp's zip of a tar, with a gzip on either side
_ALWAYS_ALLOWED = 1 << 30  # bytes that any file may unpack to
_HIGHEST_RATIO = 100  # beyond that; texts pack to a third or a tenth, generated ones to a thirtieth
_SKIPPED_BYTES = 1 << 20  # unpacked at once to skip them
_DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_PACKED_SUFFIXES = (".gz", ".tgz", ".tar", ".zip")


def shown(text: str, length: int = 60) -> str:
    """A string from data, made fit for a message: short, and without control characters."""
    cut = text if len(text) <= length else text[:length] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def most_unpacked(path: Path) -> int:
    """Bytes that a packed file may unpack to; more than that is not text."""
    return max(_ALWAYS_ALLOWED, _HIGHEST_RATIO * path.stat().st_size)


def unpacks_too_far(path: Path, size: int | None = None) -> UserError:
    """The error for a file that unpacks to `size` bytes, or to more than it may."""
    known = f"more than {most_unpacked(path):,}" if size is None else f"{size:,}"
    return UserError(
        f"{path} has {path.stat().st_size:,} bytes and unpacks to {known}, which no text does: if "
        "that is intended, unpack it (Parquet: write it as NDJSON) and give that file"
    )


class _Stream(io.BufferedIOBase):
    """A file whose reads are bounded; where it is unpacked, also in their sum.

    Attributes:
      size: bytes that it has at most.
      longest_read: bytes that may be asked for at once.
    """

    def __init__(self, file: Any, path: Path, size: int, unpacked: bool = True):
        self._file, self._path, self._unpacked, self.size = file, path, unpacked, size
        self.longest_read = LONGEST_LINE

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def peek(self, size: int) -> bytes:
        return self._file.peek(size)

    def read(self, size: int | None = -1) -> bytes:
        most = self.longest_read + 1
        data = self._checked(self._file.read(most if size is None or size < 0 else min(size, most)))
        if len(data) == most:
            raise EOFError(f"a header of more than {self.longest_read:,} bytes")
        return data

    def read1(self, size: int = -1) -> bytes:
        return self._checked(self._file.read1(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._checked(self._file.readline(size))

    def _checked(self, data: bytes) -> bytes:
        if self._unpacked and self._file.tell() > self.size:
            raise unpacks_too_far(self._path)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self._unpacked:
            return self._file.seek(offset, whence)
        # What is unpacked on the way counts.
        target = offset + (self.tell() if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END:
            while self.read1(_SKIPPED_BYTES):
                pass
            target = offset + self.tell()
        if target < self.tell():
            self._file.seek(0)
        while (left := target - self.tell()) > 0 and self.read1(min(left, _SKIPPED_BYTES)):
            pass
        return self.tell()


@contextlib.contextmanager
def unpacked(path: Path, wanted: str) -> Iterator[tuple[Any, io.BufferedReader]]:
    """Yields the unpacked stream, and the raw file, which is the same if nothing is packed.

    Args:
      path: a regular file.
      wanted: what the file in an archive is called: "review" or "business".
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        file: Any = raw
        with whole(path):
            for layer in range(_MOST_LAYERS + 1):
                opened = _unpack(file, path, wanted)
                if opened is None:
                    break
                if layer == _MOST_LAYERS:
                    raise UserError(
                        f"{path} is packed more than {_MOST_LAYERS} times, one inside the other: "
                        "unpack it and give the file inside"
                    )
                file = stack.enter_context(opened)
        yield file, raw


def _unpack(file: Any, path: Path, wanted: str) -> _Stream | None:
    """What one layer of packing holds; None where there is none."""
    most_bytes = most_unpacked(path)
    head = file.peek(512)
    if head.startswith(b"\x1f\x8b"):
        return _Stream(gzip.GzipFile(fileobj=file, mode="rb"), path, most_bytes)
    bounded = file if isinstance(file, _Stream) else _Stream(file, path, most_bytes, unpacked=False)
    if head.startswith(b"PK\x03\x04"):
        member, size = _zip_member(path, bounded, wanted)
    elif head[257:262] == b"ustar":
        member, size = _tar_member(path, bounded, wanted)
    else:
        return None
    if size > most_bytes:
        raise unpacks_too_far(path, size)
    return _Stream(member, path, size)


# What the readers of packed files and of Parquet raise on damaged bytes.
_DAMAGE = (
    EOFError,
    OSError,  # also of gzip
    ValueError,  # also of a name in a zip that is not Unicode
    RuntimeError,  # of a zip version, and of endless headers
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into one line."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is truncated or damaged: {shown(str(error), 200)}") from None


def _zip_member(path: Path, file: Any, wanted: str) -> tuple[Any, int]:
    archive = zipfile.ZipFile(file)
    named = ((member.filename, member) for member in archive.infolist())
    chosen = _choose_member(path, (pair for pair in named if not pair[0].endswith("/")), wanted)
    if chosen.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path} is packed by an unusual method: unpack it and give the file")
    try:
        return archive.open(chosen), chosen.file_size
    except RuntimeError as error:  # encrypted
        raise UserError(f"{path}: {shown(str(error), 200)}") from None


def _tar_member(path: Path, file: Any, wanted: str) -> tuple[Any, int]:
    file.longest_read = _LONGEST_TAR_HEADER
    archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  its stream is read on

    def files() -> Iterator[tuple[str, tarfile.TarInfo]]:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps each one it has read
            if member.isfile():
                yield member.name, member

    chosen = _choose_member(path, files(), wanted)
    file.longest_read = LONGEST_LINE
    return archive.extractfile(chosen), chosen.size


def _choose_member(path: Path, members: Iterable[tuple[str, Any]], wanted: str) -> Any:
    """The first member with the wanted name, or else the first that is itself packed."""
    packed: Any = None
    names: list[str] = []
    for name, member in members:
        base = name.rsplit("/", 1)[-1].lower()
        if base.startswith("."):
            continue
        if wanted in base and base.removesuffix(".gz").endswith(_DATA_SUFFIXES):
            return member
        if packed is None and base.endswith(_PACKED_SUFFIXES):
            packed = member
        if len(names) <= 10:
            names.append(shown(name))
    if packed is None:
        listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(f"{path} holds no {wanted} file (*{wanted}*.json, .csv): {listed}")
    return packed
