"""Writes an embedding store (docs/formats.md) that a kill at any moment leaves resumable.

Embeddings go into memory maps; once they are on disk, the journal says so. A store counts as
complete only when its manifest is there, and the manifest appears by one rename after everything
else is on disk.
"""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from embed_torch.cli import UserError
from embed_torch.files import read_json, write_json
from embed_torch.journal import Journal
from embed_torch.pooling import POOLINGS

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TRUNCATED = "truncated.parquet"
CATEGORIES = "categories"  # the array of the category names, beside those named by pooling
_TOKENS, _UNCUT, _HASHES = "tokens", "tokens_uncut", "text_hashes"
_JOURNAL = "journal.ndjson"
_SCRATCH = (_JOURNAL, f".{_JOURNAL}.partial", f"{_UNCUT}.npy")  # gone once a store is complete
# What a store may hold, finished or interrupted.
FILES = {".lock", MANIFEST, f".{MANIFEST}.partial", TRUNCATED, *_SCRATCH}
FILES |= {f"{name}.npy" for name in (*POOLINGS, CATEGORIES, _TOKENS, _HASHES)}

# Of the manifest's values, what this package reads: an encoder's settings check themselves.
_NOUNS = {str: "a text", int: "an integer", list: "a list of texts"}
_KINDS: dict[str, type] = {"encoder": str, "encoder_folder": str, "encoder_revision": str}
_KINDS |= {"poolings": list, "default_pooling": str, "rows": int, "dim": int, "dtype": str}


class StoreWriter:
    """A store in progress, and its `journal`."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        poolings: tuple[str, ...],
        rows: int,
        categories: int,
        dim: int,
        dtype: str,
    ):
        """Begins a store, or resumes the one that `folder` holds.

        Args:
          folder: exists, and no other process writes it.
          settings: what the store is made with: the first line of its journal.
          poolings: names of the arrays [rows, dim].
          rows: reviews.
          categories: category names.
          dim: embedding width.
          dtype: of the embeddings.

        Raises:
          UserError: the folder holds the beginning of another store, or the disk is too small.
        """
        self._folder = folder
        kinds: dict[str, tuple[tuple[int, ...], str]] = {
            **dict.fromkeys(poolings, ((rows, dim), dtype)),
            **dict.fromkeys((_TOKENS, _UNCUT), ((rows,), "int32")),
            _HASHES: ((rows, 2), "uint64"),
        }
        if categories:
            kinds[CATEGORIES] = ((categories, dim), dtype)
        begun = (folder / _JOURNAL).exists()
        if not begun:
            _allocate(folder, kinds)
        self.journal = Journal(folder / _JOURNAL, settings)
        self._arrays = {
            name: _open(folder / f"{name}.npy", *kind, mode="r+") for name, kind in kinds.items()
        }
        self._written: defaultdict[int, list[str]] = defaultdict(list)  # not yet in the journal

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each input as embedded, int32 [rows]."""
        return self._arrays[_TOKENS]

    @property
    def tokens_uncut(self) -> np.ndarray:
        """The same before truncation."""
        return self._arrays[_UNCUT]

    @property
    def text_hashes(self) -> np.ndarray:
        """128 bits of the SHA-256 of each review's text, uint64 [rows, 2]."""
        return self._arrays[_HASHES]

    def array(self, name: str) -> np.ndarray:
        """The embeddings of one pooling."""
        return self._arrays[name]

    def write(self, window: int, batch: str, rows: list[int], found: dict[str, np.ndarray]) -> None:
        """Stores float32 embeddings [b, dim] by array name at `rows`.

        Raises:
          UserError: a value is NaN, infinite, or too large for the store's dtype.
        """
        for name, embeddings in found.items():
            array = self._arrays[name]
            what = "category" if name == CATEGORIES else f"{name} embedding of review"
            array[rows] = as_stored(embeddings, str(array.dtype), rows, what)
        self._written[window].append(batch)

    def flush(self) -> None:
        """Puts on disk what is written, and then says so in the journal."""
        if self._written:
            self._sync()
        while self._written:
            window, batches = next(iter(self._written.items()))
            self.journal.note_done(window, batches)
            del self._written[window]

    def discard_if_empty(self) -> None:
        """Removes a store with nothing done yet, so that it does not bar the next command."""
        if not self.journal.windows:
            for name in FILES - {".lock"}:
                (self._folder / name).unlink(missing_ok=True)

    def finish(self, manifest: Mapping[str, Any]) -> int:
        """Makes the store complete; returns how many reviews were cut."""
        cut = np.flatnonzero(self.tokens_uncut > self.tokens)
        columns = {"row": cut.astype(np.int32)}
        columns |= {"tokens_before": self.tokens_uncut[cut], "tokens_after": self.tokens[cut]}
        pl.DataFrame(columns).write_parquet(self._folder / TRUNCATED)
        self._sync()
        for path in self._folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        description = {"format_version": FORMAT_VERSION, **manifest, "truncated": cut.size}
        write_json(self._folder / MANIFEST, description)
        remove_scratch(self._folder)
        return cut.size

    def _sync(self) -> None:
        for array in self._arrays.values():
            array.flush()


def as_stored(embeddings: np.ndarray, dtype: str, rows: Sequence[int], what: str) -> np.ndarray:
    """Rounds embeddings [b, e], `what` of which `rows` for a message, to a store's dtype.

    Raises:
      UserError: a value is NaN, infinite, or too large.
    """
    with np.errstate(over="ignore"):
        stored = embeddings.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if bad.size:
        value = embeddings[bad[0]][~np.isfinite(stored[bad[0]])][0]
        raise UserError(
            f"the {what} {rows[bad[0]]} holds {value}, which {dtype} cannot store "
            "(--store_dtype=float32, or --dtype=float32)"
        )
    return stored


def is_ours(folder: Path) -> bool:
    """Whether a folder may be filled: new, empty, or with a store, finished or interrupted."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return not names or (".lock" in names and names <= FILES)


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a store, finished or interrupted, and is no model's."""
    has = [(folder / name).is_file() for name in (MANIFEST, _JOURNAL)]
    return any(has) and not (folder / "config.json").exists()


def read_manifest(folder: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """What a finished store says of itself, with at least `keys`.

    Raises:
      UserError: there is none, or it is malformed or of another version.
    """
    path = folder / MANIFEST
    manifest = read_json(path, "python -m embed_torch", ["format_version", "rows", *keys])
    if manifest["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {manifest['format_version']!r}, but this program reads "
            f"{FORMAT_VERSION}: embed again into a new folder"
        )
    for key, kind in _KINDS.items():
        value = manifest.get(key, kind())
        names = value if kind is list and type(value) is list else []
        if type(value) is not kind or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key} is {value!r}, not {_NOUNS[kind]}")
    return manifest


def is_whole(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a store with this manifest has the arrays that it should have."""
    kind = ((manifest["rows"], manifest["dim"]), manifest["dtype"])
    try:
        for name in manifest["poolings"]:
            _open(folder / f"{name}.npy", *kind)
        _open(folder / f"{_TOKENS}.npy", (manifest["rows"],), "int32")
        _open(folder / f"{_HASHES}.npy", (manifest["rows"], 2), "uint64")
    except UserError:
        return False
    return (folder / TRUNCATED).is_file()


def remove_scratch(folder: Path) -> None:
    """Removes what a complete store does not need."""
    for name in _SCRATCH:
        (folder / name).unlink(missing_ok=True)


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """128 bits of the SHA-256 of each text, uint64 [texts, 2]."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def bytes_needed(poolings: int, rows: int, categories: int, dim: int, dtype: str) -> int:
    """Size of a store on disk."""
    embeddings = (poolings * rows + categories) * dim * np.dtype(dtype).itemsize
    return embeddings + 24 * rows


def _allocate(folder: Path, kinds: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Takes the whole space at once: a full disk later would kill the process without a word."""
    for name in kinds:
        (folder / f"{name}.npy").unlink(missing_ok=True)
    sizes = {
        name: int(np.prod(shape)) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in kinds.items()
    }
    needed, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free "
            "(fewer --poolings, or --store_dtype=float16)"
        )
    try:
        for name, (shape, dtype) in kinds.items():
            path = folder / f"{name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        for name in kinds:
            (folder / f"{name}.npy").unlink(missing_ok=True)
        raise UserError(f"{folder} cannot take {needed / 1e9:.2f} GB: {error}") from None


def _open(
    path: Path, shape: tuple[int, ...], dtype: str, mode: Literal["r", "r+"] = "r"
) -> np.memmap:
    array: np.memmap | None
    try:
        # Opened for writing, a file that is too short would be filled up with zeros.
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        array = None
    if array is None or array.shape != shape or array.dtype != np.dtype(dtype):
        raise UserError(f"{path} is missing or damaged: remove {path.parent} and embed again")
    return array if mode == "r" else np.lib.format.open_memmap(path, mode=mode)
