"""Writes an embedding store (docs/formats.md) that a kill at any moment leaves resumable.

Embeddings go into memory maps; once they are on disk, the journal notes it. A store counts as
complete only when its manifest is there, and the manifest appears by one rename after everything
else is on disk.
"""

import hashlib
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from embed_torch.cli import UserError
from embed_torch.files import file_sha256, replacing, require_file
from embed_torch.journal import Journal
from embed_torch.manifest import (
    CATEGORIES,
    MANIFEST,
    TEXT_HASHES,
    TOKENS,
    TRUNCATED,
    Manifest,
    open_array,
    read_array,
    remedy_for,
    write_manifest,
)

_UNCUT = "tokens_uncut"
_JOURNAL = "journal.ndjson"
_SCRATCH = (_JOURNAL, f".{_JOURNAL}.partial", f"{_UNCUT}.npy")  # deleted once a store is complete
# At least one of these exists as soon as any array does, and so marks a folder as a store.
RECORDS = (MANIFEST, _JOURNAL, f"{TEXT_HASHES}.npy")

_Kinds = Mapping[str, tuple[str, tuple[int, ...]]]


def kinds_of(manifest: Manifest, categories: int) -> _Kinds:
    """Type and shape of every array of a store in progress, the one in `RECORDS` first."""
    kinds = {name: manifest.kind_of(name) for name in (TEXT_HASHES, *manifest.poolings, TOKENS)}
    kinds[_UNCUT] = kinds[TOKENS]
    if categories:
        kinds[CATEGORIES] = (manifest.dtype, (categories, manifest.dim))
    return kinds


def bytes_needed(kinds: _Kinds) -> int:
    """Bytes of arrays on disk."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in kinds.values())


class StoreWriter:
    """Writes a store, and its `journal`."""

    def __init__(self, folder: Path, manifest: Manifest, categories: int, plan: Mapping[str, Any]):
        """Begins a store, or resumes the one that `folder` holds.

        Args:
          folder: an existing folder, which no other process writes.
          manifest: what the store will be.
          categories: the number of category names.
          plan: what the first line of the journal holds besides the settings: how work is divided.

        Raises:
          UserError: the folder holds the beginning of another store, or the disk is too small.
        """
        self._folder = folder
        self._manifest = manifest
        kinds = kinds_of(manifest, categories)
        paths = {name: folder / f"{name}.npy" for name in kinds}
        for path in (folder / _JOURNAL, *paths.values()):
            if path.is_symlink():
                raise UserError(f"{path} is a symbolic link: {remedy_for(folder)}")
        if not (folder / _JOURNAL).exists():
            _allocate(folder, kinds)
        self.journal = Journal(folder / _JOURNAL, {**manifest.settings, **plan})
        self._arrays: dict[str, np.memmap] = {}
        for name, path in paths.items():
            # Checked first: opening a file that is too short for writing would pad it with zeros.
            open_array(path, *kinds[name])
            self._arrays[name] = np.lib.format.open_memmap(path, mode="r+")
        self._written: defaultdict[int, list[str]] = defaultdict(list)  # not yet in the journal

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each input as embedded, int32 [rows]."""
        return self._arrays[TOKENS]

    @property
    def tokens_uncut(self) -> np.ndarray:
        """Tokens of each input before truncation, int32 [rows]."""
        return self._arrays[_UNCUT]

    @property
    def text_hashes(self) -> np.ndarray:
        """128 bits of the SHA-256 of each review's text, uint64 [rows, 2]."""
        return self._arrays[TEXT_HASHES]

    def array(self, name: str) -> np.ndarray:
        """The embeddings of one pooling."""
        return self._arrays[name]

    def write(
        self, window: int, batch: str, rows: list[int], embeddings: dict[str, np.ndarray]
    ) -> None:
        """Stores float32 embeddings [b, dim] by array name at `rows`.

        Raises:
          UserError: a value is NaN, infinite, or too large for the store's dtype.
        """
        for name, values in embeddings.items():
            array = self._arrays[name]
            what = "category" if name == CATEGORIES else f"{name} embedding of review"
            array[rows] = as_stored(values, str(array.dtype), rows, what)
        self._written[window].append(batch)

    def flush(self) -> None:
        """Puts what is written on disk, and then notes it in the journal."""
        if self._written:
            self._sync()
        while self._written:
            window, batches = next(iter(self._written.items()))
            self.journal.note_done(window, batches)
            del self._written[window]

    def discard_if_empty(self) -> None:
        """Deletes a store in which nothing is done yet, so that it blocks no other command."""
        if not self.journal.windows:
            for name in (*_SCRATCH, *(f"{array}.npy" for array in self._arrays)):
                (self._folder / name).unlink(missing_ok=True)

    def finish(self, reused: int) -> int:
        """Completes the store, with `reused` copied reviews; returns how many were truncated."""
        cut = np.flatnonzero(self.tokens_uncut > self.tokens)
        columns = {"row": cut.astype(np.int32)}
        columns |= {"tokens_before": self.tokens_uncut[cut], "tokens_after": self.tokens[cut]}
        with replacing(self._folder / TRUNCATED) as file:
            pl.DataFrame(columns).write_parquet(file)
        self._sync()
        for name in self._arrays:
            with (self._folder / f"{name}.npy").open("rb") as file:
                os.fsync(file.fileno())
        counted = msgspec.structs.replace(self._manifest, reused=reused, truncated=cut.size)
        write_manifest(self._folder, counted)
        remove_scratch(self._folder)
        return cut.size

    def _sync(self) -> None:
        for array in self._arrays.values():
            array.flush()


def as_stored(embeddings: np.ndarray, dtype: str, rows: Sequence[int], what: str) -> np.ndarray:
    """Rounds embeddings [b, e] to a store's dtype; a message names `what` and one of `rows`.

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
            "(give --store_dtype=float32, or --dtype=float32)"
        )
    return stored


def is_begun(folder: Path) -> bool:
    """Whether a folder holds a store, finished or interrupted, and not a model."""
    records = [(folder / name).is_file() for name in (MANIFEST, _JOURNAL)]
    return any(records) and not (folder / "config.json").exists()


def check(folder: Path, manifest: Manifest) -> None:
    """Reads and verifies every part of a complete store.

    Raises:
      UserError: a part is absent, or not as it was written.
    """
    names = [*manifest.poolings, TOKENS, TEXT_HASHES]
    if manifest.category_names_sha256:
        names.append(CATEGORIES)
    for name in names:
        read_array(folder, manifest, name)
    read_truncated(folder, manifest)


def read_truncated(folder: Path, manifest: Manifest) -> pl.DataFrame:
    """Reads `row, tokens_before, tokens_after` of the reviews that were truncated.

    Raises:
      UserError: the file is absent, or not as it was written.
    """
    path = require_file(folder / TRUNCATED, remedy_for(folder))
    if manifest.hashes and [file_sha256(path)] != manifest.hashes.get(TRUNCATED):
        raise UserError(f"{path} is not as it was written: {remedy_for(folder)}")
    try:
        table = pl.read_parquet(path, glob=False)
        whole = table["row"].is_between(0, manifest.rows - 1).all()
    except (pl.exceptions.PolarsError, OSError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: {remedy_for(folder)}")
    return table


def remove_scratch(folder: Path) -> None:
    """Removes what a complete store does not need."""
    for name in _SCRATCH:
        (folder / name).unlink(missing_ok=True)


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """128 bits of the SHA-256 of each text, uint64 [texts, 2]."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def _allocate(folder: Path, kinds: _Kinds) -> None:
    """Reserves all disk space: a disk that filled up later would kill the process silently."""
    paths = [folder / f"{name}.npy" for name in kinds]

    def remove() -> None:
        for path in reversed(paths):  # the one in `RECORDS` last
            path.unlink(missing_ok=True)

    remove()
    needed, free = bytes_needed(kinds), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free "
            "(give fewer --poolings, or --store_dtype=float16)"
        )
    try:
        for path, (dtype, shape) in zip(paths, kinds.values(), strict=True):
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            # macOS has no such call: there, a disk that fills up during the run kills the process.
            if hasattr(os, "posix_fallocate"):
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        remove()
        raise UserError(f"{folder} cannot take {needed / 1e9:.2f} GB: {error}") from None
