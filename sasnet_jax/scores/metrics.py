"""Classification metrics of predicted probabilities (docs/design.md 5).

In: labels [n] and probabilities [n, c], of 3 or 5 classes. Out: structures of plain numbers, which
are JSON. A metric that has no value, because a class is absent or there is no review, is None, and
its reason is under "undefined": it is never NaN, and never a 0 that was not measured.
"""

from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from jaxtyping import Float, Int, Int8

from sasnet_jax.corpus.corpus import CLASS_NAMES, Count

# Groups of targets by the user's number of other reviews: name -> the smallest number.
HISTORIES = {"0": 0, "1": 1, "2-4": 2, "5-9": 5, "10+": 10}
BINS = 15  # of equal width over [0, 1], for the calibration error
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Loss: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]


class ClassScores(msgspec.Struct, kw_only=True, frozen=True):
    """How well one class is predicted."""

    support: Count  # reviews
    precision: Share | None
    recall: Share | None
    f1: Share | None
    undefined: dict[str, str]  # metric -> why it has no value


class BriefScores(msgspec.Struct, kw_only=True, frozen=True):
    """The main metrics of some reviews."""

    reviews: Count
    accuracy: Share | None
    macro_f1: Share | None
    log_loss: Loss | None  # nats
    undefined: dict[str, str]


class Scores(BriefScores, kw_only=True, frozen=True):
    """Every metric of some reviews."""

    weighted_f1: Share | None
    micro_f1: Share | None
    balanced_accuracy: Share | None
    quadratic_kappa: float | None
    calibration_error: Share | None
    expected_stars: float | None | msgspec.UnsetType = msgspec.UNSET  # of five classes only
    stars_rmse: float | None | msgspec.UnsetType = msgspec.UNSET
    per_class: dict[str, ClassScores]
    confusion: list[list[Count]]  # rows are the true classes
    by_history: dict[str, BriefScores] = {}  # by the user's number of other reviews


def log_loss(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> float:
    """Mean -log p(label), in nats, in float64; 0 if there is no review."""
    chosen = probability[np.arange(label.size), label].astype(np.float64)
    return _mean(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)))


def summarize(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> Scores:
    """Every metric of some reviews, except those by history.

    Macro F1 and balanced accuracy average over all classes, so they need a review of each. With 5
    classes, the metrics include the expected stars and their error against the stars rounded up.
    """
    classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    pairs = np.bincount(classes * label.astype(int) + predicted, minlength=classes**2)
    confusion = pairs.reshape(classes, classes)
    per_class = _per_class(confusion)
    support, f1, recall = (
        np.array([getattr(score, name) or 0.0 for score in per_class.values()])
        for name in ("support", "f1", "recall")
    )
    absent = " and ".join(
        f"no review is {name}" for name, score in per_class.items() if not score.support
    )
    kappa, no_kappa = _quadratic_kappa(confusion)
    values: dict[str, tuple[float, str]] = {
        "accuracy": (_mean(predicted == label), ""),
        "macro_f1": (f1.mean(), absent),
        "weighted_f1": (f1 @ support / max(label.size, 1), ""),
        "micro_f1": (
            _mean(predicted == label),
            "",
        ),  # with one label per review, it is the accuracy
        "balanced_accuracy": (recall.mean(), absent),
        "quadratic_kappa": (kappa, no_kappa),
        "log_loss": (log_loss(label, probability), ""),
        "calibration_error": (calibration_error(label, probability), ""),
    }
    if classes == 5:
        expected = probability.astype(np.float64) @ np.arange(1, 6)
        values["expected_stars"] = (_mean(expected), "")
        values["stars_rmse"] = (np.sqrt(_mean((expected - label - 1) ** 2)), "")
    if not label.size:
        values = {name: (0.0, "there is no review") for name in values}
    known: dict[str, Any] = _defined(values)
    return Scores(
        reviews=int(label.size),
        **known,
        undefined=_undefined(values),
        per_class=per_class,
        confusion=confusion.tolist(),
    )


def by_history(
    label: Int8[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
    history: Int[np.ndarray, "n"],
) -> dict[str, BriefScores]:
    """The main metrics by how many other reviews the user has (`history`), cold start first."""
    group = np.searchsorted(list(HISTORIES.values()), history, side="right") - 1
    return {
        name: brief(label[group == i], probability[group == i]) for i, name in enumerate(HISTORIES)
    }


def brief(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> BriefScores:
    """The main metrics of a slice."""
    every = summarize(label, probability)
    return BriefScores(
        reviews=every.reviews,
        accuracy=every.accuracy,
        macro_f1=every.macro_f1,
        log_loss=every.log_loss,
        undefined={k: why for k, why in every.undefined.items() if hasattr(BriefScores, k)},
    )


def reliability(
    label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]
) -> Float[np.ndarray, "bins 3"]:
    """Sums over reviews by confidence (the largest probability), in BINS bins of equal width.

    Returns:
      The reviews in each bin, their summed confidence, and how many are predicted correctly.
    """
    confidence = probability.max(axis=1).astype(np.float64)
    right = probability.argmax(axis=1) == label
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    summed = [
        np.bincount(place, x, minlength=BINS) for x in (np.ones(place.size), confidence, right)
    ]
    return np.stack(summed, axis=1).astype(np.float64)


def calibration_error(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> float:
    """The expected calibration error (Guo et al. 2017); 0 if there is no review.

    |accuracy - mean confidence| of each bin of `reliability`, weighted by its reviews.
    """
    _, confidence, right = reliability(label, probability).T
    return float(np.abs(confidence - right).sum() / max(label.size, 1))


def _per_class(confusion: Int[np.ndarray, "c c"]) -> dict[str, ClassScores]:
    """Precision, recall, F1 and number of reviews of each class."""
    scores_by_class = {}
    for i, name in enumerate(CLASS_NAMES[len(confusion)]):
        right, support, chosen = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
        none = "" if support else f"no review is {name}"
        never = "" if chosen else f"{name} is never predicted"
        values = {
            "precision": (right / max(chosen, 1), never),
            "recall": (right / max(support, 1), none),
            "f1": (2 * right / max(support + chosen, 1), none and never and f"{none}, and {never}"),
        }
        scores_by_class[name] = ClassScores(
            support=int(support), **_defined(values), undefined=_undefined(values)
        )
    return scores_by_class


def _quadratic_kappa(confusion: Int[np.ndarray, "c c"]) -> tuple[float, str]:
    """1 - disagreement / the disagreement of independent marginals, or why it is undefined.

    Disagreement is the squared distance of the classes in their order.
    """
    place = np.arange(len(confusion))
    distance = (place[:, None] - place[None]) ** 2
    expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / max(confusion.sum(), 1)
    disagreement = (distance * expected).sum()
    if not disagreement:
        return 0.0, "all reviews are of one class, and predicted so"
    return 1 - (distance * confusion).sum() / disagreement, ""


def _defined(values: dict[str, tuple[float, str]]) -> dict[str, float | None]:
    """Each value, or None if there is a reason against it."""
    return {name: None if reason else float(value) for name, (value, reason) in values.items()}


def _undefined(values: dict[str, tuple[float, str]]) -> dict[str, str]:
    """The reasons for the values that are undefined."""
    return {name: reason for name, (_, reason) in values.items() if reason}


def _mean(values: np.ndarray) -> float:
    return float(values.sum() / max(values.size, 1))
