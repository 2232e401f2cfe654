"""What the network reads from an embedding: `InputTransform` (paper section 2.2, z-score).

In: vectors as stored, those of several stores side by side. Out: each store standardized, and with
`--discriminants` along some directions only. It is fitted once, kept with the run (`zscore.npz`),
and treats a whole table and a single new review alike.

Letters: n reviews, e width of one store or of all, k dimensions kept of it.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.corpus import discriminants
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import CHUNK, Store, ZScore, fit_zscore

_LARGEST = float(np.finfo(np.float16).max)


class StoreTransform(NamedTuple):
    """What was fitted on one store."""

    zscore: ZScore
    directions: Float32[np.ndarray, "e k"] | None  # in the standardized embedding

    def project(self, vectors: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n k"]:
        """What sets are gathered from: the directions in float16, or the vectors as they are."""
        if self.directions is None:
            return vectors
        values = self.zscore(vectors) @ self.directions
        return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)

    def apply(self, vectors: Float32[np.ndarray, "n e"]) -> Float32[np.ndarray, "n k"]:
        """Stored vectors as the network reads them."""
        read = vectors
        if self.directions is not None:
            # In blocks as large as those of a table: BLAS uses another kernel for a few rows,
            # whose last bits differ.
            filled = np.pad(vectors, ((0, -len(vectors) % CHUNK), (0, 0)))
            blocks = [self.project(block) for block in filled.reshape(-1, CHUNK, filled.shape[1])]
            read = np.concatenate(blocks or [self.project(filled)])[: len(vectors)]
        return standardize(read.astype(np.float32), self.scaling())

    def scaling(self) -> ZScore:
        """The z-score that is left to apply; along directions it is the identity."""
        if self.directions is None:
            return self.zscore
        kept = self.directions.shape[1]
        return ZScore(np.zeros(kept, np.float32), np.ones(kept, np.float32))


class InputTransform(NamedTuple):
    """What was fitted on each store, in the order of `--store`; a pytree of arrays."""

    stores: tuple[StoreTransform, ...]

    @classmethod
    def fit(
        cls, stores: Sequence[Store], corpus: Corpus, rows: Int32[np.ndarray, "n"], kept: int
    ) -> "InputTransform":
        """Fits on `rows`: z-scores, and `kept` directions for users and as many for businesses.

        Raises:
          UserError: a store has fewer dimensions, or no entity has two reviews.
        """
        refuse_too_many(kept, stores)
        return cls(tuple(_fit(store, corpus, rows, kept) for store in stores))

    @property
    def dims(self) -> list[int]:
        """The width of each store."""
        return [transform.zscore.mean.size for transform in self.stores]

    @property
    def width(self) -> int:
        """The number of dimensions read per review: k of all stores together."""
        return sum(transform.scaling().mean.size for transform in self.stores)

    def apply(self, vectors: Float[np.ndarray, "n e"]) -> Float32[np.ndarray, "n k"]:
        """Stored vectors of all stores side by side, as the network reads them.

        The result of a row does not depend on the other rows.
        """
        parts = np.split(np.asarray(vectors, np.float32), np.cumsum(self.dims)[:-1], axis=1)
        read = [one.apply(part) for one, part in zip(self.stores, parts, strict=True)]
        return np.concatenate(read, axis=1)

    def tables(self, stores: Sequence[Store]) -> tuple[Float[np.ndarray, "reviews _"], ...]:
        """What sets are gathered from: each store's memory map, or its directions in memory."""
        return tuple(
            store.table
            if transform.directions is None
            else np.concatenate([transform.project(block) for block in store.blocks()])
            for transform, store in zip(self.stores, stores, strict=True)
        )

    def to_npz(self) -> bytes:
        """The bytes of a file with `mean` and `scale` [e] of all stores side by side, and with
        `directions_0`, `directions_1`, ... [e, k] of each store if it has directions.
        """
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(transform.zscore, name) for transform in self.stores])
            for name in ZScore._fields
        }
        for number, transform in enumerate(self.stores):
            if transform.directions is not None:
                arrays[f"directions_{number}"] = transform.directions
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, path: Path, dims: Sequence[int], kept: int, remedy: str) -> "InputTransform":
        """Reads what `to_npz` returned.

        Args:
          path: zscore.npz of a run.
          dims: the width of each store.
          kept: `--discriminants` of the run.
          remedy: what to do about another file.

        Raises:
          UserError: it is damaged, or was fitted on other stores.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                zscore = ZScore(*(arrays[name] for name in ZScore._fields))
                directions = [
                    arrays[f"directions_{number}"] if kept else None for number in range(len(dims))
                ]
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): {remedy}") from None
        fits = all(array.shape == (sum(dims),) for array in zscore) and all(
            store_directions is None or store_directions.shape == (dim, 2 * kept)
            for store_directions, dim in zip(directions, dims, strict=True)
        )
        if not fits:
            raise UserError(f"{path} was fitted on other stores: {remedy}")
        zscores = zip(*(np.split(array, np.cumsum(dims)[:-1]) for array in zscore), strict=True)
        return cls(
            tuple(
                StoreTransform(ZScore(*store_zscore), store_directions)
                for store_zscore, store_directions in zip(zscores, directions, strict=True)
            )
        )


def standardize(values: Any, scaling: Any) -> Any:
    """(values - mean) * (1 / scale) of float32 [..., k], on the host or inside jit, bit for bit."""
    lead = (None,) * (values.ndim - 1)
    return (values - scaling.mean[lead]) * (1 / scaling.scale)[lead]


def refuse_too_many(kept: int, stores: Sequence[Store]) -> None:
    """Refuses to keep more directions than a store has dimensions."""
    for store in stores:
        if kept > store.table.shape[1]:
            raise UserError(
                f"--discriminants={kept} is more than the {store.table.shape[1]} dimensions of "
                f"store {store.folder}"
            )


def _fit(store: Store, corpus: Corpus, rows: Int32[np.ndarray, "n"], kept: int) -> StoreTransform:
    zscore = fit_zscore(store.table, rows)
    if not kept:
        return StoreTransform(zscore, None)
    directions = []
    for name, entity in (("user", corpus.user), ("business", corpus.business)):
        if np.bincount(entity[rows]).max() < 2:
            raise UserError(
                f"--discriminants={kept}: no {name} has two reviews to fit on, so nothing shows "
                "what they share: use --discriminants=0"
            )
        fitted = discriminants.fit(store.table, zscore, rows, entity, kept)
        best, last = fitted.correlation[[0, -1]]
        print(
            f"{store.name}: along the {kept} directions kept for it, two reviews of one {name} "
            f"correlate by {best:.2f} to {last:.2f}"
        )
        directions.append(fitted.directions)
    return StoreTransform(zscore, np.hstack(directions))
