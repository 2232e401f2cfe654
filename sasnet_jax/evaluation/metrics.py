"""Classification metrics of predicted probabilities (DESIGN section 5), by scikit-learn."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int8
from sklearn import metrics

from sasnet_jax.data.corpus import CLASSES

_CLASSES = np.arange(len(CLASSES))


def log_loss(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]) -> float:
    """Mean -log p(label), in nats, in float64."""
    chosen = probability[np.arange(label.size), label].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def summarize(
    label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]
) -> dict[str, Any]:
    """The metrics of one split, for evaluation.json and baselines.json.

    F1 of a class that is neither present nor predicted counts as 0.
    """
    predicted = probability.argmax(axis=1)
    f1 = {
        f"{average}_f1": float(
            metrics.f1_score(label, predicted, labels=_CLASSES, average=average, zero_division=0)
        )
        for average in ("macro", "weighted", "micro")
    }
    return {
        "reviews": int(label.size),
        "accuracy": float((predicted == label).mean()),
        **f1,
        "log_loss": log_loss(label, probability),
        "confusion": metrics.confusion_matrix(label, predicted, labels=_CLASSES).tolist(),
    }
