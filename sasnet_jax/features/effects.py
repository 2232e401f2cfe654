"""How kind a user is, and how well liked a business, each judged knowing the other.

An ordinal random-effects model with crossed effects: the normal score of a rating is the sum of a
user's effect, a business's effect and a residual, each normal with a variance that is estimated on
training reviews. One review of a bad business then does not make a harsh user, as it does where
ratings are only counted (`sasnet_jax.corpus.counts`).

What is known of an entity is a function of its set of reviews: of their ratings, and of the effects
of whom or what each of them is about (0, the mean of the prior, where that is not known). Letters:
n reviews, r levels of the ratings, c classes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from scipy.stats import norm

from sasnet_jax.corpus.contexts import Contexts, HostOrDevice, averaging_matrix
from sasnet_jax.corpus.corpus import Corpus

_ITERATIONS = 200
_LEAST_PROBABILITY = 1e-6
_SETTLED = 1e-4  # change of the standard deviations that ends the estimation


class Effects(NamedTuple):
    """The fitted model; a pytree of arrays."""

    levels: Float[np.ndarray, "r"]  # the ratings that occur, ascending
    scores: Float[np.ndarray, "r"]  # of each level, with mean 0 and variance 1 over reviews
    thresholds: Float[np.ndarray, "bounds"]  # between classes, as scores
    variances: Float[np.ndarray, "3"]  # of users, of businesses, of residuals
    user: Float[np.ndarray, "users"]  # the mean of each effect; 0 for one without a review
    business: Float[np.ndarray, "businesses"]

    def score(self, stars: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The normal score of each rating."""
        return np.interp(stars, self.levels, self.scores)

    def of_set(
        self, stars: Float[np.ndarray, "n"], others: Float[np.ndarray, "n"], side: int
    ) -> Float[np.ndarray, "two"]:
        """The posterior mean and variance of one entity's effect.

        Args:
          stars: of its reviews whose ratings are known.
          others: the effects of the other sides of these reviews; 0 where one is not known.
          side: 0 for a user, 1 for a business.
        """
        total = (self.score(stars) - others).sum(keepdims=True)
        return np.concatenate(shrunk(total, np.array([stars.size]), self.variances, side))


def fit(corpus: Corpus, label: Int[np.ndarray, "reviews"], rows: Int32[np.ndarray, "n"]) -> Effects:
    """Estimates the effects and their variances by variational EM.

    Args:
      corpus: the corpus.
      label: the class of every review.
      rows: the reviews to learn from.
    """
    levels, level, counts = np.unique(corpus.stars[rows], return_inverse=True, return_counts=True)
    scores = _normal_scores(counts)
    entities = (corpus.user, corpus.business)
    numbers = [int(entity.max()) + 1 for entity in entities]
    groups = [entity[rows] for entity in entities]
    sizes = [np.bincount(group, minlength=m) for group, m in zip(groups, numbers, strict=True)]
    means, spreads = [np.zeros(m) for m in numbers], [np.zeros(m) for m in numbers]
    variances = np.array([0.1, 0.1, 0.8])
    for _ in range(_ITERATIONS):
        before = np.sqrt(variances)
        for side in (0, 1):
            residual = scores[level] - means[1 - side][groups[1 - side]]
            sums = np.bincount(groups[side], residual, minlength=numbers[side])
            means[side], spreads[side] = shrunk(sums, sizes[side], variances, side)
            present = sizes[side] > 0
            variances[side] = np.mean((means[side] ** 2 + spreads[side])[present])
        residual = scores[level] - means[0][groups[0]] - means[1][groups[1]]
        variances[2] = np.mean(residual**2 + spreads[0][groups[0]] + spreads[1][groups[1]])
        if np.abs(np.sqrt(variances) - before).max() < _SETTLED:
            break
    of_class = np.bincount(label[rows], minlength=int(label.max()) + 1)
    thresholds = norm.ppf(np.cumsum(of_class)[:-1] / rows.size)
    fitted = (levels, scores, thresholds, variances, *means)
    # In float32, as they are kept and as processes exchange them.
    return Effects(*(array.astype(np.float32) for array in fitted))


def shrunk(
    sums: Float[np.ndarray, "n"],
    sizes: Int[np.ndarray, "n"],
    variances: Float[np.ndarray, "3"],
    side: int,
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The posterior mean and variance of effects with these sums of residuals.

    Args:
      sums: of the scores minus the other side's effects.
      sizes: the number of summands.
      variances: of users, of businesses, of residuals.
      side: 0 for users, 1 for businesses.
    """
    precision = sizes / variances[2] + 1 / variances[side]
    return sums / variances[2] / precision, 1 / precision


def features(
    effects: Effects, corpus: Corpus, contexts: Contexts, targets: Int32[np.ndarray, "n"]
) -> Float32[np.ndarray, "n f"]:
    """What each target's contexts tell of its user and its business (`of_pair`)."""
    score = effects.score(corpus.stars)
    others = (effects.business[corpus.business], effects.user[corpus.user])
    sides = []
    for side, (context, other) in enumerate(zip(contexts, others, strict=True)):
        size = np.asarray(context.size[targets])
        sums = averaging_matrix(context, targets) @ (score - other) * size
        sides.append(np.stack(shrunk(sums, size, effects.variances, side), axis=1))
    posterior = np.stack(sides, axis=1).astype(np.float32)
    return np.asarray(of_pair(posterior, effects.thresholds, effects.variances[2]), np.float32)


def of_pair(
    posterior: Float[HostOrDevice, "b 2 2"],
    thresholds: Float[HostOrDevice, "bounds"],
    residual_variance: float | Float[HostOrDevice, ""],
) -> Float[HostOrDevice, "b f"]:
    """Means and variances of both sides, then the logs of the class probabilities: f = 4 + c."""
    import jax.numpy as jnp  # here, so that commands that only count do not wait for JAX
    from jax.scipy.stats import norm as normal

    total = posterior.sum(axis=1)
    deviation = jnp.sqrt(total[:, 1:] + residual_variance)
    below = normal.cdf((thresholds[None] - total[:, :1]) / deviation)
    ends = jnp.zeros_like(total[:, :1])
    probability = jnp.diff(jnp.concatenate([ends, below, ends + 1], axis=1), axis=1)
    logs = jnp.log(jnp.maximum(probability, _LEAST_PROBABILITY))
    return jnp.concatenate([posterior.reshape(-1, 4), logs], axis=1)


def _normal_scores(counts: Int[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """The mean of a standard normal within each level's quantiles, scaled to variance 1."""
    ends = norm.ppf(np.concatenate([[0], np.cumsum(counts)]) / counts.sum())
    scores = -np.diff(norm.pdf(ends)) * counts.sum() / counts
    deviation = np.sqrt((scores**2 * counts).sum() / counts.sum())
    return scores / deviation if deviation else scores
