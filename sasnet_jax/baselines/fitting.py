"""Fits every baseline and lets it predict (paper section 2.5, docs/design.md 5).

In: the baselines (`registry`), a protocol, and the texts as TF-IDF and embeddings. Out: each
baseline's probabilities for the validation and test reviews, and what was chosen for it on
validation.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer

from sasnet_jax.baselines import protocol, registry
from sasnet_jax.baselines.protocol import Candidate, Counts, Features, Inputs, Protocol
from sasnet_jax.baselines.registry import Baseline
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store, fit_zscore
from sasnet_jax.scores.predictions import EVALUATED

_TFIDF_TERMS = 5000  # the most frequent ones
_COUNTS: tuple[Counts, ...] = ("all_others", "out_of_fold")
_SMOOTHINGS = (1.0, 5.0, 20.0)  # reviews
_STAR_WEIGHTS = (1.0, 3.0)  # of the stars, relative to the text's weight of 1
_Option: TypeAlias = tuple[Candidate, dict[str, Any]]  # inputs, and what they were made with


class Prediction(NamedTuple):
    """A baseline's probabilities for the validation reviews, then for the test reviews."""

    baseline: Baseline
    probability: Float[np.ndarray, "n c"]
    chosen: dict[str, Any]


def predict_all(
    baselines: Sequence[Baseline],
    asked: Protocol,
    corpus: Corpus,
    stores: Sequence[Store],
    seed: int,
    done: Mapping[str, dict[str, Any]],
) -> Iterator[Prediction]:
    """Fits the baselines one by one.

    Args:
      baselines: of `registry.baselines_of`, in its order.
      asked: what may be learned from and seen.
      corpus: the corpus whose texts TF-IDF reads.
      stores: the stores that the baselines read.
      seed: seed of the rows to tune on.
      done: what was chosen for each baseline that is already fitted, by name.
    """
    label = {split: asked.labels(split) for split in asked.rows}
    chosen = dict(done)
    for _, group in itertools.groupby(
        baselines, key=lambda baseline: (baseline.features, baseline.store)
    ):
        left = [baseline for baseline in group if baseline.name not in done]
        if not left:
            continue
        given = _Given(asked, _features(left[0], corpus, stores, asked), chosen)
        for baseline in left:
            options = given.options(baseline)
            candidates = [candidate for candidate, _ in options]
            fitted = registry.FITS[baseline.fit](candidates, label, seed, baseline.name)
            best, choice = options[fitted.candidate]
            parts = [fitted.predict(protocol.joined(best, split)) for split in EVALUATED]
            chosen[baseline.name] = fitted.chosen | choice
            yield Prediction(baseline, np.concatenate(parts), chosen[baseline.name])


def best_oracle(baselines: Sequence[Baseline], chosen: Mapping[str, dict[str, Any]]) -> Baseline:
    """The oracle with the best validation accuracy; the earliest one of equals."""
    oracles = [baseline for baseline in baselines if baseline.is_ceiling]
    return max(oracles, key=lambda baseline: chosen[baseline.name]["tuned_accuracy"])


def _features(
    baseline: Baseline, corpus: Corpus, stores: Sequence[Store], fitted_on: Protocol
) -> Features | None:
    """What stands for the text of every review, fitted on the training reviews."""
    train = fitted_on.rows["train"]
    if baseline.features == "tfidf":
        texts = corpus.texts().to_list()
        vectorizer = TfidfVectorizer(max_features=_TFIDF_TERMS, sublinear_tf=True, dtype=np.float32)
        return vectorizer.fit([texts[row] for row in train]).transform(texts)
    if baseline.features == "embeddings":
        (table,) = (store.table for store in stores if store.name == baseline.store)
        return fit_zscore(table, train)(table)
    return None


class _Given:
    """The inputs that baselines with the same features may get."""

    def __init__(
        self, asked: Protocol, features: Features | None, chosen: Mapping[str, dict[str, Any]]
    ):
        self.asked, self.features, self.chosen = asked, features, chosen

    @functools.cached_property
    def averages(self) -> Inputs:
        assert self.features is not None
        return protocol.scaled(protocol.averages(self.asked, self.features))

    @functools.cached_property
    def stars(self) -> Inputs:
        """The stars, with the options chosen for the baseline that sees nothing else."""
        bias = self.chosen[registry.BIAS]
        return protocol.scaled(protocol.stars(self.asked, bias["counts"], bias["smoothing"]))

    def options(self, baseline: Baseline) -> list[_Option]:
        """What the classifier's inputs may be, to be chosen on validation."""
        rows = self.asked.rows
        match baseline.sees:
            case "nothing":
                nothing = {split: np.zeros((rows[split].size, 0), np.float32) for split in rows}
                return [([(1.0, nothing)], {})]
            case "stars":
                options: list[_Option] = []
                for counts, smoothing in itertools.product(_COUNTS, _SMOOTHINGS):
                    stars = protocol.scaled(protocol.stars(self.asked, counts, smoothing))
                    choice = {"counts": counts, "smoothing": smoothing}
                    options.append(([(1.0, stars)], choice))
                return options
            case "text":
                return [([(1.0, self.averages)], {})]
            case "text+stars":
                return [
                    ([(1.0, self.averages), (weight, self.stars)], {"star_weight": weight})
                    for weight in _STAR_WEIGHTS
                ]
            case "target":
                assert self.features is not None
                own = protocol.scaled(protocol.own(self.asked, self.features))
                reads = f"the target's own text ({baseline.store or baseline.features})"
                return [([(1.0, own)], {"reads": reads})]
