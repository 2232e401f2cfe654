"""Do embeddings tell sentiments and categories apart? (paper section 2.3, Table 1)

In: embeddings in blocks of rows [n, e], and which reviews form a group (a category or a class).
Out: cosines between the groups' mean embeddings, and from them a method's three measures and its
score among other methods. Letters: k categories, e embedding width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Float64

from sasnet_jax.corpus.store import CHUNK, zscore_of

Blocks: TypeAlias = Callable[[], Iterable[Float[np.ndarray, "n e"]]]
Similarity: TypeAlias = Float64[np.ndarray, "k k"]
_WEIGHTS = (-0.25, 0.25, -0.5)  # of the normalized measures in the score
_NO_SPREAD = 1e-6  # smaller differences are rounding


class Undefined(Exception):
    """The data do not define a number; the message says why."""


class Measures(NamedTuple):
    """What Table 1 compares, before normalization."""

    mse: float  # of predicted against reference cosines, over the pairs of categories
    pearson: float  # of the same
    ae: float  # |cos(bad, excellent) + 1|


class Scores(NamedTuple):
    """The five columns of Table 1."""

    nmse: float
    npearson: float
    nae: float
    score: float
    normalized: float


def group_means(blocks: Blocks, groups: scipy.sparse.csr_matrix) -> Float64[np.ndarray, "g e"]:
    """Mean of the z-scored embeddings of each group, in two passes over the blocks.

    Args:
      blocks: gives the embeddings of all reviews, as often as it is called.
      groups: [g, reviews] of 0 and 1; a review may be in several groups, and no group is empty.
    """
    zscore = zscore_of(blocks())
    of_review = groups.T.tocsr()
    sums, first = np.zeros((groups.shape[0], 1)), 0
    for block in blocks():
        sums = sums + of_review[first : first + len(block)].T @ zscore(block)
        first += len(block)
    return sums / np.asarray(groups.sum(axis=1))


def cosines(vectors: Float[np.ndarray, "g e"]) -> Float64[np.ndarray, "g g"]:
    """Cosine between any two rows.

    Raises:
      Undefined: a row is zero, as z-scored constants are.
    """
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not length.all():
        raise Undefined("the vectors are constant, and a zero vector has no cosine")
    unit = vectors / length
    return (unit @ unit.T).clip(-1, 1)


def pairs_of(similarity: Similarity) -> Float64[np.ndarray, "pairs"]:
    """The entries i < j, of cosines or of anything else between two categories."""
    return similarity[np.triu_indices(len(similarity), 1)]


def refuse_one_value(similarity: Similarity) -> None:
    """Raises Undefined if all pairs are equally similar: a constant correlates with nothing."""
    pairs = pairs_of(similarity)
    if pairs.size < 2 or np.ptp(pairs) < _NO_SPREAD:
        raise Undefined("the cosines between categories are all the same")


def measure(predicted: Similarity, reference: Similarity, sentiment: float) -> Measures:
    """The measures of a method.

    Args:
      predicted: cosines of the categories' mean embeddings.
      reference: cosines of the categories' names.
      sentiment: cosine of the mean embeddings of bad and of excellent reviews.

    Raises:
      Undefined: as `refuse_one_value`.
    """
    for similarity in (predicted, reference):
        refuse_one_value(similarity)
    p, q = pairs_of(predicted), pairs_of(reference)
    pearson = np.corrcoef(p, q)[0, 1]
    return Measures(float(((p - q) ** 2).mean()), float(pearson), abs(sentiment + 1))


def scores(measures: Sequence[Measures]) -> list[Scores]:
    """Min-max normalizes each measure over the methods, and scores them (paper section 2.3).

    Raises:
      Undefined: there is only one method, or all share a measure or a score.
    """
    if len(measures) < 2:
        raise Undefined("min-max normalization needs two methods, and there is only one")
    columns = np.array(measures, np.float64).T
    normal = [_min_max(*named) for named in zip(Measures._fields, columns, strict=True)]
    score = np.array(_WEIGHTS) @ normal
    table = np.stack([*normal, score, _min_max("score", score)], axis=1)
    return [Scores(*row) for row in table.tolist()]


def _min_max(name: str, column: Float64[np.ndarray, "methods"]) -> Float64[np.ndarray, "methods"]:
    if np.ptp(column) < _NO_SPREAD:
        raise Undefined(
            f"min-max normalization needs methods that differ, and all share one {name}"
        )
    return (column - column.min()) / np.ptp(column)


def noise(reviews: int, dim: int, seed: Sequence[int]) -> Iterator[Float32[np.ndarray, "n e"]]:
    """Blocks of embeddings that know nothing: independent standard normal numbers."""
    rng = np.random.default_rng(seed)
    for first in range(0, reviews, CHUNK):
        yield rng.standard_normal((min(CHUNK, reviews - first), dim), np.float32)


def with_permuted_names(
    predicted: Sequence[Similarity], reference: Similarity, draws: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "draws methods"], Float64[np.ndarray, "draws methods"]]:
    """MSE and Pearson r of each method when each category has the name of another one.

    Every method gets the same permutations. They keep the relations between categories, and break
    only the link from categories to their names (Mantel, 1967).
    """
    p = np.stack([pairs_of(similarity) for similarity in predicted])
    q = pairs_of(reference)
    cross = np.empty((draws, len(p)))
    for draw in range(draws):
        order = rng.permutation(len(reference))
        cross[draw] = p @ pairs_of(reference[np.ix_(order, order)]) / q.size
    mse = (p**2).mean(axis=1) + (q**2).mean() - 2 * cross
    pearson = (cross - p.mean(axis=1) * q.mean()) / (p.std(axis=1) * q.std())
    return mse, pearson
