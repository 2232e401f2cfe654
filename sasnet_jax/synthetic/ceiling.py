"""How well a predictor can do that knows a synthetic world's rules, but only the other reviews.

In: a corpus of synthetic reviews. Out, for truth.json: what Bayesian inference by the rules of the
world (`tastes.py`, `opinions.py`) and the hand-made model (`hand_made.py`) reach on its test
reviews. Both see of a target what SASNet sees too: its context (DESIGN section 5), by its texts
alone or with its stars. Nothing is known of the target, and nothing of the latent truth but the
distributions and what each cuisine is known for.

The inference is one concrete predictor: there is none better in `kinds` and `null`, and slightly
better ones in the others, where likings count as normal. It is well calibrated: the accuracy that
it expects is the one that it has on the targets, within chance.
"""

from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Int32

from sasnet_jax.cli import ProgressBar
from sasnet_jax.corpus.contexts import averaging_matrix, contexts_of
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.scores import metrics
from sasnet_jax.synthetic import hand_made, opinions, tastes
from sasnet_jax.synthetic.families import FAMILIES
from sasnet_jax.synthetic.text import Words, read_words
from sasnet_jax.synthetic.world import make_world


def measure(corpus: Corpus, reviews: int, seed: int, world: str) -> dict[str, Any]:
    """What the world's rules and a model made by hand reach on all test reviews.

    Args:
      corpus: prepared from synthetic reviews.
      reviews: how many were generated,
      seed: and from which seed.
      world: the family, of FAMILIES.

    Returns:
      For truth.json: `inference` and `hand_made`, each by what they see (`texts`,
      `texts_and_stars`); nothing where there is no test review, or nothing to learn from.
    """
    targets, training = corpus.rows("test"), corpus.rows("train")
    if not targets.size or np.unique(corpus.label[training]).size < 2:
        return {}
    usual = make_world(reviews, seed, world=world).usual
    words = read_words(corpus.texts(), FAMILIES[world].read)
    truth: dict[str, Any] = {"inference": {}, "hand_made": {}}
    known = {"texts": words.stars, "texts_and_stars": corpus.stars.astype(int)}
    for sees, stars in known.items():
        if sees != "texts" and (stars == words.stars).all():  # each text tells its stars
            for of_whom in truth.values():
                of_whom[sees] = of_whom["texts"]
            break
        told = words._replace(stars=stars)
        probability = infer(corpus, told, targets, usual, world, seed)
        truth["inference"][sees] = _expectation(probability) | _accuracy(
            corpus, targets, probability
        )
        probability = hand_made.predict(corpus, told, world)
        truth["hand_made"][sees] = _accuracy(corpus, targets, probability)
    return truth


def infer(
    corpus: Corpus,
    words: Words,
    targets: Int32[np.ndarray, "n"],
    usual: Float[np.ndarray, "c k"],
    world: str,
    seed: int,
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) of the targets, by the rules of the world.

    Args:
      corpus: whose contexts,
      words: and what its texts say; stars of 0 are not known.
      targets: reviews.
      usual: quality that each cuisine is known for.
      world: the family.
      seed: of the samples of users.
    """
    contexts = [
        averaging_matrix(context, targets).sign() for context in contexts_of(corpus, "exclude")
    ]
    if world in ("kinds", "null"):
        return opinions.predict(words, *contexts, all_agree=world == "null")
    match = tastes.Worst if world == "veto" else tastes.Product
    rng = np.random.default_rng([seed, 2])
    of_user, of_business = ([_rows(side, i) for i in range(targets.size)] for side in contexts)
    users = tastes.Users(words, np.unique(contexts[0].indices), usual, match, rng)
    businesses: dict[bytes, tastes.Business] = {}
    probability = np.empty((targets.size, 3))
    bar = ProgressBar(
        zip(of_user, of_business, strict=True),
        total=targets.size,
        desc="measuring the ceiling",
        unit="review",
        delay=5,
        mininterval=1,
    )
    for index, (by_user, of_place) in enumerate(bar):
        key = of_place.tobytes()
        if key not in businesses:
            businesses[key] = tastes.infer_business(words.take(of_place), usual, match, rng)
        probability[index] = tastes.predict(users.infer(by_user), businesses[key], match)
    return probability


def _rows(seen: scipy.sparse.csr_matrix, index: int) -> Int[np.ndarray, "n"]:
    return np.sort(seen.indices[seen.indptr[index] : seen.indptr[index + 1]])


def _expectation(probability: Float[np.ndarray, "n 3"]) -> dict[str, float]:
    """The accuracy that a predictor expects of itself, with the standard error of that mean."""
    best = probability.max(axis=1)
    return {
        "expected_accuracy": float(best.mean()),
        "standard_error": float(best.std() / np.sqrt(best.size)),
    }


def _accuracy(
    corpus: Corpus, targets: Int32[np.ndarray, "n"], probability: Float[np.ndarray, "n 3"]
) -> dict[str, float]:
    label = corpus.label[targets]
    return {
        "accuracy": float((probability.argmax(axis=1) == label).mean()),
        "log_loss": metrics.log_loss(label, probability),
        "test_reviews": int(targets.size),
    }
