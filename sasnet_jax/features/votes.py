"""How the reviews most like the other side were rated: attention whose values are ratings.

The business's other reviews are weighed by the likeness of their text to the user's texts, the
user's reviews by the likeness of theirs to the business's: exp(sharpness * cosine) between a review
and the mean of the other side, along some discriminants. The weighed class shares of n reviews are
smoothed by the class shares of the training split, as if by 5 more reviews. So sharpness 0, or
another side without reviews, gives the frequencies of `sasnet_jax.corpus.counts`.

This is what `sasnet_jax.model.pairwise.Votes` computes for two sampled sets before it has learned
anything; here all that a context holds is read. Letters: r discriminants, c classes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from sasnet_jax.corpus.contexts import Context, Contexts, averaging_matrix
from sasnet_jax.corpus.counts import SMOOTHING

SHARPNESS = 4.0  # inverse temperature
RANK = 12  # discriminants that decide which texts are alike
_PAIRS = 1 << 20  # of a target and a review, held at once


def features(
    contexts: Contexts,
    targets: Int32[np.ndarray, "n"],
    heads: Sequence[Float32[np.ndarray, "reviews r"]],
    label: Int[np.ndarray, "reviews"],
    shares: Float[np.ndarray, "c"],
) -> Float32[np.ndarray, "n f"]:
    """Logs of the shares by which the user's reviews vote in each head, then the business's.

    Args:
      contexts: what may be seen.
      targets: the reviews to predict.
      heads: every review's text along the discriminants of each head.
      label: every review's class.
      shares: of the classes in training.
    """
    columns = []
    for voting, other in (contexts, contexts[::-1]):
        queries = averaging_matrix(other, targets)
        for texts in heads:
            query, keys = normalized(queries @ texts), normalized(texts)
            columns.append(np.log(_shares(voting, targets, query, keys, label, shares)))
    return np.hstack(columns).astype(np.float32)


def _shares(
    context: Context,
    targets: Int32[np.ndarray, "n"],
    query: Float32[np.ndarray, "n r"],
    keys: Float32[np.ndarray, "reviews r"],
    label: Int[np.ndarray, "reviews"],
    shares: Float[np.ndarray, "c"],
) -> Float[np.ndarray, "n c"]:
    """The smoothed shares of each target, some targets at a time."""
    voted = np.empty((targets.size, shares.size))
    ends = np.cumsum(context.size[targets], dtype=np.int64)
    first = 0
    while first < targets.size:
        held = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, held + _PAIRS, side="right")))
        reviews = averaging_matrix(context, targets[first:last])
        target = np.repeat(np.arange(last - first), np.diff(reviews.indptr))
        cosine = np.einsum("pr,pr->p", query[first:last][target], keys[reviews.indices])
        cell = target * shares.size + label[reviews.indices]
        votes = np.bincount(cell, np.exp(SHARPNESS * cosine), (last - first) * shares.size)
        voted[first:last] = votes.reshape(-1, shares.size)
        first = last
    return smoothed(voted, context.size[targets, None], shares[None])


def smoothed(
    votes: Float[np.ndarray, "... c"],
    reviews: Int[np.ndarray, "... 1"] | Float[np.ndarray, "... 1"],
    shares: Float[np.ndarray, "... c"],
) -> Float[np.ndarray, "... c"]:
    """The shares of weighed votes, as if each review had one, smoothed by the class shares."""
    total = votes.sum(axis=-1, keepdims=True)
    share = votes / np.where(total > 0, total, 1)
    return (reviews * share + SMOOTHING * shares) / (reviews + SMOOTHING)


def normalized(vectors: Float[np.ndarray, "... r"]) -> Float32[np.ndarray, "... r"]:
    """Vectors of length 1; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
