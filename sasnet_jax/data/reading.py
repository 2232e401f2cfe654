"""How a run reads a store: standardised, and with `--discriminants` along some directions only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.data import discriminants, embeddings
from sasnet_jax.data.corpus import Corpus
from sasnet_jax.data.embeddings import Store, ZScore

_LARGEST = float(np.finfo(np.float16).max)


class Reading(NamedTuple):
    """A store and what was fitted on it."""

    store: Store
    zscore: ZScore
    directions: Float32[np.ndarray, "e k"] | None  # in the standardised embedding

    def table(self) -> Float[np.ndarray, "reviews k"]:
        """What the sets are gathered from: the store's memory map, or its directions in memory."""
        if self.directions is None:
            return self.store.table
        found = np.empty((len(self.store.table), self.directions.shape[1]), np.float16)
        first = 0
        for block in self.store.blocks():
            values = self.zscore(block) @ self.directions
            found[first : first + len(block)] = np.clip(values, -_LARGEST, _LARGEST)
            first += len(block)
        return found

    def scaling(self) -> tuple[Float32[np.ndarray, "k"], Float32[np.ndarray, "k"]]:
        """The z-score that is left to the step; of directions none."""
        if self.directions is None:
            return self.zscore.mean, self.zscore.scale
        kept = self.directions.shape[1]
        return np.zeros(kept, np.float32), np.ones(kept, np.float32)


def fit(store: Store, corpus: Corpus, rows: Int32[np.ndarray, "n"], kept: int) -> Reading:
    """Fits the z-score on `rows`, and `kept` directions for users and as many for businesses.

    Raises:
      UserError: the store has fewer dimensions, or nobody has two reviews.
    """
    refuse_too_many(kept, (store,))
    zscore = embeddings.fit_zscore(store.table, rows)
    if not kept:
        return Reading(store, zscore, None)
    directions = []
    for name, entity in (("user", corpus.user), ("business", corpus.business)):
        if np.bincount(entity[rows]).max() < 2:
            raise UserError(
                f"--discriminants={kept}: no {name} has two reviews to fit on, so nothing tells "
                "what they share; use --discriminants=0"
            )
        found = discriminants.fit(store.table, zscore, rows, entity, kept)
        best, last = found.correlation[[0, -1]]
        print(
            f"{store.name}: along the {kept} directions kept for it, two reviews of one {name} "
            f"correlate by {best:.2f} to {last:.2f}"
        )
        directions.append(found.directions)
    return Reading(store, zscore, np.hstack(directions))


def refuse_too_many(kept: int, stores: Sequence[Store]) -> None:
    """Refuses to keep more directions than a store has dimensions."""
    for store in stores:
        if kept > store.table.shape[1]:
            raise UserError(
                f"--discriminants={kept} is more than the {store.table.shape[1]} dimensions of "
                f"store {store.folder}"
            )
