"""Every baseline, fitted and asked (paper section 2.5, DESIGN section 5).

In: a protocol, and features of every review: TF-IDF and embeddings. Out: of each baseline its
probabilities of the validation and test reviews, and what was chosen for it on validation.
"""

import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer

from sasnet_jax.data import embeddings
from sasnet_jax.data.corpus import Corpus
from sasnet_jax.evaluation import logistic, protocol, svm
from sasnet_jax.evaluation.predictions import EVALUATED
from sasnet_jax.evaluation.protocol import Candidate, Counts, Features, Protocol

ORACLE = "oracle"  # reads the review to be predicted: a ceiling, never to be compared with
_TFIDF_TERMS = 5000  # the most frequent ones
_COUNTS: tuple[Counts, ...] = ("all_others", "out_of_fold")
_SMOOTHINGS = (1.0, 5.0, 20.0)  # reviews
_STAR_WEIGHTS = (1.0, 3.0)  # of the stars beside the text, whose own is 1


class Prediction(NamedTuple):
    """A baseline's probabilities of the validation reviews, then the test reviews."""

    name: str
    probability: Float[np.ndarray, "n c"]
    chosen: dict[str, Any]


def features_of(
    corpus: Corpus, stores: Sequence[embeddings.Store], fitted_on: Protocol
) -> Iterator[tuple[str, Features]]:
    """TF-IDF, then each store z-scored, of every review; fitted on the training reviews."""
    train = fitted_on.rows["train"]
    texts = corpus.texts().to_list()
    vectorizer = TfidfVectorizer(max_features=_TFIDF_TERMS, sublinear_tf=True, dtype=np.float32)
    vectorizer.fit([texts[row] for row in train])
    yield "tfidf", vectorizer.transform(texts)
    for store in stores:
        yield store.name, embeddings.fit_zscore(store.table, train)(store.table)


def names(features: Sequence[str]) -> list[str]:
    """The models, given the names of the features."""
    return ["majority", "bias", *itertools.chain(*map(_of, features)), ORACLE]


def _of(feature: str) -> list[str]:
    kinds = ("svm", "svm_stars", "logistic", "logistic_stars")
    return [f"{feature}_{kind}" for kind in kinds]


def predict_all(
    asked: Protocol,
    features: Iterable[tuple[str, Features]],
    seed: int,
    done: Container[str] = (),
) -> Iterator[Prediction]:
    """Fits one baseline after the other, less those that are `done`.

    They are those of `names`, but that there is an oracle for each of the features, called
    FEATURES_oracle; `best_oracle` says which one is that of `names`.
    """
    label = {split: asked.labels(split) for split in asked.rows}
    evaluated = sum(label[split].size for split in EVALUATED)
    yield Prediction("majority", np.tile(asked.shares(), (evaluated, 1)).astype(np.float64), {})
    options = list(itertools.product(_COUNTS, _SMOOTHINGS))
    rated = [protocol.scaled(protocol.stars(asked, *option)) for option in options]
    bias, index = _logistic("bias", [[(1.0, block)] for block in rated], label, seed)
    counts, smoothing = options[index]
    yield bias._replace(chosen=bias.chosen | {"counts": counts, "smoothing": smoothing})
    for name, found in features:
        oracle = f"{name}_{ORACLE}"
        if all(model in done for model in (*_of(name), oracle)):
            continue
        text = protocol.scaled(protocol.averages(asked, found))
        alone = [[(1.0, text)]]
        with_stars = [[(1.0, text), (weight, rated[index])] for weight in _STAR_WEIGHTS]
        for kind, fit in (("svm", _svm), ("logistic", _logistic)):
            model = f"{name}_{kind}"
            if model not in done:
                yield fit(model, alone, label, seed)[0]
            if f"{model}_stars" not in done:
                one, chosen = fit(f"{model}_stars", with_stars, label, seed)
                yield one._replace(chosen=one.chosen | {"star_weight": _STAR_WEIGHTS[chosen]})
        if oracle not in done:
            own = protocol.scaled(protocol.own(asked, found))
            one = _svm(oracle, [[(1.0, own)]], label, seed)[0]
            yield one._replace(chosen=one.chosen | {"reads": f"the target's own text ({name})"})


def best_oracle(chosen: Mapping[str, dict[str, Any]], features: Sequence[str]) -> str:
    """The oracle with the best validation accuracy, the earliest of equals, by what was chosen."""
    oracles = [f"{name}_{ORACLE}" for name in features]
    return max(oracles, key=lambda name: chosen[name]["tuned_accuracy"])


def _svm(
    name: str, candidates: Sequence[Candidate], label: dict[str, np.ndarray], seed: int
) -> tuple[Prediction, int]:
    index, model, chosen = svm.fit(candidates, label, seed, name)
    parts = [model.predict(protocol.joined(candidates[index], split)) for split in EVALUATED]
    return Prediction(name, np.concatenate(parts), chosen), index


def _logistic(
    name: str, candidates: Sequence[Candidate], label: dict[str, np.ndarray], seed: int
) -> tuple[Prediction, int]:
    index, model, chosen = logistic.fit(candidates, label, seed, name)
    classes = len(model.classes_)
    parts = [
        logistic.predict(model, protocol.joined(candidates[index], split), classes)
        for split in EVALUATED
    ]
    return Prediction(name, np.concatenate(parts), chosen), index
