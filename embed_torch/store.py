"""Writes an embedding store (docs/formats.md): memory maps first, the manifest last.

A store counts as complete only when its manifest is there, and the manifest appears by one rename
after everything else is on disk.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from embed_torch.cli import UserError
from embed_torch.files import write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# What a store may hold besides its poolings, finished or interrupted.
FILES = {".lock", MANIFEST, f".{MANIFEST}.partial", "categories.npy", "tokens.npy"}
FILES |= {"truncated.parquet"}


class StoreWriter:
    """An open store of [rows, dim] arrays, one per pooling."""

    def __init__(self, folder: Path, poolings: tuple[str, ...], rows: int, dim: int, dtype: str):
        self._folder = folder
        self._arrays = {
            pooling: np.lib.format.open_memmap(
                folder / f"{pooling}.npy", mode="w+", dtype=dtype, shape=(rows, dim)
            )
            for pooling in poolings
        }

    def write(self, pooling: str, rows: list[int], embeddings: np.ndarray) -> None:
        """Stores float32 `embeddings` [b, dim] at `rows`.

        Raises:
          UserError: a value is NaN, infinite, or too large for the store's dtype.
        """
        array = self._arrays[pooling]
        with np.errstate(over="ignore"):
            stored = embeddings.astype(array.dtype)
        bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if bad.size:
            value = embeddings[bad[0]][~np.isfinite(stored[bad[0]])][0]
            raise UserError(
                f"the {pooling} embedding of review {rows[bad[0]]} holds {value}, which "
                f"{array.dtype} cannot store (--store_dtype=float32, or --dtype=float32)"
            )
        array[rows] = stored

    def finish(
        self,
        *,
        categories: np.ndarray,
        tokens: np.ndarray,
        truncated: pl.DataFrame,
        manifest: dict[str, Any],
    ) -> None:
        """Writes the small files, puts everything on disk, and last the manifest."""
        for array in self._arrays.values():
            array.flush()
        if categories.size:
            dtype = next(iter(self._arrays.values())).dtype
            np.save(self._folder / "categories.npy", categories.astype(dtype))
        np.save(self._folder / "tokens.npy", tokens)
        truncated.write_parquet(self._folder / "truncated.parquet")
        for path in self._folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(self._folder / MANIFEST, {"format_version": FORMAT_VERSION, **manifest})
