"""Copies what another store has already: embeddings of the same text by the same encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from embed_torch.cli import UserError
from embed_torch.files import file_sha256
from embed_torch.store import MANIFEST, TRUNCATED, StoreWriter, is_whole, read_manifest

# What of a store's settings its embeddings do not depend on: the weights have their own hash.
_MAY_DIFFER = (
    "encoder",
    "texts_sha256",
    "category_names_sha256",
    "poolings",
    "default_pooling",
)
_ROWS_AT_ONCE = 4096


def identity(folder: Path, settings: dict[str, Any]) -> str:
    """The hash by which a journal knows the store that is reused.

    Raises:
      UserError: it is not a complete store, or was made with other settings.
    """
    manifest = read_manifest(folder, ["poolings"])
    other = [
        name
        for name, value in settings.items()
        if name not in _MAY_DIFFER and manifest.get(name) != value
    ]
    other += sorted(set(settings["poolings"]) - set(manifest["poolings"]))
    if other:
        raise UserError(f"--reuse={folder} was made with other {', '.join(other)}")
    if not is_whole(folder, manifest):
        raise UserError(f"--reuse={folder} is damaged, or of an older version: embed it again")
    return file_sha256(folder / MANIFEST)


def look_up(folder: Path, text_hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `text_hashes` [n, 2] a store has, and where in it."""
    known = _as_scalars(np.load(folder / "text_hashes.npy", allow_pickle=False))
    wanted = _as_scalars(text_hashes)
    known, row_of = np.unique(known, return_index=True)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    (found,) = np.nonzero(known[place] == wanted)
    return found, row_of[place[found]]


def copy_rows(folder: Path, writer: StoreWriter, poolings: tuple[str, ...]) -> np.ndarray:
    """Copies the reviews that a store has; returns the rows that are left to embed."""
    found, source = look_up(folder, writer.text_hashes)
    for name in poolings:
        table = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for first in range(0, found.size, _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            writer.array(name)[found[part]] = table[source[part]]
    tokens = np.load(folder / "tokens.npy", allow_pickle=False)
    uncut = tokens.copy()
    truncated = pl.read_parquet(folder / TRUNCATED, glob=False)
    uncut[truncated["row"].to_numpy()] = truncated["tokens_before"].to_numpy()
    writer.tokens[found], writer.tokens_uncut[found] = tokens[source], uncut[source]
    return np.setdiff1d(np.arange(len(writer.tokens)), found)


def _as_scalars(hashes: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] as sortable records [n]."""
    return np.ascontiguousarray(hashes).view([("first", "uint64"), ("second", "uint64")])[:, 0]
