"""Who may be seen: the context of every target review (DESIGN section 5).

In: the corpus columns. Out, for each side, a `Context`: the review rows of every entity grouped in
one array, and for every review as a target the range of that array that may be seen, less the
target itself. Sets, averages and counts are all taken from it.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int32

from sasnet_jax.data.corpus import Corpus

HostOrDevice = np.ndarray | jax.Array
TargetReview = Literal["exclude", "include"]


class Context(NamedTuple):
    """One side's context of every target r: `rows[start[r] : start[r] + n]` without `skip[r]`.

    A target that is not in its own range has skip[r] = size[r], beyond every position, and then
    n = size[r]; otherwise n = size[r] + 1. So position p in [0, size[r]) of the context is
    rows[start[r] + p + (p >= skip[r])], for any r.
    """

    rows: Int32[HostOrDevice, "listed"]
    start: Int32[HostOrDevice, "reviews"]
    size: Int32[HostOrDevice, "reviews"]
    skip: Int32[HostOrDevice, "reviews"]


class Contexts(NamedTuple):
    """Both sides."""

    user: Context
    business: Context


def contexts_of(corpus: Corpus, target_review: TargetReview) -> Contexts:
    """The contexts of a `by_user` split.

    Under "exclude" the user's side is the user's other reviews (of the same split by construction)
    and the business's side its training reviews, without the target. Under "include" both are all
    reviews of the entity, the target among them (leaky: only to reproduce the paper).

    A pair of user and business occurs once in a corpus, so leaving out the target leaves out the
    pair.
    """
    everything = np.ones(corpus.split.size, bool)
    if target_review == "include":
        return Contexts(
            _group(corpus.user, everything, exclude=False),
            _group(corpus.business, everything, exclude=False),
        )
    return Contexts(
        _group(corpus.user, everything, exclude=True),
        _group(corpus.business, corpus.split == "train", exclude=True),
    )


def averaging_matrix(context: Context, targets: Int32[np.ndarray, "n"]) -> scipy.sparse.csr_matrix:
    """The matrix [n, reviews] whose product with features averages each target's context.

    A row without context is zero. The target's own column is absent, not cancelled, so nothing
    of it is left, not even a rounding error.
    """
    size = context.size[targets].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(size)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], size)
    position += position >= np.repeat(context.skip[targets], size)
    columns = context.rows[np.repeat(context.start[targets], size) + position]
    weights = np.repeat(1 / np.maximum(size, 1), size)
    shape = (targets.size, context.start.size)
    return scipy.sparse.csr_matrix((weights, columns, offsets), shape=shape)


def _group(
    entity: Int32[np.ndarray, "reviews"], listed: Bool[np.ndarray, "reviews"], exclude: bool
) -> Context:
    """Groups the `listed` rows by entity; every review may be a target, listed or not."""
    rows = np.flatnonzero(listed)
    rows = rows[np.argsort(entity[rows], kind="stable")]
    sizes = np.bincount(entity[rows], minlength=entity.max() + 1)
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])[entity]
    size = sizes[entity]
    if exclude:
        size = size - listed
    skip = size.copy()
    if exclude:
        skip[rows] = np.arange(rows.size) - start[rows]
    return Context(*(array.astype(np.int32) for array in (rows, start, size, skip)))
