"""How a run reads a store: standardised, and with `--discriminants` along some directions only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.data import discriminants, embeddings
from sasnet_jax.data.corpus import Corpus
from sasnet_jax.data.embeddings import Store, ZScore


class Reading(NamedTuple):
    """A store and what was fitted on it."""

    store: Store
    zscore: ZScore
    directions: Float32[np.ndarray, "e k"] | None  # in the standardised embedding

    def table(self) -> Float[np.ndarray, "reviews k"]:
        """What the sets are gathered from: the store's memory map, or its directions in memory."""
        if self.directions is None:
            return self.store.table
        blocks = (self.zscore(block) @ self.directions for block in self.store.blocks())
        return np.concatenate([block.astype(np.float16) for block in blocks])

    def scaling(self) -> tuple[Float32[np.ndarray, "k"], Float32[np.ndarray, "k"]]:
        """Mean and scale of the table's columns; directions have been scaled before."""
        if self.directions is None:
            return self.zscore.mean, self.zscore.scale
        kept = self.directions.shape[1]
        return np.zeros(kept, np.float32), np.ones(kept, np.float32)


def fit(store: Store, corpus: Corpus, rows: Int32[np.ndarray, "n"], kept: int) -> Reading:
    """Fits the z-score on `rows`, and `kept` directions for users and as many for businesses.

    Raises:
      UserError: the store has fewer dimensions than are to be kept.
    """
    if kept > store.table.shape[1]:
        raise UserError(
            f"--discriminants={kept} is more than the {store.table.shape[1]} dimensions of store "
            f"{store.folder}"
        )
    zscore = embeddings.fit_zscore(store.table, rows)
    if not kept:
        return Reading(store, zscore, None)
    found = [
        discriminants.fit(store.table, zscore, rows, entity, kept)
        for entity in (corpus.user, corpus.business)
    ]
    return Reading(store, zscore, np.hstack([one.directions for one in found]))
