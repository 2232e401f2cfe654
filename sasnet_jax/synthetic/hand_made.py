"""The hand-made model: what a person would build who knows how a synthetic world works.

In: a corpus, and what its texts and stars say. Out: probabilities for its test reviews. A logistic
regression gets the world's own formula, fed with simple sums over a target's context, beside how
often the reviews of both sides were of each class. A model that learns what matters in a world
gets as far.

- `aspects`: tastes of length 1 from what a user speaks of, praise per mention of an aspect, stars
  minus what the words explain, each shrunk, and the products of tastes and qualities.
- `veto`: the same, but instead of the products the worst quality of each set of aspects that may
  be cared for, weighted by how likely the user's words make the set.
- `kinds`: how likely the user's words make each kind, and the stars of the business's reviews,
  weighted by how likely their words make their writers of each kind; and the products.
- `null`: counts and mean stars alone.
"""

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int32
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sasnet_jax.corpus.contexts import averaging_matrix, contexts_of
from sasnet_jax.corpus.corpus import CLASSES, Corpus
from sasnet_jax.corpus.counts import SMOOTHING, class_shares
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.corpus.splits import SPLITS
from sasnet_jax.scores import metrics
from sasnet_jax.synthetic import opinions, tastes
from sasnet_jax.synthetic.families import FamilyName
from sasnet_jax.synthetic.text import Words
from sasnet_jax.synthetic.vocabulary import ASPECTS

_MOST_ROWS = 100_000  # of training and of validation
_USUAL_STARS = 3.6
_PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)  # C
_FAVORITE = 5.0  # mentions that "what matters most to me" counts as
_TASTE, _QUALITY, _USER, _BUSINESS = 0.4, 0.5, 2.0, 4.0  # shrinkage, in mentions or reviews
_OPINION = 1.5


def predict(
    corpus: Corpus, words: Words, targets: Int32[np.ndarray, "n"], world: FamilyName
) -> Float[np.ndarray, "n 3"]:
    """P(bad, good, excellent) of the targets; the penalty is the best on validation.

    Args:
      corpus: whose contexts are seen.
      words: what its texts say; stars of 0 are not known.
      targets: test reviews.
      world: the family.
    """
    facts, rows = _facts(words), {split: corpus.rows(split)[:_MOST_ROWS] for split in SPLITS}
    rows["test"] = targets
    inputs = {split: _features(corpus, facts, rows[split], world) for split in SPLITS}
    label = {split: corpus.label[rows[split]] for split in SPLITS}
    models = []
    for penalty in _PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
        models.append(model.fit(inputs["train"], label["train"]))

    def validation_loss(model: Pipeline) -> float:
        return metrics.log_loss(label["validation"], _probability(model, inputs["validation"]))

    return _probability(min(models, key=validation_loss), inputs["test"])


def _probability(model: Pipeline, inputs: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n 3"]:
    """0 for a class without a training review."""
    probability = np.zeros((len(inputs), len(CLASSES)))
    if len(inputs):
        probability[:, model.classes_] = model.predict_proba(inputs)
    return probability


def _facts(words: Words) -> dict[str, Float[np.ndarray, "reviews _"]]:
    """What each review says, in columns that can be summed."""
    mentioned = (words.level >= 0).astype(float)
    praise = np.where(words.level >= 0, words.level - 2.0, 0.0)
    spoken = np.where(words.mentions > 0, words.order[:, 0], -1)
    first, favorite = (
        (index[:, None] == np.arange(len(ASPECTS))).astype(float)
        for index in (spoken, words.favorite)
    )
    care = mentioned + first + _FAVORITE * favorite
    known = (words.stars > 0)[:, None].astype(float)
    stars = known * (words.stars[:, None] - _USUAL_STARS)
    explained = (care * praise).sum(1, keepdims=True) / np.maximum(care.sum(1, keepdims=True), 1)
    label = RatingScale().labels(words.stars.astype(np.float32), len(CLASSES))
    sets = tastes.log_words(tastes.listed_tastes(), words).T
    style = opinions.log_kinds(words)
    kind = softmax(style, axis=1)
    return {
        "n": np.ones_like(known),
        "known": known,
        "stars": stars,
        "beyond": known * (stars - explained),
        "classes": known * (label[:, None] == np.arange(len(CLASSES))),
        "mentioned": mentioned,
        "praise": praise,
        "care": care,
        "sets": sets,
        "style": style,
        "known_by_kind": known * kind,
        "stars_by_kind": stars * kind,
    }


def _features(
    corpus: Corpus,
    facts: dict[str, Float[np.ndarray, "reviews _"]],
    rows: Int32[np.ndarray, "n"],
    world: FamilyName,
) -> Float[np.ndarray, "n f"]:
    sums = []
    for context in contexts_of(corpus, "exclude"):
        seen: scipy.sparse.csr_matrix = averaging_matrix(context, rows).sign()
        sums.append({name: seen @ column for name, column in facts.items()})
    user, business = sums
    shares = class_shares(corpus.label[corpus.rows("train")], len(CLASSES))
    features = []
    for side, shrink in zip(sums, (_USER, _BUSINESS), strict=True):
        smoothed = (side["classes"] + SMOOTHING * shares) / (side["known"] + SMOOTHING)
        features += [np.log(smoothed), np.log1p(side["known"])]
        features.append(side["stars"] / (side["known"] + shrink))
    if world == "kinds":
        kind = softmax(user["style"], axis=1)
        opinion = business["stars_by_kind"] / (business["known_by_kind"] + _OPINION)
        features += [opinion, kind, kind * opinion, (kind * opinion).sum(1, keepdims=True)]
    elif world != "null":
        features += _of_aspects(user, business, world == "veto")
    return np.hstack(features)


def _of_aspects(
    user: dict[str, Float[np.ndarray, "n _"]],
    business: dict[str, Float[np.ndarray, "n _"]],
    veto: bool,
) -> list[Float[np.ndarray, "n _"]]:
    quality = business["praise"] / (business["mentioned"] + _QUALITY)
    taste = user["care"] + _TASTE
    taste /= np.linalg.norm(taste, axis=1, keepdims=True)
    features = [taste, quality]
    for side, shrink in ((user, _USER), (business, _BUSINESS)):
        features += [side["praise"] / (side["n"] + shrink)]
        features += [side["beyond"] / (side["known"] + shrink)]
    if not veto:
        return [*features, (taste[:, :, None] * quality[:, None, :]).reshape(len(taste), -1)]
    cared = tastes.listed_tastes() > 0
    worst = np.where(cared, quality[:, None], np.inf).min(axis=2)  # [n, sets]
    mean = quality @ cared.T
    weight = softmax(user["sets"], axis=1)
    return features + [(weight * match).sum(1, keepdims=True) for match in (worst, mean)]
