"""Logistic regression by scikit-learn, its penalty chosen on validation.

In: candidate inputs and labels of every split. Out: class probabilities.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int8
from sklearn.linear_model import LogisticRegression

from sasnet_jax.baselines.protocol import Candidate, joined
from sasnet_jax.baselines.svm import TUNE_ON
from sasnet_jax.cli import ProgressBar
from sasnet_jax.scores import metrics

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C
_ITERATIONS = 2000


class _Choice(NamedTuple):
    candidate: int
    penalty: float  # C


def fit(
    candidates: Sequence[Candidate],
    label: dict[str, Int8[np.ndarray, "_"]],
    seed: int,
    name: str = "logistic regression",
) -> tuple[int, LogisticRegression, dict[str, Any]]:
    """Fits on the training rows of one of the candidates.

    The candidate and C are chosen by the validation log-loss of models fitted on at most 5,000
    training rows (the earliest of equals); C rises until the loss does. The best choice is fitted
    again on all rows.

    Returns:
      Which candidate, the model, and what was chosen.
    """
    rows = np.random.default_rng(seed).permutation(label["train"].size)[:TUNE_ON]
    loss: dict[_Choice, float] = {}
    for index in ProgressBar(
        range(len(candidates)), desc=f"tuning {name}", unit="input", leave=False
    ):
        train, validation = (joined(candidates[index], split) for split in ("train", "validation"))
        best = np.inf
        for penalty in PENALTIES:
            model = _fit(train[rows], label["train"][rows], penalty)
            probability = predict(model, validation, int(label["train"].max()) + 1)
            candidate_loss = metrics.log_loss(label["validation"], probability)
            loss[_Choice(index, penalty)] = candidate_loss
            if candidate_loss > best:
                break
            best = candidate_loss
    choice = min(loss, key=lambda choice: loss[choice])
    model = _fit(joined(candidates[choice.candidate], "train"), label["train"], choice.penalty)
    return choice.candidate, model, {"C": choice.penalty, "tuned_log_loss": loss[choice]}


def predict(
    model: LogisticRegression, inputs: Float32[np.ndarray, "n f"], classes: int
) -> Float[np.ndarray, "n c"]:
    """Probabilities of all classes; 0 for a class that the model never saw."""
    probability = np.zeros((len(inputs), classes))
    probability[:, model.classes_] = model.predict_proba(inputs)
    return probability


def _fit(
    train: Float32[np.ndarray, "n f"], label: Int8[np.ndarray, "n"], penalty: float
) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=_ITERATIONS).fit(train, label)
