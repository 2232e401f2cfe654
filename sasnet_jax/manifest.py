"""Reads and writes the manifest of an embedding store, and verifies arrays by its hashes.

In: a store's folder. Out: a `Manifest`, and arrays verified to be as they were written, one window
of rows at a time. docs/formats.md says what each key means.

This file is byte for byte the same in both packages: `embed_torch` writes stores, `sasnet_jax`
reads them. `tests/test_packages.py` keeps the copies equal.
"""

import functools
import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from .cli import ProgressBar, UserError  # relative, so that both copies are one text
from .files import Record, file_sha256, read_record, require_file, write_record

MANIFEST = "manifest.json"
TRUNCATED = "truncated.parquet"
CATEGORIES, TOKENS, TEXT_HASHES = "categories", "tokens", "text_hashes"  # not of poolings
WINDOW_ROWS = 4096  # rows per hash, and rows read at a time

Dtype = Literal["float32", "bfloat16", "float16"]
StoreDtype = Literal["float16", "float32"]
Gptq = Literal["dequantize", "packed"]
PoolOver = Literal["all", "review"]
Truncate = Literal["head", "tail", "head_tail", "error"]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, Meta(pattern="^[a-z]+$")]  # of a pooling, and so of its file
_Count = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]

# Keys that embeddings do not depend on: what else the store holds, and where its encoder lies.
_NOT_SETTINGS = {"format_version", "sha256", "rows", "reused", "truncated", "versions", "hashes"}
_NOT_SETTINGS |= {"template", "encoder_folder", "encoder_revision"}


class Manifest(Record, kw_only=True, frozen=True):
    """The contents of `manifest.json`; keys that only some, or newer, stores have may be unset."""

    made_by: ClassVar[str] = "python -m embed_torch"
    version: ClassVar[int] = 1
    encoder: str
    weights_sha256: Sha256
    tokenizer_sha256: Sha256
    template_sha256: Sha256 | None
    instruction: str | None
    instruction_sha256: Sha256 | None
    prefix: str | UnsetType = UNSET
    gptq: Gptq | None
    poolings: Annotated[list[_Name], Meta(min_length=1)]
    default_pooling: str
    pool_over: PoolOver
    normalize: bool
    compute_dtype: Dtype
    dtype: StoreDtype
    dim: _Positive
    truncate: Truncate
    max_tokens: _Positive
    texts_sha256: Sha256
    category_names_sha256: Sha256 | UnsetType | None = UNSET
    rows: _Count
    reused: _Count
    truncated: _Count
    versions: dict[str, str]
    template: str | UnsetType = UNSET
    encoder_folder: str | UnsetType = UNSET
    encoder_revision: str | UnsetType = UNSET
    hashes: dict[str, list[Sha256]] | UnsetType = UNSET

    def __post_init__(self):
        """Refuses a default pooling that the store does not have."""
        if self.default_pooling not in self.poolings:
            raise ValueError(f"default_pooling is {self.default_pooling!r}, not among poolings")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the embeddings."""
        values = msgspec.to_builtins(self)
        return {name: value for name, value in values.items() if name not in _NOT_SETTINGS}

    def kind_of(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of an array; -1 stands for any number of category names."""
        kinds = {
            TOKENS: ("int32", (self.rows,)),
            TEXT_HASHES: ("uint64", (self.rows, 2)),
            CATEGORIES: (self.dtype, (-1, self.dim)),
        }
        return kinds.get(name, (self.dtype, (self.rows, self.dim)))


def remedy_for(folder: Path) -> str:
    """What to type if a store is damaged."""
    return f"remove {folder} and run {Manifest.made_by} --output={folder} again"


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a complete store; warns on stderr if the store has no hashes.

    Raises:
      UserError: the manifest is absent, damaged, or of another version.
    """
    manifest = read_record(folder / MANIFEST, Manifest, remedy_for(folder))
    if manifest.hashes is UNSET or manifest.sha256 is None:
        _warn_of_no_hashes(folder)
    return manifest


@functools.cache
def _warn_of_no_hashes(folder: Path) -> None:
    print(
        f"store {folder} was written before stores had hashes, so damage to it cannot be noticed: "
        f"to add them, {remedy_for(folder)}",
        file=sys.stderr,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes a store: writes the manifest of the arrays in `folder`, with their hashes."""
    hashes = {}
    for name in (*manifest.poolings, CATEGORIES, TOKENS, TEXT_HASHES):
        path = folder / f"{name}.npy"
        if path.exists():
            array = np.lib.format.open_memmap(path, mode="r")
            hashes[path.name] = [_sha256(block) for _, block in _windows(path, array)]
    if (folder / TRUNCATED).exists():
        hashes[TRUNCATED] = [file_sha256(folder / TRUNCATED)]
    write_record(folder / MANIFEST, msgspec.structs.replace(manifest, hashes=hashes))


def read_array(folder: Path, manifest: Manifest, name: str) -> np.memmap:
    """Opens an array of a store read-only, and verifies all of it.

    Raises:
      UserError: it is not as it was written, or holds a value that is not finite.
    """
    for _ in read_windows(folder, manifest, name):
        pass
    return open_array(folder / f"{name}.npy", *manifest.kind_of(name))


def read_windows(
    folder: Path, manifest: Manifest, name: str, windows: Iterable[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields windows of an array, by default all, each with its first row and verified.

    Raises:
      UserError: a window is not as it was written, or holds a value that is not finite; the
        message names the file and the rows.
    """
    path = folder / f"{name}.npy"
    array = open_array(path, *manifest.kind_of(name))
    hashes = [] if manifest.hashes is UNSET else manifest.hashes.get(path.name, [])
    if manifest.hashes is not UNSET and len(hashes) != -(-len(array) // WINDOW_ROWS):
        raise UserError(
            f"{path} has {len(array):,} rows, not as many as were written: {remedy_for(folder)}"
        )
    for first, block in _windows(path, array, windows):
        if hashes and _sha256(block) != hashes[first // WINDOW_ROWS]:
            raise UserError(
                f"{path}: rows {first} to {first + len(block) - 1} are not as they were written "
                f"(their hash differs): {remedy_for(folder)}"
            )
        if not _is_finite(block):
            row = first + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise UserError(
                f"{path}: row {row} holds a value that is not finite: {remedy_for(folder)}"
            )
        yield first, block


def open_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.memmap:
    """Maps an array into memory, read-only.

    Raises:
      UserError: it is absent, damaged, or not of this type and shape (-1 allows any size).
    """
    remedy = remedy_for(path.parent)
    require_file(path, remedy)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # each fault of a header raises another type
        raise UserError(f"{path} is not a whole NumPy array: {remedy}") from None
    sizes = [*itertools.zip_longest(array.shape, shape)]
    if array.dtype != np.dtype(dtype) or any(size not in (-1, actual) for actual, size in sizes):
        raise UserError(
            f"{path} has shape {array.shape} of {array.dtype}, expected {shape} of {dtype}: "
            f"{remedy}"
        )
    return array


def _windows(
    path: Path, array: np.ndarray, windows: Iterable[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    numbers = range(-(-len(array) // WINDOW_ROWS)) if windows is None else windows
    for number in ProgressBar(numbers, desc=f"reading {path.name}", unit="window", delay=5):
        first = number * WINDOW_ROWS
        yield first, array[first : first + WINDOW_ROWS]


def _sha256(block: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(block).data).hexdigest()


def _is_finite(block: np.ndarray) -> bool:
    """Same as `np.isfinite(block).all()`, five times as fast in float16: compares exponents."""
    if block.dtype.kind != "f":
        return True
    bits = f"u{block.dtype.itemsize}"
    exponent = np.array(np.inf, block.dtype).view(bits)
    return bool((block.view(bits) & exponent).max(initial=0) < exponent)
