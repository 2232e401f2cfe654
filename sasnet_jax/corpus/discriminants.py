"""The directions of an embedding that tell users apart, and businesses (Fisher 1936).

In: an embedding table and who wrote each review about what. Out: directions, best first, and the
intraclass correlation along each: the share of the variance that two reviews of one
entity have in common, slightly lowered by the ridge. No label is used. A set of reviews can only
tell what its members share, so the other directions are noise to SASNet; speaker recognition uses
the same method for voices (Dehak et al. 2011).

Letters: e embedding width, k directions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float32, Int32

from sasnet_jax.cli import ProgressBar
from sasnet_jax.corpus.store import CHUNK, ZScore

_RIDGE = 0.1  # added to the variance of each standardized dimension
_MOST_REVIEWS = 100_000  # largest number of reviews that the directions are fitted on


class Discriminants(NamedTuple):
    """Directions v in the standardized embedding, best first; v'(T + ridge) v = 1 (see `fit`)."""

    directions: Float32[np.ndarray, "e k"]
    correlation: Float32[np.ndarray, "k"]


def fit(
    table: Float[np.ndarray, "reviews e"],
    zscore: ZScore,
    rows: Int32[np.ndarray, "n"],
    entity: Int32[np.ndarray, "reviews"],
    directions: int,
) -> Discriminants:
    """Finds the directions along which reviews of one entity are most alike.

    Solves B v = c (T + ridge) v, where T is the covariance of reviews and B that of two different
    reviews of one entity, each review counted once.

    Args:
      table: embeddings as stored.
      zscore: of the table.
      rows: reviews to fit on; above 100,000, only those of randomly drawn entities.
      entity: the user, or the business, of every review.
      directions: the number of directions, at most e.
    """
    dim = table.shape[1]
    total, between = np.zeros((dim, dim)), np.zeros((dim, dim))
    reviews = paired = 0
    for values, starts in _chunks(table, zscore, rows, entity):
        sizes = np.diff(starts, append=len(values))
        # An entity of n reviews has n (n - 1) ordered pairs; each review has n - 1 of them.
        weight = np.where(sizes > 1, 1 / np.maximum(sizes - 1, 1), 0).astype(np.float32)
        sums = np.add.reduceat(values, starts)
        between += (sums * weight[:, None]).T @ sums
        between -= (values * np.repeat(weight, sizes)[:, None]).T @ values
        total += values.T @ values
        reviews, paired = reviews + len(values), paired + int(sizes[sizes > 1].sum())
    total = total / reviews + _RIDGE * np.eye(dim)
    between = (between + between.T) / 2 / max(paired, 1)
    best = (dim - directions, dim - 1)
    correlation, vectors = scipy.linalg.eigh(between, total, subset_by_index=best)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(directions)])
    return Discriminants(vectors.astype(np.float32), correlation[::-1].astype(np.float32))


def _chunks(
    table: Float[np.ndarray, "reviews e"],
    zscore: ZScore,
    rows: Int32[np.ndarray, "n"],
    entity: Int32[np.ndarray, "reviews"],
) -> Iterator[tuple[Float32[np.ndarray, "m e"], Int32[np.ndarray, "entities"]]]:
    """Standardized reviews of whole entities, a few thousand at a time, and where each begins."""
    shuffled = np.random.default_rng(0).permutation(int(entity.max()) + 1)
    order = rows[np.argsort(shuffled[entity[rows]], kind="stable")]
    starts = np.flatnonzero(np.diff(shuffled[entity[order]], prepend=-1))
    first = 0
    with ProgressBar(
        total=min(order.size, _MOST_REVIEWS), desc="discriminants", unit="review", delay=5
    ) as bar:
        while first < starts.size and starts[first] < _MOST_REVIEWS:
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + CHUNK)))
            stop = starts[last] if last < starts.size else order.size
            chunk = order[starts[first] : stop]
            yield zscore(table[chunk]), starts[first:last] - starts[first]
            bar.update(chunk.size)
            first = last
