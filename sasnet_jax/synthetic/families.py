"""The rules of the synthetic worlds, family by family.

Business b has a quality q[b, k] for each k, user u a taste t[u, k] >= 0 of length 1. A visit is
experienced as e[k] = q[b, k] + noise, and liked as
    z = a[u] + c[b] + match(t[u], e) + noise,
cut into stars at fixed quantiles. Both the text and the stars of a review share the noise of its
visit, so reading the target's own review helps a model as it does on real reviews. The families
(`FAMILIES`) differ in the match, and in what a text tells:

- `aspects`: k is an aspect and the match is t . e, most of z, which user and business biases cannot
  express. Texts tell e of the aspects that their user cares for, and the stars.
- `aspects_noisy`: the same, with short histories, and written as people write.
- `veto`: as noisy; a user cares for three aspects alike, and the match is the worst of the three.
- `kinds`: a user is of one of four kinds, and each kind has its own opinion q[b, k] of a business.
  Texts show the kind by their style, and tell nothing of the visit but, in part, the stars.
- `null`: as `kinds`, but all kinds are of one opinion: user and business have main effects only.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr
from scipy.stats import norm

from sasnet_jax.synthetic.text import (
    Facts,
    NoisyWriter,
    ReviewWriter,
    StyleWriter,
    read_facts,
    read_style,
)
from sasnet_jax.synthetic.vocabulary import ASPECTS, CUISINES, STYLES

FamilyName = Literal["aspects", "aspects_noisy", "kinds", "null", "veto"]
USER_BIAS = 0.35  # standard deviations of the parts of z
BUSINESS_BIAS = 0.3
VISIT_NOISE = 0.6
STAR_NOISE = 0.3
NOISE_VARIANCE = VISIT_NOISE**2 + STAR_NOISE**2  # of a visit: tastes have length 1
_STAR_SHARES = (0.12, 0.08, 0.10, 0.25, 0.45)  # of one to five stars
CUISINE_QUALITY = 0.4  # the part of a quality (of standard deviation 1) that a cuisine shares
TASTE_CONCENTRATION = 0.3  # of the Dirichlet distribution of tastes: most users care for little
_DISCONTENT = 0.05  # how much less is liked than in `aspects`
# The opinions that a kind of users may have: equally likely, of variance 1.
OPINIONS = np.sqrt(2) * np.linspace(-1, 1, 5) - _DISCONTENT
CARED_FOR = 3  # aspects, by a user of `veto`
# Mean and variance of the least of three standard normal variables (Bose and Gupta 1959).
_LEAST_MEAN = -1.5 / np.sqrt(np.pi)
_LEAST_VARIANCE = 1 + np.sqrt(3) / (2 * np.pi) - _LEAST_MEAN**2
# Makes the worst experience, of variance 1 + VISIT_NOISE^2, as wide as a product of aspects.
WORST_SCALE = 1 / np.sqrt(_LEAST_VARIANCE)
WORST_MEAN = _LEAST_MEAN * np.sqrt(1 + VISIT_NOISE**2) + _DISCONTENT / WORST_SCALE


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How many users and businesses share the reviews, and how long these are.

    Both have long tails, as on Yelp: the numbers are log-normal. By default they are like the
    paper's selection of 75,379 reviews.
    """

    reviews_per_user: float = 8.0  # mean
    reviews_per_business: float = 25.0
    user_spread: float = 1.3  # standard deviation of the logarithm
    business_spread: float = 1.0
    small_talk: float = 0.0  # mean number of sentences per text that tell nothing


YELP = Shape(  # the whole dump: 1.9 M users and 150 k businesses of 6.2 M reviews
    reviews_per_user=3.5,
    reviews_per_business=46.0,
    user_spread=1.5,
    business_spread=1.3,
    small_talk=8.0,
)


_NOISY = Shape(reviews_per_user=5.0, reviews_per_business=30.0, small_talk=3.0)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The rules in which families differ."""

    draw_usual: Callable[[np.random.Generator], Float[np.ndarray, "c k"]]
    draw_own: Callable[[int, np.random.Generator], Float[np.ndarray, "v k"]]
    draw_tastes: Callable[[int, np.random.Generator], Float[np.ndarray, "u k"]]
    match: Callable[..., Float[np.ndarray, "n"]]  # of tastes and experiences [n, k]
    class_probabilities: Callable[..., Float[np.ndarray, "n 3"]]  # of biases, tastes, qualities
    business_bias: float  # standard deviation
    shape: Shape
    writer: type[ReviewWriter]
    read: Callable[[str], Facts]  # what a text says


def draw_tastes(users: int, rng: np.random.Generator) -> Float[np.ndarray, "u k"]:
    """Tastes of length 1, most of them for one to three aspects."""
    taste = rng.dirichlet(np.full(len(ASPECTS), TASTE_CONCENTRATION), users)
    return taste / np.linalg.norm(taste, axis=1, keepdims=True)


def _draw_cares(users: int, rng: np.random.Generator) -> Float[np.ndarray, "u k"]:
    """Tastes of length 1 for `CARED_FOR` aspects alike."""
    rank = rng.random((users, len(ASPECTS))).argsort(axis=1).argsort(axis=1)
    return (rank < CARED_FOR) / np.sqrt(CARED_FOR)


def _draw_kinds(users: int, rng: np.random.Generator) -> Float[np.ndarray, "u k"]:
    return np.eye(len(STYLES))[rng.integers(len(STYLES), size=users)]


def _usual_of_aspects(rng: np.random.Generator) -> Float[np.ndarray, "c k"]:
    return rng.normal(scale=CUISINE_QUALITY, size=(len(CUISINES), len(ASPECTS)))


def _own_of_aspects(businesses: int, rng: np.random.Generator) -> Float[np.ndarray, "v k"]:
    return rng.normal(scale=np.sqrt(1 - CUISINE_QUALITY**2), size=(businesses, len(ASPECTS)))


def _usual_of_opinions(rng: np.random.Generator) -> Float[np.ndarray, "c k"]:
    return np.zeros((len(CUISINES), len(STYLES)))


def _opinion_of_each_kind(businesses: int, rng: np.random.Generator) -> Float[np.ndarray, "v k"]:
    return rng.choice(OPINIONS, size=(businesses, len(STYLES)))


def _opinion_of_all(businesses: int, rng: np.random.Generator) -> Float[np.ndarray, "v k"]:
    return np.repeat(rng.choice(OPINIONS, size=(businesses, 1)), len(STYLES), axis=1)


def _product(
    taste: Float[np.ndarray, "n k"], experience: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "n"]:
    return (taste * experience).sum(1)


def _worst(
    taste: Float[np.ndarray, "n k"], experience: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "n"]:
    worst = np.where(taste > 0, experience, np.inf).min(axis=1)
    return WORST_SCALE * (worst - WORST_MEAN)


def _classes_by_product(
    bias: Float[np.ndarray, "n"],
    taste: Float[np.ndarray, "n k"],
    quality: Float[np.ndarray, "n k"],
) -> Float[np.ndarray, "n 3"]:
    return class_probabilities(bias + _product(taste, quality), NOISE_VARIANCE)


def _classes_by_worst(
    bias: Float[np.ndarray, "n"],
    taste: Float[np.ndarray, "n k"],
    quality: Float[np.ndarray, "n k"],
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent): the worst experience is below x unless each one is above."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    below = np.zeros((bias.size, 2))  # P(z < cut): bad, up to good
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        match = star_cuts()[2:] - (bias + STAR_NOISE * node)[:, None]
        least = match / WORST_SCALE + WORST_MEAN  # [n, 2]
        above = norm.sf((least[:, :, None] - quality[:, None]) / VISIT_NOISE)  # [n, 2, k]
        below += weight * (1 - np.where(taste[:, None] > 0, above, 1).prod(axis=2))
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def class_probabilities(
    liking: Float[np.ndarray, "n"], variance: float | Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) of visits whose liking is normal."""
    return _between(star_cuts()[2:], liking, variance)


def star_probabilities(
    liking: Float[np.ndarray, "n"], variance: float | Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n 5"]:
    """P(one to five stars) of visits whose liking is normal."""
    return _between(star_cuts(), liking, variance)


def _between(
    cuts: Float[np.ndarray, "c"],
    liking: Float[np.ndarray, "n"],
    variance: float | Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n c+1"]:
    deviation = np.broadcast_to(np.sqrt(variance), liking.shape)[:, None]
    below = ndtr((cuts - liking[:, None]) / deviation)
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


@functools.cache
def star_cuts() -> Float[np.ndarray, "4"]:
    """The likings at which the stars change."""
    spread = 1 + USER_BIAS**2 + BUSINESS_BIAS**2 + NOISE_VARIANCE
    return norm.ppf(np.cumsum(_STAR_SHARES)[:-1], scale=np.sqrt(spread))


_ASPECTS = Family(
    draw_usual=_usual_of_aspects,
    draw_own=_own_of_aspects,
    draw_tastes=draw_tastes,
    match=_product,
    class_probabilities=_classes_by_product,
    business_bias=BUSINESS_BIAS,
    shape=Shape(),
    writer=ReviewWriter,
    read=read_facts,
)
_ASPECTS_NOISY = dataclasses.replace(_ASPECTS, shape=_NOISY, writer=NoisyWriter)
_KINDS = dataclasses.replace(
    _ASPECTS_NOISY,
    draw_usual=_usual_of_opinions,
    draw_own=_opinion_of_each_kind,
    draw_tastes=_draw_kinds,
    business_bias=0.0,
    writer=StyleWriter,
    read=read_style,
)
FAMILIES: dict[FamilyName, Family] = {
    "aspects": _ASPECTS,
    "aspects_noisy": _ASPECTS_NOISY,
    "kinds": _KINDS,
    "null": dataclasses.replace(_KINDS, draw_own=_opinion_of_all),
    "veto": dataclasses.replace(
        _ASPECTS_NOISY,
        draw_tastes=_draw_cares,
        match=_worst,
        class_probabilities=_classes_by_worst,
    ),
}
