"""Reads and writes files that are either whole or absent: the contract of every output.

A command claims its output folder (`claim`), fills it atomically (`replacing`, `new_folder`) and
writes a record of it: one JSON object, of a type derived from `Record`. Other commands read the
record back; its checksum shows whether anything in it has changed since.

This file and `cli.py` are byte for byte the same in both packages; `tests/test_packages.py` keeps
the copies equal.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import msgspec

from .cli import ProgressBar, UserError  # relative, so that both copies are one text

_CHUNK_BYTES = 1 << 20
_JSON_BYTES = 1 << 28  # no command writes a longer JSON file


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """The contents of a JSON file that a command writes: the base class of each type of record.

    `read_record` accepts a record only as it was written: of the current format version, with
    values of the declared types, and unchanged (`sha256` covers all other fields). Fields that
    are newer than the format have defaults.
    """

    made_by: ClassVar[str]  # the command, as it is typed
    version: ClassVar[int]  # of the format; 0 if older files state none
    format_version: int = 0
    sha256: str | None = None


RecordT = TypeVar("RecordT", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Writes a record as indented JSON, atomically."""
    write_json(path, record_values(record))


def record_values(record: Record) -> dict[str, Any]:
    """A record as a JSON object, with its version and checksum."""
    values = msgspec.to_builtins(record) | {"format_version": record.version}
    return values | {"sha256": _checksum(values)}


def read_record(path: Path, kind: type[RecordT], remedy: str = "") -> RecordT:
    """Reads a record.

    Args:
      path: the file.
      kind: its type.
      remedy: what to type if it cannot be used; by default, to remove its folder and run the
        command that wrote it again.

    Raises:
      UserError: it is absent, damaged, changed since it was written, or of another version.
    """
    remedy = remedy or f"remove {path.parent} and run {kind.made_by} again"
    # The first version of some records did not say so: 0.
    keys = ["format_version"] if kind.version else []
    values = read_json(path, kind.made_by, keys, remedy)
    if (version := values.get("format_version", 0)) != kind.version:
        raise UserError(
            f"{path} has format version {version!r}, this program reads {kind.version}: {remedy}"
        )
    if values.get("sha256") not in (None, _checksum(values)):
        raise UserError(f"{path} was changed after it was written (its sha256 differs): {remedy}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def _checksum(values: Mapping[str, Any]) -> str:
    """The SHA-256 over a JSON object without its checksum, whatever the order of its keys."""
    others = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def claim(output: Path, *records: str) -> bool:
    """Returns whether an output folder holds output of this command; if not, it may be filled.

    Args:
      output: the folder, which need not exist.
      records: names of the files that show that the command has written, or begun, its output.

    Raises:
      UserError: it is not a folder, or holds other files.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file, not a folder: choose another --output")
    if any((output / name).exists() for name in records):
        return True
    if any(output.glob("[!.]*")):
        raise UserError(f"--output={output} holds other files: choose another --output")
    return False


def refuse_other_settings(
    output: Path, before: Mapping[str, Any], now: Mapping[str, Any], may_differ: Iterable[str] = ()
) -> None:
    """Refuses to write into a folder whose content was made with other settings.

    Args:
      output: the folder.
      before: the settings that its content was made with.
      now: the settings of this command.
      may_differ: names of settings that the content does not depend on.

    Raises:
      UserError: settings differ; the message names them.
    """
    names = [name for name in {**now, **before} if name not in set(may_differ)]
    changed = [name for name in names if before.get(name) != now.get(name)]
    if changed:
        raise UserError(
            f"{output} was made with other {', '.join(changed)}: choose another --output, or "
            "remove it"
        )


def say_complete(output: Path) -> None:
    """Prints that there is nothing to do."""
    print(f"{output} is already complete: nothing to do")


def require_file(path: Path, remedy: str, sha256: str | None = None) -> Path:
    """Returns `path` if it is a regular file: reading anything else might fail, or never end.

    Args:
      path: the file.
      remedy: how the message ends.
      sha256: the hash that its bytes must have; None if none was recorded.

    Raises:
      UserError: it is absent or not a regular file, or its bytes have another hash.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path} {reason}: {remedy}") from None
    if not stat.S_ISREG(mode):
        what = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
        raise UserError(f"{path} {what}: {remedy}")
    if sha256 is not None and file_sha256(path) != sha256:
        raise UserError(f"{path} was changed after it was written (its sha256 differs): {remedy}")
    return path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes a system error in the block, such as a full disk, name `path` if it names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
        raise
    except Exception as error:
        # Polars and TensorStore raise errors of their own, with the system's number in their text.
        number = re.search(r"os.error\D{0,8}(\d+)", str(error))
        if isinstance(error, UserError) or number is None:
            raise
        reason = os.strerror(int(number[1]))
        raise UserError(f"{path} cannot be written: {reason}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside `path`, and renames it onto `path` once it is written and on disk."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a killed process, or a link that somebody planted
    with naming(path), partial.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path` to fill, and renames it to `path` on success.

    On failure nothing is left behind; what a killed process left, the next process removes. The
    rename fails if `path` has come to hold files.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(OSError), _held(left_behind):
            shutil.rmtree(left_behind)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        with _held(partial):
            yield partial
            partial.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder while this process lives; raises BlockingIOError if another one holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_json(
    path: Path, made_by: str, keys: Iterable[str] = (), remedy: str = ""
) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      made_by: the command, or the program, that writes such files.
      keys: the keys that the object must have.
      remedy: what to type if it cannot be read; by default, that command.

    Raises:
      UserError: it is absent, not a regular file or not a JSON object, or lacks a key.
    """
    remedy = remedy or f"remove it and run {made_by} again"
    if not path.exists():
        raise UserError(f"{path} does not exist; {made_by} writes it")
    if require_file(path, remedy).stat().st_size > _JSON_BYTES:
        raise UserError(f"{path} has over {_JSON_BYTES:,} bytes: {remedy}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON: {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: {remedy}")
    for key in keys:
        if key not in value:
            raise UserError(f"{path} lacks {key!r}: it is not what {made_by} writes")
    return value


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Locks `folder` against a second writer; the system unlocks it when the process dies.

    A folder that is created here and is still empty at the end is removed.

    Raises:
      UserError: another process has locked it; the message names that process.
    """
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(folder / ".lock", flags, 0o666), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder} is in use by {file.read() or 'another process'}") from None
        with naming(folder / ".lock"):
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if created and [path.name for path in folder.iterdir()] == [".lock"]:
                shutil.rmtree(folder)


def file_sha256(path: Path, show_progress: bool = False) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        ProgressBar(
            total=path.stat().st_size,
            desc=f"hashing {path.name}",
            unit="B",
            unit_scale=True,
            delay=5,
            disable=not show_progress,
        ) as bar,
    ):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def texts_sha256(texts: Iterable[str]) -> str:
    """The SHA-256 over length-prefixed UTF-8 texts in order (docs/formats.md)."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
