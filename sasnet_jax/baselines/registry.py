"""The registry of baselines: what each one is (paper section 2.5, docs/design.md 5).

A baseline is a value: its name, what it sees, what stands for the texts that it reads, and how it
is fitted. The value is written with the results, so nothing ever parses a name.

To add a baseline, add a line to `KINDS`, and one to `FITS` if it is fitted in a new way. It is then
fitted, saved, compared and shown like the others.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from jaxtyping import Float, Float32, Int8

from sasnet_jax.baselines import logistic, svm
from sasnet_jax.baselines.protocol import Candidate
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.counts import class_shares

# Of the other reviews of a target's user and business; "target": the review to be predicted itself.
Sees = Literal["nothing", "stars", "text", "text+stars", "target"]
TextFeatures = Literal["tfidf", "embeddings"]
Labels: TypeAlias = dict[str, Int8[np.ndarray, "_"]]  # the labels of each split

MAJORITY = "majority"
BIAS = "bias"
ORACLE = "oracle"  # the best baseline that sees the target: a ceiling, not a baseline


class Description(msgspec.Struct, kw_only=True, frozen=True):
    """What a baseline is, as written with its results."""

    label: str  # its name in tables
    sees: Sees
    features: TextFeatures | None  # what represents a text; None if it sees no text
    store: str | None  # folder name of the store it reads; None for other features
    fit: str  # of FITS

    @property
    def is_ceiling(self) -> bool:
        """Whether it reads the review to be predicted, whatever the protocol."""
        return self.sees == "target"

    @property
    def reads_context(self) -> bool:
        """Whether it depends on the other reviews, and so on the protocol."""
        return self.sees not in ("nothing", "target")

    @property
    def description(self) -> dict[str, Any]:
        """What it is, without its results."""
        return {name: getattr(self, name) for name in Description.__struct_fields__}


class Baseline(Description, kw_only=True, frozen=True):
    """One baseline."""

    name: str  # the key of its results, and the stem of its predictions' file


class Fitted(NamedTuple):
    """A classifier, and what was chosen for it on validation."""

    candidate: int  # which of the candidate inputs
    predict: Callable[[Float32[np.ndarray, "n f"]], Float[np.ndarray, "n c"]]
    chosen: dict[str, Any]


def _fit_shares(candidates: Sequence[Candidate], label: Labels, seed: int, name: str) -> Fitted:
    """Predicts the class shares of the training reviews."""
    shares = class_shares(label["train"], int(label["train"].max()) + 1)
    return Fitted(0, lambda inputs: np.tile(shares, (len(inputs), 1)).astype(np.float64), {})


def _fit_svm(candidates: Sequence[Candidate], label: Labels, seed: int, name: str) -> Fitted:
    index, model, chosen = svm.fit(candidates, label, seed, name)
    return Fitted(index, model.predict, chosen)


def _fit_logistic(candidates: Sequence[Candidate], label: Labels, seed: int, name: str) -> Fitted:
    index, model, chosen = logistic.fit(candidates, label, seed, name)
    predict = functools.partial(logistic.predict, model, classes=len(model.classes_))
    return Fitted(index, predict, chosen)


# From candidate inputs (the best is chosen on validation), labels, a seed and the baseline's name.
FITS: dict[str, Callable[[Sequence[Candidate], Labels, int, str], Fitted]] = {
    "shares": _fit_shares,
    "svm": _fit_svm,
    "logistic": _fit_logistic,
}


class Kind(NamedTuple):
    """A line of the registry: one baseline, or one for TF-IDF and for each store if it sees texts.

    `{text}` in name and label stands for these features. A name ends in how the baseline is fitted;
    one that sees the target has `oracle` in it, and a `fit` that reports its `tuned_accuracy`.
    """

    name: str
    label: str
    sees: Sees
    fit: str


KINDS: tuple[Kind, ...] = (
    Kind(MAJORITY, "majority", "nothing", "shares"),
    Kind(BIAS, "bias (class counts)", "stars", "logistic"),
    Kind("{text}_svm", "{text} + SVM", "text", "svm"),
    Kind("{text}_stars_svm", "{text} + SVM, stars too", "text+stars", "svm"),
    Kind("{text}_logistic", "{text} + logistic regression", "text", "logistic"),
    Kind(
        "{text}_stars_logistic",
        "{text} + logistic regression, stars too",
        "text+stars",
        "logistic",
    ),
    Kind("{text}_oracle", "oracle of {text}", "target", "svm"),
)


def baselines_of(stores: Sequence[str]) -> list[Baseline]:
    """Every baseline, in the order of tables: first without texts, then TF-IDF, then each store.

    Args:
      stores: the names of the stores' folders.

    Raises:
      UserError: two baselines would have the same name.
    """
    texts: list[tuple[TextFeatures, str | None]] = [("tfidf", None)]
    texts += [("embeddings", store) for store in stores]
    baselines = [_baseline(kind, None, None) for kind in KINDS if not _sees_text(kind)]
    baselines += [_baseline(kind, *text) for text in texts for kind in KINDS if _sees_text(kind)]
    first: dict[str, Baseline] = {}
    for baseline in baselines:
        other = first.setdefault(baseline.name, baseline)
        if other is not baseline:
            raise UserError(
                f"--store: the baselines {other.label!r} and {baseline.label!r} would both be "
                f"called {baseline.name}: rename the folder of one store"
            )
    return baselines


def _baseline(kind: Kind, features: TextFeatures | None, store: str | None) -> Baseline:
    return Baseline(
        name=kind.name.format(text=store or "tfidf"),
        label=kind.label.format(text=store or "TF-IDF"),
        sees=kind.sees,
        features=features,
        store=store,
        fit=kind.fit,
    )


def _sees_text(kind: Kind) -> bool:
    return kind.sees in ("text", "text+stars", "target")
