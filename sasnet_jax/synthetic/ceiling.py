"""How well a predictor can do that knows the synthetic world's rules, but only the other reviews.

In: a corpus of synthetic reviews. Out: the expected accuracy of Bayesian inference, in the model of
`synthetic.py`, from what SASNet sees of a target too: the texts (which tell the stars) of its
context (docs/design.md 5). Nothing is known of the target, and nothing of the latent truth but the
distributions and what each cuisine is known for.

- The business. Its reviews tell its qualities through the levels that they mention, one aspect at a
  time, so the posterior of each quality is exact on a grid. Its bias follows from the stars, given
  how much each reviewer's choice of words tells of their taste.
- The user. Taste and bias are sampled: prior samples weighted by what the user's reviews mention,
  say and rate, then moved by a Metropolis-Hastings chain, as weights alone degenerate for a user
  with many reviews.

Where stars depend on sums of truncated normal variables, these count as normal with the same mean
and variance, and of another review's user or business nothing but that review is used. So this is
the accuracy of one concrete predictor: a close lower bound of the best possible. It is well
calibrated: the accuracy that it expects is the one that it has on the targets, within chance.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.special import ndtr
from scipy.stats import norm

from sasnet_jax.cli import ProgressBar
from sasnet_jax.corpus.contexts import Context, contexts_of
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.synthetic.text import ASPECTS, LEVEL_CUTS, MENTION_FLOOR, Facts, read_facts
from sasnet_jax.synthetic.world import (
    BUSINESS_BIAS,
    CUISINE_QUALITY,
    STAR_NOISE,
    TASTE_CONCENTRATION,
    USER_BIAS,
    VISIT_NOISE,
    class_probabilities,
    draw_tastes,
    make_world,
    star_cuts,
)

_TARGETS = 500  # test reviews that are looked at, at most
_PRIOR_SAMPLES = 1000  # of a user
_SAMPLES = 200  # of a user, after resampling
_MOVES = 15  # of each sample
_STEPS = (0.1, 0.4, 1.2)  # of a move, in the logarithm of a taste
_REVIEWERS = 200  # samples of each other reviewer's taste
_GRID = np.linspace(-4, 4, 81)  # of a quality
_BIAS_GRID = np.linspace(-3.5, 3.5, 29) * BUSINESS_BIAS
_LEVEL_EDGES = np.array([-np.inf, *LEVEL_CUTS, np.inf])
_K = len(ASPECTS)


class _Words(NamedTuple):
    """The facts of n reviews as arrays; an aspect that is not mentioned has level -1."""

    cuisine: Int[np.ndarray, "n"]
    level: Int[np.ndarray, "n k"]
    order: Int[np.ndarray, "n k"]  # the aspects in order of mention, then the others
    mentions: Int[np.ndarray, "n"]
    favourite: Int[np.ndarray, "n"]  # -1 where it is not said
    stars: Int[np.ndarray, "n"]


class _Business(NamedTuple):
    """What is known of a business: normal, independent qualities and bias."""

    quality: Float[np.ndarray, "k"]
    quality_variance: Float[np.ndarray, "k"]
    bias: float
    bias_variance: float


def measure(corpus: Corpus, reviews: int, seed: int) -> dict[str, Any]:
    """What an ideal reader of the other reviews can reach on the test reviews.

    Args:
      corpus: prepared from synthetic reviews.
      reviews: how many were generated,
      seed: and from which seed.

    Returns:
      For truth.json: the accuracy that the inference expects, the accuracy that it has, its
      log-loss (nats), and on how many test reviews.
    """
    rng = np.random.default_rng([seed, 2])
    usual = make_world(reviews, seed).usual
    targets = corpus.rows("test")
    targets = np.sort(rng.permutation(targets)[:_TARGETS])
    contexts = contexts_of(corpus, "exclude")
    rows = [[_rows(context, target) for context in contexts] for target in targets.tolist()]
    read = np.unique(np.concatenate([of_side for both in rows for of_side in both]))
    words = _words([read_facts(text) for text in _texts(corpus, read)])
    prior = _prior_users(_PRIOR_SAMPLES, rng)
    known: dict[bytes, _Business] = {}
    probability = np.empty((targets.size, 3))
    bar = ProgressBar(rows, desc="measuring the ceiling", unit="review", delay=5, mininterval=1)
    for index, (of_user, of_business) in enumerate(bar):
        key = of_business.tobytes()
        if key not in known:
            known[key] = _infer_business(_take(words, read, of_business), usual, rng)
        user = _infer_user(_take(words, read, of_user), usual, prior, rng)
        probability[index] = _predict(*user, known[key])
    label = corpus.label[targets]
    return {
        "best_accuracy_knowing_the_other_reviews": float(probability.max(axis=1).mean()),
        "accuracy_of_that_predictor": float((probability.argmax(axis=1) == label).mean()),
        "log_loss_of_that_predictor": float(
            -np.log(probability[np.arange(label.size), label]).mean()
        ),
        "measured_on_test_reviews": int(targets.size),
    }


def _rows(context: Context, target: int) -> Int[np.ndarray, "n"]:
    position = np.arange(int(context.size[target]))
    position += position >= context.skip[target]
    return np.sort(np.asarray(context.rows[context.start[target] + position]))


def _words(facts: Sequence[Facts]) -> _Words:
    level = np.full((len(facts), _K), -1)
    order = np.empty((len(facts), _K), np.int64)
    for row, fact in enumerate(facts):
        mentioned = [aspect for aspect, _ in fact.mentions]
        level[row, mentioned] = [level for _, level in fact.mentions]
        order[row] = mentioned + [k for k in range(_K) if k not in mentioned]
    return _Words(
        np.array([fact.cuisine for fact in facts], int),
        level,
        order,
        np.array([len(fact.mentions) for fact in facts], int),
        np.array([-1 if fact.favourite is None else fact.favourite for fact in facts], int),
        np.array([fact.stars for fact in facts], int),
    )


def _take(words: _Words, read: Int[np.ndarray, "m"], rows: Int[np.ndarray, "n"]) -> _Words:
    """The words of some rows, from those of the rows `read`, ascending."""
    return _Words(*(column[np.searchsorted(read, rows)] for column in words))


def _texts(corpus: Corpus, rows: Int[np.ndarray, "m"]) -> pl.Series:
    reviews = pl.scan_parquet(corpus.folder / "reviews.parquet", row_index_name="row", glob=False)
    chosen = reviews.filter(pl.col("row").is_in(rows.tolist())).select("text")
    return chosen.collect(engine="streaming")["text"]


def _prior_users(
    samples: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "p"]]:
    """Logarithms of unnormalised tastes (a Dirichlet draw is one of gamma draws), and biases."""
    # A gamma draw of shape a < 1 in logarithms, where the draw itself may underflow.
    a = TASTE_CONCENTRATION
    gamma = np.log(rng.gamma(a + 1, size=(samples, _K))) + np.log(rng.random((samples, _K))) / a
    return gamma, rng.normal(scale=USER_BIAS, size=samples)


def _taste(log_gamma: Float[np.ndarray, "p k"]) -> Float[np.ndarray, "p k"]:
    taste = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    return taste / np.linalg.norm(taste, axis=1, keepdims=True)


def _log_words(taste: Float[np.ndarray, "p k"], words: _Words) -> Float[np.ndarray, "p n"]:
    """Log-probability of what each review chooses to mention, and says to care for."""
    weight = (taste + MENTION_FLOOR)[:, words.order]  # [p, n, k], in order of mention
    left = np.cumsum(weight[..., ::-1], axis=-1)[..., ::-1]
    mentioned = np.arange(_K) < words.mentions[:, None]
    chosen = np.where(mentioned, np.log(weight / left), 0.0).sum(axis=-1)
    favourite = taste.argmax(axis=1)[:, None]
    return np.where((words.favourite < 0) | (words.favourite == favourite), chosen, -np.inf)


def _log_stars(
    liking: Float[np.ndarray, "..."], variance: Float[np.ndarray, "..."], stars: np.ndarray
) -> Float[np.ndarray, "..."]:
    edges = np.array([-np.inf, *star_cuts(), np.inf])
    deviation = np.sqrt(variance)
    below, above = (edges[stars - 1 + i] - liking for i in (0, 1))
    return np.log(np.maximum(ndtr(above / deviation) - ndtr(below / deviation), 1e-12))


def _felt(
    level: Int[np.ndarray, "n k"],
    mean: Float[np.ndarray, "n k"],
    variance: Float[np.ndarray, "n k"],
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Mean and variance of the experience of each aspect, given the level that a text tells."""
    deviation = np.sqrt(variance)
    low = (_LEVEL_EDGES[np.maximum(level, 0)] - mean) / deviation
    high = (_LEVEL_EDGES[np.maximum(level, 0) + 1] - mean) / deviation
    mass = np.maximum(norm.cdf(high) - norm.cdf(low), 1e-9)
    density_low, density_high = norm.pdf(low), norm.pdf(high)
    shift = (density_low - density_high) / mass
    low, high = (np.where(np.isfinite(edge), edge, 0.0) for edge in (low, high))
    shrunk = 1 + (low * density_low - high * density_high) / mass - shift**2
    told = level >= 0
    felt = np.where(told, mean + deviation * shift, mean)
    return felt, np.where(told, variance * np.clip(shrunk, 1e-6, 1), variance)


def _infer_user(
    words: _Words,
    usual: Float[np.ndarray, "c k"],
    prior: tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "p"]],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "s k"], Float[np.ndarray, "s"]]:
    """Samples of a user's taste and bias, given the reviews that the user wrote elsewhere."""
    own_variance = 1 - CUISINE_QUALITY**2
    mean = usual[words.cuisine]
    felt, variance = _felt(words.level, mean, np.full_like(mean, own_variance + VISIT_NOISE**2))

    def log_likelihood(log_gamma, bias):
        taste = _taste(log_gamma)
        liking = bias[:, None] + taste @ felt.T
        spread = taste**2 @ variance.T + BUSINESS_BIAS**2 + STAR_NOISE**2
        stars = _log_stars(liking, spread, words.stars)
        return (_log_words(taste, words) + stars).sum(axis=1)

    def log_prior(log_gamma, bias):
        of_taste = TASTE_CONCENTRATION * log_gamma - np.exp(log_gamma)
        return of_taste.sum(axis=1) - 0.5 * (bias / USER_BIAS) ** 2

    if not words.stars.size:
        return _taste(prior[0][:_SAMPLES]), prior[1][:_SAMPLES]
    weight = log_likelihood(*prior)
    weight = np.exp(weight - weight.max())
    chosen = rng.choice(weight.size, _SAMPLES, p=weight / weight.sum())
    log_gamma, bias = prior[0][chosen], prior[1][chosen]
    density = log_likelihood(log_gamma, bias) + log_prior(log_gamma, bias)
    for move in range(_MOVES):
        step = _STEPS[move % len(_STEPS)]
        new_gamma = log_gamma + step * rng.normal(size=log_gamma.shape)
        new_bias = bias + step * USER_BIAS * rng.normal(size=bias.shape)
        new_density = log_likelihood(new_gamma, new_bias) + log_prior(new_gamma, new_bias)
        accept = np.log(rng.random(bias.size)) < new_density - density
        log_gamma = np.where(accept[:, None], new_gamma, log_gamma)
        bias, density = np.where(accept, new_bias, bias), np.where(accept, new_density, density)
    return _taste(log_gamma), bias


def _infer_business(
    words: _Words, usual: Float[np.ndarray, "c k"], rng: np.random.Generator
) -> _Business:
    """What the reviews of a business tell of it."""
    if not words.stars.size:  # not even its cuisine
        return _Business(np.zeros(_K), np.ones(_K), 0.0, BUSINESS_BIAS**2)
    own_variance = 1 - CUISINE_QUALITY**2
    prior = usual[words.cuisine[0]]
    told = ndtr((_LEVEL_EDGES[1:, None] - _GRID) / VISIT_NOISE)
    told -= ndtr((_LEVEL_EDGES[:-1, None] - _GRID) / VISIT_NOISE)  # P(level | quality) [5, grid]
    counts = np.stack([(words.level == level).sum(axis=0) for level in range(5)], axis=1)  # [k, 5]
    log_posterior = counts @ np.log(np.maximum(told, 1e-12))
    log_posterior -= (_GRID - prior[:, None]) ** 2 / (2 * own_variance)
    posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    quality = posterior @ _GRID
    quality_variance = posterior @ _GRID**2 - quality**2

    mean = np.broadcast_to(quality, words.level.shape)
    felt, variance = _felt(words.level, mean, mean * 0 + quality_variance + VISIT_NOISE**2)
    taste = draw_tastes(_REVIEWERS, rng)
    log_weight = _log_words(taste, words)
    weight = np.exp(log_weight - log_weight.max(axis=0))
    weight /= weight.sum(axis=0)  # [p, n]
    liking = taste @ felt.T
    spread = taste**2 @ variance.T + USER_BIAS**2 + STAR_NOISE**2
    log_bias = -0.5 * (_BIAS_GRID / BUSINESS_BIAS) ** 2
    stars = _log_stars(_BIAS_GRID[:, None, None] + liking, spread, words.stars)  # [grid, p, n]
    log_bias = log_bias + np.log((weight * np.exp(stars)).sum(axis=1)).sum(axis=1)
    bias_posterior = np.exp(log_bias - log_bias.max())
    bias_posterior /= bias_posterior.sum()
    bias = float(bias_posterior @ _BIAS_GRID)
    bias_variance = float(bias_posterior @ _BIAS_GRID**2) - bias**2
    return _Business(quality, quality_variance, bias, bias_variance)


def _predict(
    taste: Float[np.ndarray, "s k"], bias: Float[np.ndarray, "s"], business: _Business
) -> Float[np.ndarray, "3"]:
    """P(bad, good, excellent) of a visit, over the samples of the user."""
    liking = bias + business.bias + taste @ business.quality
    variance = taste**2 @ (business.quality_variance + VISIT_NOISE**2)
    variance += business.bias_variance + STAR_NOISE**2
    return class_probabilities(liking, variance).mean(axis=0)
