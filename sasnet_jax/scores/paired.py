"""Does one model predict better than another, beyond chance? (docs/design.md 5)

In: predictions of two or more models for the same reviews. Out: intervals and p-values. Reviews of
one user are not independent, so the bootstrap draws users, the same ones for all models; McNemar's
test takes reviews as independent, and so is the more lenient of the two if users have many.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int8
from scipy.stats import binomtest

from sasnet_jax.cli import ProgressBar

LEVEL = 0.95
MARGIN = 0.02  # "at least level": the interval of the difference in accuracy lies above -0.02
RESAMPLES = 2000


def mcnemar(right: Bool[np.ndarray, "n"], other: Bool[np.ndarray, "n"]) -> float:
    """Two-sided exact p that two models are right on different reviews equally often."""
    only, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    if not only + only_other:
        return 1.0
    return float(binomtest(only, only + only_other).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: of any of these tests, one errs with probability p at most."""
    order = np.argsort(p_values, kind="stable")
    remaining = len(p_values) - np.arange(len(p_values))
    corrected = np.maximum.accumulate(np.asarray(p_values, float)[order] * remaining)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(corrected, 1)
    return adjusted.tolist()


def resample_users(
    user: Int[np.ndarray, "n"],
    values: Float64[np.ndarray, "n k"],
    seed: int,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, "r k"]:
    """Sums of each column over users drawn with replacement, as many as there are.

    Args:
      user: the user of each review.
      values: columns to sum; a column of ones gives the number of reviews drawn.
      seed: seed of the draws; the same users are drawn for every column.
      resamples: r, the number of draws.
    """
    _, index = np.unique(user, return_inverse=True)
    users = int(index.max()) + 1
    of_user = np.stack([np.bincount(index, column) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, values.shape[1]))
    for i in ProgressBar(range(resamples), desc="bootstrap over users", delay=5, leave=False):
        times = np.bincount(rng.integers(users, size=users), minlength=users)
        sums[i] = times @ of_user
    return sums


def interval(values: Float64[np.ndarray, "r"]) -> list[float]:
    """The central 95 % of resampled values."""
    tail = (1 - LEVEL) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist()


def statistics(
    label: Int8[np.ndarray, "n"], probability: Float64[np.ndarray, "n c"]
) -> Float64[np.ndarray, "n c_c_and_1"]:
    """Each review's cell of the confusion matrix, one-hot, and its -log p(label), in nats."""
    classes = probability.shape[1]
    cell = label.astype(int) * classes + probability.argmax(axis=1)
    chosen = probability[np.arange(label.size), label]
    loss = -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))
    return np.hstack([np.eye(classes**2)[cell], loss[:, None]])


def metrics_of(sums: Float64[np.ndarray, "r c_c_and_1"]) -> dict[str, Float64[np.ndarray, "r"]]:
    """Accuracy, macro F1 and log-loss from sums of `statistics`.

    The F1 of a class that a resample neither holds nor predicts counts as 0.
    """
    classes = int(np.sqrt(sums.shape[1] - 1))
    confusion = sums[:, :-1].reshape(-1, classes, classes)
    reviews = confusion.sum(axis=(1, 2))
    right = np.einsum("rii->ri", confusion)
    either = confusion.sum(axis=1) + confusion.sum(axis=2)
    return {
        "accuracy": right.sum(axis=1) / reviews,
        "macro_f1": (2 * right / np.maximum(either, 1)).mean(axis=1),
        "log_loss": sums[:, -1] / reviews,
    }
