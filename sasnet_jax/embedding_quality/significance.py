"""Do two methods of embedding differ by more than chance? (paper section 4.1, Table 3)

The paper uses the F-test and Fisher's z-test. Both assume that the pairs of categories are
independent, which they are not: every category is in k - 1 of them. They also assume that the two
methods are independent, though these share reviews and reference. The bootstrap draws categories
instead, the same ones for all methods.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy import stats

_NO_VARIANCE = 1e-12  # of cosines; a smaller one is rounding


def f_test(mse: float, other_mse: float, pairs: int) -> float:
    """Two-sided p that two mean squares over as many independent normal errors are equal.

    The errors' mean is not estimated, so each mean square has `pairs` degrees of freedom.
    """
    small, large = sorted((mse, other_mse))
    if small == large:
        return 1.0
    ratio = large / small if small else np.inf
    return float(2 * stats.f.sf(ratio, pairs, pairs))  # F(n, n) and its inverse are one


def fisher_z_test(pearson: float, other_pearson: float, pairs: int) -> float | None:
    """Two-sided p that two correlations over as many independent pairs are equal.

    The result is None below 4 pairs, where a correlation has no standard error.
    """
    if pairs < 4:
        return None
    if pearson == other_pearson:
        return 1.0
    with np.errstate(divide="ignore"):
        difference = np.arctanh(pearson) - np.arctanh(other_pearson)
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(2 / (pairs - 3))))


def bootstrap(
    predicted: Sequence[Float64[np.ndarray, "k k"]],
    reference: Float64[np.ndarray, "k k"],
    draws: int,
    rng: np.random.Generator,
) -> tuple[Float64[np.ndarray, "d methods"], Float64[np.ndarray, "d methods"]]:
    """MSE and Pearson r of each method over categories drawn with replacement.

    All pairs of different categories in a draw count, each as often as it occurs. A category drawn
    m_i times and one drawn m_j times have m_i m_j pairs, so that every average over a draw is a
    quadratic form in m. The draws are the same for all methods. Draws
    in which the reference or a method has only one value are left out; they occur if categories are
    few.

    Args:
      predicted: cosines of the categories' mean embeddings, by method.
      reference: cosines of the categories' names.
      draws: number of draws; d of them are kept.
      rng: for the draws.
    """
    k = len(reference)
    times = rng.multinomial(k, np.full(k, 1 / k), size=draws).astype(np.float64)
    times = times[(times > 0).sum(axis=1) > 1]  # others have no pair
    off_diagonal = 1 - np.eye(k)

    def average(values: Float64[np.ndarray, "k k"]) -> Float64[np.ndarray, "d"]:
        """The average over the pairs of each draw."""
        return ((times @ (values * off_diagonal)) * times).sum(axis=1) / pairs

    pairs = ((times @ off_diagonal) * times).sum(axis=1)
    q = reference - reference.mean()
    q_mean = average(q)
    q_variance = average(q**2) - q_mean**2
    mse, pearson, valid = [], [], q_variance > _NO_VARIANCE
    for similarity in predicted:
        p = similarity - similarity.mean()
        p_mean = average(p)
        p_variance = average(p**2) - p_mean**2
        valid &= p_variance > _NO_VARIANCE
        product = np.maximum(p_variance, _NO_VARIANCE) * np.maximum(q_variance, _NO_VARIANCE)
        pearson.append((average(p * q) - p_mean * q_mean) / np.sqrt(product))
        mse.append(average((similarity - reference) ** 2))
    return np.stack(mse, axis=1)[valid], np.stack(pearson, axis=1)[valid]
