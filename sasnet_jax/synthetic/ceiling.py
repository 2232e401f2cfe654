"""Measures what a synthetic world's rules and the other reviews tell of a target.

In: a corpus of synthetic reviews. Out, for truth.json: what Bayesian inference by the rules of the
world (`tastes.py`, `opinions.py`) and the hand-made model (`hand_made.py`) reach on its test
reviews. Like SASNet, both see the context of a target (docs/design.md 5): its texts alone, or its
stars too. They know nothing of the target, and of the latent truth only the distributions and what
each cuisine is known for.

The inference is one concrete predictor, not a bound. In `kinds` and `null` it is exact; in the
others slightly better predictors exist, as likings count as normal. Its probabilities are
calibrated: on the targets it has the accuracy that it expects, within chance.
"""

import msgspec
import numpy as np
import scipy.sparse
from jaxtyping import Float, Int, Int8, Int32

from sasnet_jax.cli import ProgressBar
from sasnet_jax.corpus.contexts import averaging_matrix, contexts_of
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.scores import metrics
from sasnet_jax.synthetic import hand_made, opinions, tastes
from sasnet_jax.synthetic.families import FAMILIES, FamilyName
from sasnet_jax.synthetic.text import Words, read_words
from sasnet_jax.synthetic.world import Reached, Truth, make_world

_MOST_TARGETS = 10_000  # the first of the test split; an inference takes 20 ms each


def measure(corpus: Corpus, truth: Truth) -> Truth:
    """Adds to a corpus's truth what the inference and the hand-made model reach.

    Without a test review, or two classes to learn from, nothing is added.
    """
    targets, training = corpus.rows("test")[:_MOST_TARGETS], corpus.rows("train")
    if not targets.size or np.unique(corpus.label[training]).size < 2:
        return truth
    usual = make_world(truth.reviews, truth.seed, world=truth.world).usual
    words = read_words(corpus.texts(), FAMILIES[truth.world].read)
    known = {"texts": words.stars}
    if (words.stars != corpus.stars).any():  # otherwise the texts tell all stars
        known["texts_and_stars"] = corpus.stars.astype(int)
    label, user = corpus.label[targets], corpus.user[targets]
    inference, by_hand = {}, {}
    for sees, stars in known.items():
        told = words._replace(stars=stars)
        inferred = infer(corpus, told, targets, usual, truth.world, truth.seed)
        inference[sees] = _reached(label, user, inferred)
        by_hand[sees] = _reached(label, user, hand_made.predict(corpus, told, targets, truth.world))
    return msgspec.structs.replace(
        truth, test_reviews=targets.size, inference=inference, hand_made=by_hand
    )


def infer(
    corpus: Corpus,
    words: Words,
    targets: Int32[np.ndarray, "n"],
    usual: Float[np.ndarray, "c k"],
    world: FamilyName,
    seed: int,
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) of the targets, by the rules of the world.

    Args:
      corpus: whose contexts are seen.
      words: what its texts say; stars of 0 are not known.
      targets: reviews.
      usual: quality that each cuisine is known for.
      world: the family.
      seed: of sampled users.
    """
    user, business = (
        averaging_matrix(context, targets).sign() for context in contexts_of(corpus, "exclude")
    )
    if world in ("kinds", "null"):
        return opinions.predict(words, user, business, all_agree=world == "null")
    match = tastes.Worst if world == "veto" else tastes.Product
    rng = np.random.default_rng([seed, 2])
    businesses: dict[bytes, tastes.Business] = {}
    probability = np.empty((targets.size, 3))
    bar = ProgressBar(range(targets.size), desc="measuring the ceiling", unit="review", delay=5)
    for index in bar:
        rows = _rows(business, index)
        if (key := rows.tobytes()) not in businesses:
            businesses[key] = tastes.infer_business(words.take(rows), usual, match, rng)
        writer = tastes.infer_user(words.take(_rows(user, index)), usual, match, rng)
        probability[index] = tastes.predict(writer, businesses[key], match)
    return probability


def _rows(seen: scipy.sparse.csr_matrix, index: int) -> Int[np.ndarray, "n"]:
    return np.sort(seen.indices[seen.indptr[index] : seen.indptr[index + 1]])


def _reached(
    label: Int8[np.ndarray, "n"],
    user: Int32[np.ndarray, "n"],
    probability: Float[np.ndarray, "n 3"],
) -> Reached:
    best = probability.max(axis=1)
    # What is expected of the reviews of one user depends on what is known of that user.
    by_user = np.bincount(user, best - best.mean())
    return Reached(
        accuracy=float((probability.argmax(axis=1) == label).mean()),
        log_loss=metrics.log_loss(label, probability),
        expected_accuracy=float(best.mean()),
        standard_error=float(np.linalg.norm(by_user) / best.size),
    )
