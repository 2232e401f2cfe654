"""Bayesian inference where a liking is a match of a taste and qualities: `aspects`, `veto`.

In: what the texts and stars of each target's context say. Out: the probabilities of its classes.

- The business. Its reviews tell its qualities through the levels that they mention, one aspect at a
  time, so the posterior of each quality is exact on a grid. Its bias follows from the stars, given
  how much each reviewer's choice of words tells of their taste.
- The user of `aspects`. Taste and bias are sampled: prior samples are weighted by what the user's
  reviews mention, say and rate, and moved by Metropolis-Hastings steps, both in stages, as weights
  alone degenerate for a user with many reviews.
- The user of `veto`. Every set of aspects that can be cared for is weighed, with biases on a grid.

A match counts as normal with its own mean and variance, and of another review's user or business
nothing but that review is used. So this is one concrete predictor, close below the best possible.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, softmax

from sasnet_jax.synthetic.families import (
    BUSINESS_BIAS,
    CARED_FOR,
    CUISINE_QUALITY,
    STAR_NOISE,
    TASTE_CONCENTRATION,
    USER_BIAS,
    VISIT_NOISE,
    WORST_MEAN,
    WORST_SCALE,
    class_probabilities,
    draw_tastes,
    star_cuts,
)
from sasnet_jax.synthetic.text import LEVEL_CUTS, MENTION_FLOOR, Words
from sasnet_jax.synthetic.vocabulary import ASPECTS

_PRIOR_SAMPLES = 1000  # of a user
_SAMPLES = 200  # of a user, after the first resampling
_POWERS = 3.0 ** np.arange(-5, 1)  # of the likelihood, one after the other
_MOVES = 2  # of each sample by each power
_LAST_MOVES = 10  # by the last power, 1: what is sampled
_STEP = 2.38 / np.sqrt(2 * (len(ASPECTS) + 1))  # of a move, in differences of two samples
_JITTER = np.array([0.1] * len(ASPECTS) + [0.05 * USER_BIAS])
_REVIEWERS = 200  # samples of each other reviewer's taste
_OWN_VARIANCE = 1 - CUISINE_QUALITY**2  # of a quality, given its cuisine
_GRID = np.linspace(-4, 4, 81)  # of a quality
_BIAS_GRID = np.linspace(-3.5, 3.5, 29) * BUSINESS_BIAS
_EXPERIENCE_GRID = np.linspace(-5, 5, 51)
_BIASES = 15  # of each listed user
_IMPOSSIBLE = -1e4  # log-probability; finite, so that the sum of a few is comparable
_LEVEL_EDGES = np.array([-np.inf, *LEVEL_CUTS, np.inf])
_K = len(ASPECTS)


class Business(NamedTuple):
    """What is known of a business: normal, independent qualities and bias."""

    quality: Float[np.ndarray, "k"]
    quality_variance: Float[np.ndarray, "k"]
    bias: float
    bias_variance: float


class User(NamedTuple):
    """Weighed tastes of a user, each with some biases."""

    taste: Float[np.ndarray, "p k"]
    bias: Float[np.ndarray, "p b"]
    weight: Float[np.ndarray, "p b"]  # of sum 1


class Product:
    """The match of `aspects`, taste . experience; each experience counts as normal."""

    def __init__(
        self,
        level: Int[np.ndarray, "n k"],
        mean: Float[np.ndarray, "n k"],
        variance: Float[np.ndarray, "n k"],
    ):
        """Takes the experiences' mean and variance before the level that a text tells, or -1."""
        self.mean, self.variance = _felt(level, mean, variance)

    def moments(
        self, taste: Float[np.ndarray, "p k"]
    ) -> tuple[Float[np.ndarray, "p n"], Float[np.ndarray, "p n"]]:
        """Mean and variance of each match under each taste."""
        return taste @ self.mean.T, taste**2 @ self.variance.T


class Worst:
    """The match of `veto`, the worst experience that is cared for."""

    def __init__(
        self,
        level: Int[np.ndarray, "n k"],
        mean: Float[np.ndarray, "n k"],
        variance: Float[np.ndarray, "n k"],
    ):
        """Takes the experiences' mean and variance before the level that a text tells, or -1."""
        deviation = np.sqrt(variance)
        edges = np.where((level < 0)[..., None], [-np.inf, np.inf], _interval(level))
        edges = edges.clip(*_EXPERIENCE_GRID[[0, -1]])
        low, high, x = (
            ndtr((mean[..., None] - edge) / deviation[..., None])
            for edge in (edges[..., :1], edges[..., 1:], _EXPERIENCE_GRID)
        )
        above = ((x - high) / np.maximum(low - high, 1e-9)).clip(1e-9, 1)  # P(experience > x)
        self._log_above = np.log(above).transpose(1, 0, 2)  # [k, n, grid]

    def moments(
        self, taste: Float[np.ndarray, "p k"]
    ) -> tuple[Float[np.ndarray, "p n"], Float[np.ndarray, "p n"]]:
        """Mean and variance of each match under each taste."""
        above = np.exp(np.tensordot((taste > 0).astype(float), self._log_above, 1))
        share, middle = -np.diff(above), (_EXPERIENCE_GRID[1:] + _EXPERIENCE_GRID[:-1]) / 2
        mean, square = share @ middle, share @ middle**2
        variance = np.maximum(square - mean**2, 1e-6)
        return WORST_SCALE * (mean - WORST_MEAN), WORST_SCALE**2 * variance


Match: TypeAlias = type[Product] | type[Worst]


def infer_user(
    words: Words, usual: Float[np.ndarray, "c k"], match: Match, rng: np.random.Generator
) -> User:
    """What the reviews that a user wrote tell of them."""
    mean = usual[words.cuisine]
    visits = match(words.level, mean, np.full_like(mean, _OWN_VARIANCE + VISIT_NOISE**2))

    def log_likelihood(taste, bias):  # [p, k], [p, b] -> [p, b]
        liking, spread = visits.moments(taste)
        spread = spread[:, None] + BUSINESS_BIAS**2 + STAR_NOISE**2
        stars = _log_stars(bias[:, :, None] + liking[:, None], spread, words.stars)
        return (log_words(taste, words)[:, None] + stars).sum(axis=2)

    if match is Product:
        return _sample_user(log_likelihood, rng)
    taste = listed_tastes()
    nodes, weights = np.polynomial.hermite_e.hermegauss(_BIASES)
    bias = np.tile(USER_BIAS * nodes, (len(taste), 1))
    return User(taste, bias, softmax(np.log(weights) + log_likelihood(taste, bias)))


def _sample_user(
    log_likelihood: Callable[..., Float[np.ndarray, "p b"]], rng: np.random.Generator
) -> User:
    """Samples by tempering: the power of the likelihood grows to 1, and the samples move along."""
    # A taste is that of gamma draws, normalized. A draw of a shape < 1 may underflow, its logarithm
    # does not.
    shape, size = TASTE_CONCENTRATION, (_PRIOR_SAMPLES, _K)
    log_gamma = np.log(rng.gamma(shape + 1, size=size)) + np.log(rng.random(size)) / shape
    state = np.hstack([log_gamma, rng.normal(scale=USER_BIAS, size=(_PRIOR_SAMPLES, 1))])
    told, prior = log_likelihood(*_user(state))[:, 0], _log_prior(state)
    kept, before = [], 0.0
    for power in _POWERS:
        # Systematic resampling: equal weights leave every sample in place.
        share = np.cumsum(softmax((power - before) * told))
        chosen = share[:-1].searchsorted((np.arange(_SAMPLES) + rng.random()) / _SAMPLES)
        state, told, prior, before = state[chosen], told[chosen], prior[chosen], power
        for _ in range(_MOVES if power < 1 else _LAST_MOVES):
            # Differential evolution (ter Braak 2006): a move as wide as the samples spread.
            first, second = rng.integers(_SAMPLES, size=(2, _SAMPLES))
            moved = state + _STEP * (state[first] - state[second])
            moved += _JITTER * rng.normal(size=state.shape)
            new_told, new_prior = log_likelihood(*_user(moved))[:, 0], _log_prior(moved)
            gain = power * (new_told - told) + new_prior - prior
            accept = np.log(rng.random(_SAMPLES)) < gain
            state = np.where(accept[:, None], moved, state)
            told, prior = np.where(accept, new_told, told), np.where(accept, new_prior, prior)
            kept.append(state)
    taste, bias = _user(np.concatenate(kept[-_LAST_MOVES:]))
    return User(taste, bias, np.full(bias.shape, 1 / bias.size))


def _user(
    state: Float[np.ndarray, "p s"],
) -> tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "p 1"]]:
    """Tastes and biases of samples: the logarithms of gamma draws, then the bias."""
    taste = np.exp(state[:, :-1] - state[:, :-1].max(axis=1, keepdims=True))
    return taste / np.linalg.norm(taste, axis=1, keepdims=True), state[:, -1:]


def _log_prior(state: Float[np.ndarray, "p s"]) -> Float[np.ndarray, "p"]:
    log_gamma, bias = state[:, :-1], state[:, -1]
    of_taste = TASTE_CONCENTRATION * log_gamma - np.exp(log_gamma)
    return of_taste.sum(axis=1) - 0.5 * (bias / USER_BIAS) ** 2


def listed_tastes() -> Float[np.ndarray, "p k"]:
    """Every taste that a user of `veto` may have."""
    sets = list(itertools.combinations(range(_K), CARED_FOR))
    taste = np.zeros((len(sets), _K))
    taste[np.arange(len(sets))[:, None], sets] = 1 / np.sqrt(CARED_FOR)
    return taste


def log_words(taste: Float[np.ndarray, "p k"], words: Words) -> Float[np.ndarray, "p n"]:
    """Log-probability of what each review chooses to mention, and says to care for."""
    weight = taste + MENTION_FLOOR
    left = np.repeat(weight.sum(axis=1, keepdims=True), words.mentions.size, axis=1)
    chosen = np.ones_like(left)
    for place in range(words.mentions.max(initial=0)):
        mentioned = weight.take(words.order[:, place], axis=1)
        chosen *= np.where(place < words.mentions, mentioned / left, 1.0)
        left -= mentioned
    favorite = taste[:, words.favorite] >= taste.max(axis=1, keepdims=True)
    return np.where((words.favorite < 0) | favorite, np.log(chosen), _IMPOSSIBLE)


def _log_stars(
    liking: Float[np.ndarray, "..."], variance: Float[np.ndarray, "..."], stars: np.ndarray
) -> Float[np.ndarray, "..."]:
    """Log-probability of stars, and 0 where they are not known (0)."""
    edges = np.array([-np.inf, *star_cuts(), np.inf])
    deviation = np.sqrt(variance)
    known = np.maximum(stars, 1)
    below, above = (edges[known - 1 + i] - liking for i in (0, 1))
    told = np.log(np.maximum(ndtr(above / deviation) - ndtr(below / deviation), 1e-12))
    return np.where(stars > 0, told, 0.0)


def _interval(level: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n k 2"]:
    """The experiences of each level; of -1, those of level 0."""
    at_least = np.maximum(level, 0)[..., None]
    return _LEVEL_EDGES[np.concatenate([at_least, at_least + 1], axis=-1)]


def _felt(
    level: Int[np.ndarray, "n k"],
    mean: Float[np.ndarray, "n k"],
    variance: Float[np.ndarray, "n k"],
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Mean and variance of the experience of each aspect, given the level that a text tells."""
    deviation = np.sqrt(variance)
    low, high = ((edge - mean) / deviation for edge in np.moveaxis(_interval(level), -1, 0))
    mass = np.maximum(ndtr(high) - ndtr(low), 1e-9)
    density_low, density_high = (np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) for x in (low, high))
    shift = (density_low - density_high) / mass
    low, high = (np.where(np.isfinite(edge), edge, 0.0) for edge in (low, high))
    shrunk = 1 + (low * density_low - high * density_high) / mass - shift**2
    told = level >= 0
    felt = np.where(told, mean + deviation * shift, mean)
    return felt, np.where(told, variance * np.clip(shrunk, 1e-6, 1), variance)


def infer_business(
    words: Words, usual: Float[np.ndarray, "c k"], match: Match, rng: np.random.Generator
) -> Business:
    """What the reviews of a business tell of it."""
    if not words.stars.size:  # not even its cuisine
        return Business(np.zeros(_K), np.ones(_K), 0.0, BUSINESS_BIAS**2)
    prior = usual[words.cuisine[0]]
    told = ndtr((_LEVEL_EDGES[1:, None] - _GRID) / VISIT_NOISE)
    told -= ndtr((_LEVEL_EDGES[:-1, None] - _GRID) / VISIT_NOISE)  # P(level | quality) [5, grid]
    counts = np.stack([(words.level == level).sum(axis=0) for level in range(5)], axis=1)  # [k, 5]
    log_posterior = counts @ np.log(np.maximum(told, 1e-12))
    log_posterior -= (_GRID - prior[:, None]) ** 2 / (2 * _OWN_VARIANCE)
    posterior = softmax(log_posterior, axis=1)
    quality = posterior @ _GRID
    quality_variance = posterior @ _GRID**2 - quality**2

    mean = np.broadcast_to(quality, words.level.shape)
    variance = np.broadcast_to(quality_variance + VISIT_NOISE**2, words.level.shape)
    visits = match(words.level, mean, variance)
    taste = listed_tastes() if match is Worst else draw_tastes(_REVIEWERS, rng)
    weight = softmax(log_words(taste, words), axis=0)  # [p, n]
    liking, spread = visits.moments(taste)
    spread += USER_BIAS**2 + STAR_NOISE**2
    log_bias = -0.5 * (_BIAS_GRID / BUSINESS_BIAS) ** 2
    stars = _log_stars(_BIAS_GRID[:, None, None] + liking, spread, words.stars)  # [grid, p, n]
    log_bias = log_bias + np.log((weight * np.exp(stars)).sum(axis=1)).sum(axis=1)
    bias_posterior = softmax(log_bias)
    bias = float(bias_posterior @ _BIAS_GRID)
    bias_variance = float(bias_posterior @ _BIAS_GRID**2) - bias**2
    return Business(quality, quality_variance, bias, bias_variance)


def predict(user: User, business: Business, match: Match) -> Float[np.ndarray, "3"]:
    """P(bad, good, excellent) of a visit."""
    variance = business.quality_variance + VISIT_NOISE**2
    visit = match(np.full((1, _K), -1), business.quality[None], variance[None])
    mean, variance = visit.moments(user.taste)  # [p, 1]
    liking = user.bias + business.bias + mean
    variance = np.broadcast_to(variance + business.bias_variance + STAR_NOISE**2, liking.shape)
    return user.weight.ravel() @ class_probabilities(liking.ravel(), variance.ravel())
