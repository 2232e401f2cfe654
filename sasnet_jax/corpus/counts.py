"""How an entity's other reviews were rated: class counts of contexts (docs/design.md 4.3).

In: contexts and labels. Out: counts [reviews, 2, c] (user, business), and the features made of
them: smoothed log class frequencies and log(1 + n). The "bias" baseline and SASNet's bias term
share them.
"""

import numpy as np
from jaxtyping import Float, Int, Int8, Int32

from sasnet_jax.corpus.contexts import Context, Contexts, HostOrDevice, restrict

SMOOTHING = 5.0  # alpha: the weight, in reviews, of the class shares of the training split


def context_counts(
    contexts: Contexts, label: Int8[np.ndarray, "reviews"], classes: int
) -> Int32[np.ndarray, "reviews 2 c"]:
    """How many reviews of each class are in each side's context of every review, exactly.

    Under `target_review="exclude"` the target is in neither.
    """
    sides = [_side_counts(context, label, classes) for context in contexts]
    return np.stack(sides, axis=1)


def _side_counts(
    context: Context, label: Int8[np.ndarray, "reviews"], classes: int
) -> Int32[np.ndarray, "reviews c"]:
    rows = np.asarray(context.rows)
    before = np.zeros((rows.size + 1, classes), np.int32)  # of each class, before a position
    before[1:] = np.cumsum(label[rows, None] == np.arange(classes), axis=0, dtype=np.int32)
    start, size, skip = (np.asarray(x, np.int64) for x in context[1:])
    skips = skip < size
    counts = before[start + size + skips] - before[start]
    skipped = rows[(start + skip).clip(max=rows.size - 1)]
    counts -= skips[:, None] * (label[skipped, None] == np.arange(classes))
    return counts.astype(np.int32)


def out_of_fold_counts(
    contexts: Contexts,
    label: Int8[np.ndarray, "reviews"],
    classes: int,
    fold: Int[np.ndarray, "reviews"],
) -> Int32[np.ndarray, "reviews 2 c"]:
    """`context_counts` over the reviews of other folds than the target's.

    A model trained on exact counts of all reviews but the target can learn an entity's totals, and
    then reads the label from what is missing; these counts miss more than the target.
    """
    counts = np.zeros((label.size, 2, classes), np.int32)
    for number in np.unique(fold):
        others = context_counts(restrict(contexts, fold != number), label, classes)
        counts[fold == number] = others[fold == number]
    return counts


def class_shares(label: Int8[np.ndarray, "n"], classes: int) -> Float[np.ndarray, "c"]:
    """The share of each class among training labels: what counts are smoothed toward.

    A class without a review counts as half a review.
    """
    counts = np.maximum(np.bincount(label, minlength=classes), 0.5)
    return (counts / counts.sum()).astype(np.float32)


def bias_features(
    counts: Float[HostOrDevice, "b 2 c"] | Int32[HostOrDevice, "b 2 c"],
    shares: Float[HostOrDevice, "c"],
    smoothing: float = SMOOTHING,
) -> Float[HostOrDevice, "b f"]:
    """log((n_c + alpha p_c) / (n + alpha)) of both sides, then log(1 + n): f = 2c + 2."""
    import jax.numpy as jnp  # here, so that commands that only count do not wait for JAX

    total = counts.sum(axis=-1, keepdims=True)  # [b, 2, 1]
    smoothed = (counts + smoothing * shares[None, None]) / (total + smoothing)
    features = jnp.concatenate([jnp.log(smoothed), jnp.log1p(total)], axis=-1)
    return features.reshape(counts.shape[0], -1)
