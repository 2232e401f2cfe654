"""Bayesian inference where kinds of users have opinions of a business: `kinds`, `null`.

In: what the texts and stars of each target's context say. Out: the probabilities of its classes.

The reviews of a user tell their kind by style and their bias by stars, one apart from the other, as
the opinion behind each star is another's and as likely as any. The reviews of a business tell the
opinions of all kinds together: each is weighed with the kinds that its own style may be of. All
opinions are listed and biases are on a Gauss-Hermite grid, so only an integral is approximated. Of
another review's user or business nothing but that review is used.
"""

import itertools

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from scipy.special import softmax

from sasnet_jax.synthetic.families import (
    NOISE_VARIANCE,
    OPINIONS,
    USER_BIAS,
    class_probabilities,
    star_probabilities,
)
from sasnet_jax.synthetic.text import OWN_STYLE, Words
from sasnet_jax.synthetic.vocabulary import STYLES

_CHUNK = 20_000  # reviews at a time
_BIASES = 15  # of a user
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(_BIASES)
_BIAS, _BIAS_WEIGHT = USER_BIAS * _NODES, _WEIGHTS / _WEIGHTS.sum()


def log_kinds(words: Words) -> Float[np.ndarray, "n h"]:
    """Log-probability of each kind given a text's style, up to a constant."""
    other = (1 - OWN_STYLE) / (len(STYLES) - 1)
    return words.style * np.log(OWN_STYLE / other)


def predict(
    words: Words,
    user: scipy.sparse.csr_matrix,
    business: scipy.sparse.csr_matrix,
    *,
    all_agree: bool,
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) of each target.

    Args:
      words: of all reviews.
      user, business: which reviews are in each target's contexts [n, reviews].
      all_agree: whether all kinds are of one opinion (`null`).
    """
    kinds = 1 if all_agree else len(STYLES)
    style = log_kinds(words)[:, :kinds]
    of_kind = softmax(user @ style, axis=1)  # [n, h]
    of_bias = softmax(user @ _log_stars_by_bias(words.stars) + np.log(_BIAS_WEIGHT), axis=1)

    listed = np.array(list(itertools.product(range(OPINIONS.size), repeat=kinds)))  # [s, h]
    by_opinion = _stars_by_opinion(words.stars)  # [reviews, o]
    columns, told = business.tocsc(), np.zeros((business.shape[0], len(listed)))
    for rows in np.array_split(np.unique(business.indices), 1 + business.nnz // _CHUNK):
        kind = softmax(style[rows], axis=1)
        told += columns[:, rows] @ _log_reviews(kind, by_opinion[rows], listed)
    posterior = softmax(told, axis=1)  # [n, s]
    held = np.stack([listed == o for o in range(OPINIONS.size)], axis=2)  # [s, h, o]
    of_opinion = np.tensordot(posterior, held.astype(float), 1)  # [n, h, o]

    liking = (OPINIONS[:, None] + _BIAS).ravel()
    classes = class_probabilities(liking, NOISE_VARIANCE).reshape(OPINIONS.size, _BIASES, 3)
    return np.einsum("nh,nho,na,oac->nc", of_kind, of_opinion, of_bias, classes, optimize=True)


def _log_reviews(
    kind: Float[np.ndarray, "m h"],
    stars: Float[np.ndarray, "m o"],
    listed: Int[np.ndarray, "s h"],
) -> Float[np.ndarray, "m s"]:
    """Log-probability of each review's stars under the opinions of all kinds together."""
    likelihood = np.zeros((len(kind), len(listed)))
    for h in range(listed.shape[1]):
        likelihood += kind[:, h, None] * stars[:, listed[:, h]]
    return np.log(likelihood)


def _log_stars_by_bias(stars: Int[np.ndarray, "reviews"]) -> Float[np.ndarray, "reviews a"]:
    """Log-probability of stars given the user's bias, 0 where they are not known (0)."""
    by_opinion = [star_probabilities(opinion + _BIAS, NOISE_VARIANCE) for opinion in OPINIONS]
    table = np.vstack([np.zeros(_BIASES), np.log(np.mean(by_opinion, axis=0)).T])  # [6, a]
    return table[stars]


def _stars_by_opinion(stars: Int[np.ndarray, "reviews"]) -> Float[np.ndarray, "reviews o"]:
    """Probability of stars given an opinion, 1 where they are not known (0)."""
    known = star_probabilities(OPINIONS, NOISE_VARIANCE + USER_BIAS**2)  # [o, 5]
    return np.vstack([np.ones(OPINIONS.size), known.T])[stars]
