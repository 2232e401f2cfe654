"""Reads embedding stores (docs/formats.md) and fits their z-score (paper section 2.2)."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.files import read_json, texts_sha256

FORMAT_VERSION = 1
FitOn = Literal["train", "all"]
_KEYS = ("format_version", "texts_sha256", "poolings", "default_pooling", "dim")
_NOT_IDENTITY = ("format_version", "rows", "truncated", "versions", "category_names_sha256") + (
    # Where the encoder is found again; that it is the same one, the hashes say.
    ("template", "encoder_folder", "encoder_revision")
)
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
    manifest: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """The store's folder name."""
        return self.folder.resolve().name

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers in the table."""
        settings = {k: v for k, v in self.manifest.items() if k not in _NOT_IDENTITY}
        return settings | {"pooling": self.pooling}

    def blocks(self) -> Iterator[Float[np.ndarray, "n e"]]:
        """The table from its first row to its last, some thousand rows at a time."""
        return (self.table[first : first + CHUNK] for first in range(0, len(self.table), CHUNK))

    def category_embeddings(self, categories: list[str]) -> Float[np.ndarray, "categories e"]:
        """What the encoder makes of the names of `categories.parquet`, all of them in its order.

        Raises:
          UserError: the store has not embedded them, or others.
        """
        path = self.folder / "categories.npy"
        if not path.is_file():
            raise UserError(
                f"store {self.folder} has no categories.npy: its corpus had no categories "
                "(prepare with --businesses), so embed again"
            )
        found = _load(path)
        expected = (len(categories), self.manifest["dim"])
        named = self.manifest.get("category_names_sha256")  # absent from older stores
        if found.shape != expected or named not in (None, texts_sha256(categories)):
            raise UserError(
                f"{path} embeds other category names than the corpus has, or is damaged (its shape "
                f"is {found.shape}, expected {expected}): embed again"
            )
        if not np.isfinite(found).all():
            raise UserError(f"{path} holds a value that is not finite: embed again")
        return found


def open_store(folder: Path, corpus: Corpus, pooling: str = "") -> Store:
    """Opens a complete store of `corpus`.

    Args:
      folder: written by `python -m embed_torch`.
      corpus: the corpus that it must embed.
      pooling: which array; empty for the store's default.

    Raises:
      UserError: it is incomplete, of another version or corpus, corrupt, or lacks the pooling.
    """
    manifest = read_manifest(folder, corpus)
    pooling = pooling or manifest["default_pooling"]
    if pooling not in manifest["poolings"]:
        raise UserError(
            f"store {folder} has no pooling {pooling!r}, only {', '.join(manifest['poolings'])}"
        )
    path = folder / f"{pooling}.npy"
    table = _load(path)
    expected = (corpus.user.size, manifest["dim"])
    if table.shape != expected:
        raise UserError(f"{path} has shape {table.shape}, expected {expected}: embed again")
    for first in range(0, len(table), CHUNK):
        bad = np.flatnonzero(~np.isfinite(table[first : first + CHUNK]).all(axis=1))
        if bad.size:
            raise UserError(
                f"{path}: the embedding of review {first + bad[0]} is not finite: embed again"
            )
    return Store(table, pooling, manifest, folder)


def open_poolings(folder: Path, corpus: Corpus, wanted: tuple[str, ...]) -> list[Store]:
    """Opens those of the `wanted` poolings that a store has, or all, in the store's order.

    Raises:
      UserError: as `open_store`, or it has none of them.
    """
    has = read_manifest(folder, corpus)["poolings"]
    chosen = [name for name in has if not wanted or name in wanted]
    if not chosen:
        raise UserError(
            f"store {folder} has no pooling {' or '.join(wanted)}, only {', '.join(has)}"
        )
    return [open_store(folder, corpus, name) for name in chosen]


def read_manifest(folder: Path, corpus: Corpus) -> dict[str, Any]:
    """The manifest of a complete store of `corpus`.

    Raises:
      UserError: there is none, or it is of another version or corpus.
    """
    made_by = "python -m embed_torch"
    manifest = read_json(folder / "manifest.json", made_by, _KEYS)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'manifest.json'} has format version {manifest.get('format_version')}, "
            f"this program reads {FORMAT_VERSION}: embed again"
        )
    if manifest["texts_sha256"] != corpus.texts_sha256:
        raise UserError(
            f"store {folder} embeds other texts than corpus {corpus.folder}: its texts_sha256 is "
            f"{manifest['texts_sha256'][:12]}, the corpus has {corpus.texts_sha256[:12]}; "
            f"run {made_by} --corpus={corpus.folder}"
        )
    return manifest


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a whole NumPy file ({error}): embed again") from None


def fit_zscore(table: Float[np.ndarray, "reviews e"], rows: Int32[np.ndarray, "n"]) -> ZScore:
    """Mean and standard deviation over `rows`, streamed."""
    return zscore_of(table[rows[first : first + CHUNK]] for first in range(0, rows.size, CHUNK))


def zscore_of(blocks: Iterable[Float[np.ndarray, "n e"]]) -> ZScore:
    """Mean and standard deviation over blocks of rows, in float64.

    They are merged by Chan, Golub and LeVeque (1979), which does not cancel as sums of squares
    would.
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
