"""Classification metrics of predicted probabilities (docs/design.md 5).

In: labels [n] and probabilities [n, c], of 3 or 5 classes. Out: dictionaries of plain numbers, for
JSON. A metric that has no value, because a class is absent or there is no review, is None and its
reason stands under "undefined": never NaN, and never a 0 that was not measured.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int8

from sasnet_jax.corpus.corpus import CLASS_NAMES

# Groups of targets by the user's number of other reviews: name -> the smallest number.
HISTORIES = {"0": 0, "1": 1, "2-4": 2, "5-9": 5, "10+": 10}
BINS = 15  # of equal width over [0, 1], for the calibration error
_OF_A_SLICE = ("accuracy", "macro_f1", "log_loss")


def log_loss(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> float:
    """Mean -log p(label), in nats, in float64; 0 of no review."""
    chosen = probability[np.arange(label.size), label].astype(np.float64)
    return _mean(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)))


def summarize(
    label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]
) -> dict[str, Any]:
    """Every metric of some reviews, for evaluation.json and baselines.json.

    Macro F1 and balanced accuracy average over all classes, so they need a review of each. Of 5
    classes the expected stars too, and their error against the stars rounded up.
    """
    classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    pairs = np.bincount(classes * label.astype(int) + predicted, minlength=classes**2)
    confusion = pairs.reshape(classes, classes)
    per_class = _per_class(confusion)
    support, f1, recall = (
        np.array([one[name] or 0.0 for one in per_class.values()])
        for name in ("support", "f1", "recall")
    )
    absent = " and ".join(
        f"no review is {name}" for name, one in per_class.items() if not one["support"]
    )
    kappa, no_kappa = _quadratic_kappa(confusion)
    values: dict[str, tuple[float, str]] = {
        "accuracy": (_mean(predicted == label), ""),
        "macro_f1": (f1.mean(), absent),
        "weighted_f1": (f1 @ support / max(label.size, 1), ""),
        "micro_f1": (_mean(predicted == label), ""),  # of one label a review, the accuracy
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
    return {
        "reviews": int(label.size),
        **_defined(values),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def by_history(
    label: Int8[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
    history: Int[np.ndarray, "n"],
) -> dict[str, dict[str, Any]]:
    """The main metrics by how many other reviews the user has (`history`), cold start first."""
    group = np.searchsorted(list(HISTORIES.values()), history, side="right") - 1
    return {
        name: brief(label[group == i], probability[group == i]) for i, name in enumerate(HISTORIES)
    }


def brief(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> dict[str, Any]:
    """The main metrics of a slice."""
    found = summarize(label, probability)
    reasons = {k: v for k, v in found["undefined"].items() if k in _OF_A_SLICE}
    main = {name: found[name] for name in ("reviews", *_OF_A_SLICE)}
    return main | {"undefined": reasons}


def reliability(
    label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]
) -> Float[np.ndarray, "bins 3"]:
    """Sums over reviews by confidence (the largest probability), in BINS bins of equal width.

    Returns:
      How many reviews are in each bin, their summed confidence, how many are predicted rightly.
    """
    confidence = probability.max(axis=1).astype(np.float64)
    right = probability.argmax(axis=1) == label
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    summed = [
        np.bincount(place, x, minlength=BINS) for x in (np.ones(place.size), confidence, right)
    ]
    return np.stack(summed, axis=1).astype(np.float64)


def calibration_error(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> float:
    """The expected calibration error (Guo et al. 2017); 0 of no review.

    |accuracy - mean confidence| of each bin of `reliability`, weighted by its reviews.
    """
    _, confidence, right = reliability(label, probability).T
    return float(np.abs(confidence - right).sum() / max(label.size, 1))


def _per_class(confusion: Int[np.ndarray, "c c"]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and number of reviews of each class."""
    found = {}
    for i, name in enumerate(CLASS_NAMES[len(confusion)]):
        right, support, chosen = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
        none = "" if support else f"no review is {name}"
        never = "" if chosen else f"{name} is never predicted"
        values = {
            "precision": (right / max(chosen, 1), never),
            "recall": (right / max(support, 1), none),
            "f1": (2 * right / max(support + chosen, 1), none and never and f"{none}, and {never}"),
        }
        found[name] = {"support": int(support), **_defined(values)}
    return found


def _quadratic_kappa(confusion: Int[np.ndarray, "c c"]) -> tuple[float, str]:
    """1 - disagreement / the disagreement expected of independent marginals; or why there is none.

    Disagreement is the squared distance of the classes in their order.
    """
    place = np.arange(len(confusion))
    distance = (place[:, None] - place[None]) ** 2
    expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / max(confusion.sum(), 1)
    disagreement = (distance * expected).sum()
    if not disagreement:
        return 0.0, "all reviews are of one class, and predicted so"
    return 1 - (distance * confusion).sum() / disagreement, ""


def _defined(values: dict[str, tuple[float, str]]) -> dict[str, Any]:
    """Each value, or None where there is a reason against it; and the reasons."""
    found: dict[str, Any] = {k: None if reason else float(v) for k, (v, reason) in values.items()}
    return found | {"undefined": {k: reason for k, (_, reason) in values.items() if reason}}


def _mean(values: np.ndarray) -> float:
    return float(values.sum() / max(values.size, 1))
