"""Reads embedding stores (docs/formats.md) and fits their z-score (paper section 2.2)."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.files import texts_sha256
from sasnet_jax.manifest import (
    CATEGORIES,
    Manifest,
    read_array,
    read_manifest,
    remedy_for,
)

FitOn = Literal["train", "all"]
CHUNK = 4096  # rows read at a time
_SMALLEST_DEVIATION = 1e-6  # a dimension that varies less is left unscaled


class ZScore(NamedTuple):
    """Per-dimension standardization (x - mean) / scale."""

    mean: Float32[np.ndarray, "e"]
    scale: Float32[np.ndarray, "e"]

    def __call__(self, table: Float[np.ndarray, "n e"]) -> Float32[np.ndarray, "n e"]:
        """Standardizes rows."""
        return (table - self.mean) / self.scale


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """One pooling of an embedding store, row i = review i."""

    table: Float[np.ndarray, "reviews e"]  # a read-only memory map
    pooling: str
    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        """The store's folder name."""
        return self.folder.resolve().name

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers in the table."""
        settings = self.manifest.settings
        settings.pop("category_names_sha256", None)
        return settings | {"reused": self.manifest.reused, "pooling": self.pooling}

    def blocks(self) -> Iterator[Float[np.ndarray, "n e"]]:
        """The table from its first row to its last, a few thousand rows at a time."""
        return (self.table[first : first + CHUNK] for first in range(0, len(self.table), CHUNK))

    def category_embeddings(self, categories: list[str]) -> Float[np.ndarray, "categories e"]:
        """The encoder's embeddings of the names in `categories.parquet`, all of them in its order.

        Raises:
          UserError: the store has not embedded these names.
        """
        path = self.folder / "categories.npy"
        if not path.is_file():
            raise UserError(
                f"store {self.folder} has no categories.npy, because its corpus had no categories: "
                "prepare the corpus with --businesses, and embed it again"
            )
        embeddings = read_array(self.folder, self.manifest, CATEGORIES)
        named = self.manifest.category_names_sha256 or texts_sha256(categories)
        if len(embeddings) != len(categories) or named != texts_sha256(categories):
            raise UserError(
                f"{path} does not embed the category names of the corpus: {remedy_for(self.folder)}"
            )
        return embeddings


def open_store(folder: Path, corpus: Corpus, pooling: str = "") -> Store:
    """Opens a complete store of `corpus`.

    Args:
      folder: written by `python -m embed_torch`.
      corpus: the corpus that it must embed.
      pooling: which array; empty for the store's default.

    Raises:
      UserError: it is incomplete, corrupt, of another version or corpus, or lacks the pooling.
    """
    manifest = _manifest_of(folder, corpus)
    pooling = pooling or manifest.default_pooling
    if pooling not in manifest.poolings:
        raise UserError(
            f"store {folder} has no pooling {pooling!r}, only {', '.join(manifest.poolings)}"
        )
    return Store(read_array(folder, manifest, pooling), pooling, manifest, folder)


def open_poolings(folder: Path, corpus: Corpus, wanted: tuple[str, ...]) -> list[Store]:
    """Opens those of the `wanted` poolings that a store has, or all, in the store's order.

    Raises:
      UserError: as `open_store`, or it has none of them.
    """
    has = _manifest_of(folder, corpus).poolings
    chosen = [name for name in has if not wanted or name in wanted]
    if not chosen:
        raise UserError(
            f"store {folder} has no pooling {' or '.join(wanted)}, only {', '.join(has)}"
        )
    return [open_store(folder, corpus, name) for name in chosen]


def _manifest_of(folder: Path, corpus: Corpus) -> Manifest:
    """The manifest of a complete store, which must be of `corpus`."""
    manifest = read_manifest(folder)
    if manifest.texts_sha256 != corpus.texts_sha256 or manifest.rows != corpus.user.size:
        raise UserError(
            f"store {folder} does not embed the texts of corpus {corpus.folder}: its texts_sha256 "
            f"is {manifest.texts_sha256[:12]}, that of the corpus is {corpus.texts_sha256[:12]}; "
            f"run {manifest.made_by} --corpus={corpus.folder}"
        )
    return manifest


def fit_zscore(table: Float[np.ndarray, "reviews e"], rows: Int32[np.ndarray, "n"]) -> ZScore:
    """Mean and standard deviation over `rows`, streamed."""
    return zscore_of(table[rows[first : first + CHUNK]] for first in range(0, rows.size, CHUNK))


def zscore_of(blocks: Iterable[Float[np.ndarray, "n e"]]) -> ZScore:
    """Mean and standard deviation over blocks of rows, in float64.

    The blocks are merged as in Chan, Golub and LeVeque (1979), which does not cancel as sums of
    squares would.
    """
    total, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        chunk = block.astype(np.float64)
        merged = total + len(chunk)
        chunk_mean = chunk.mean(axis=0)
        delta = chunk_mean - mean
        between = delta**2 * total * len(chunk) / merged
        squares = squares + (((chunk - chunk_mean) ** 2).sum(axis=0) + between)
        mean = mean + delta * len(chunk) / merged
        total = merged
    deviation = np.sqrt(squares / total)
    scale = np.where(deviation < _SMALLEST_DEVIATION, 1.0, deviation)
    return ZScore(mean.astype(np.float32), scale.astype(np.float32))
