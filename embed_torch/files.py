"""Files that are whole or absent: atomic writes, folders in use, hashes.

This file and `cli.py` stand, byte for byte, in both packages; `tests/test_packages.py` keeps the
copies equal.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from .cli import UserError  # relative, so that both copies are one text

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside `path`, and renames it onto `path` once it is written and on disk."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path` to fill, and renames it to `path` on success.

    On failure nothing is left behind; what a killed process left is removed by the next one. The
    rename refuses a `path` that has come to hold files.
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
    """Locks a folder while its process lives; raises BlockingIOError where another one does."""
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


def read_json(path: Path, made_by: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON object that has at least `keys`; the command `made_by` writes such files.

    Raises:
      UserError: the file is absent, is not JSON, or lacks a key; the message names both.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; {made_by} writes it")
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is not valid JSON; remove it and run {made_by} again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; run {made_by} again")
    for key in keys:
        if key not in value:
            raise UserError(f"{path} lacks {key!r}: it is not what {made_by} writes")
    return value


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds `folder` against a second writer; the system lets go when the process dies.

    A folder that was made for this and is still empty is removed at the end.

    Raises:
      UserError: another process holds it; the message names the holder.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder} is in use by {file.read() or 'another process'}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if made and [path.name for path in folder.iterdir()] == [".lock"]:
                shutil.rmtree(folder)


def file_sha256(path: Path, show_progress: bool = False) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
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
