"""Logistic regression on blocks of features, its weights and its penalty chosen on validation.

Letters: f features of all blocks, c classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from sasnet_jax.cli import ProgressBar

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # C
_ITERATIONS = 2000
_MOST_REVIEWS = 100_000  # that a regression is fitted on
_WIDEST = 10  # columns; the weight of a block does not grow beyond
Blocks: TypeAlias = Mapping[str, Float32[np.ndarray, "reviews _"]]
Weights: TypeAlias = Mapping[str, float]  # of the blocks that a regression reads


class Regression(NamedTuple):
    """A fitted regression; a pytree of arrays."""

    mean: Float[np.ndarray, "f"]
    scale: Float[np.ndarray, "f"]
    kernel: Float[np.ndarray, "f c"]
    bias: Float[np.ndarray, "c"]

    def logits(self, features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n c"]:
        """Log-probabilities of the classes."""
        standardized = (features - self.mean[None]) * self.scale[None]
        return log_softmax(standardized @ self.kernel + self.bias[None], axis=1)


class Choice(NamedTuple):
    """What was chosen on validation."""

    weights: Weights
    penalty: float  # C
    log_loss: float  # of validation, nats


def choose(
    blocks: Blocks,
    label: Int[np.ndarray, "reviews"],
    train: Int32[np.ndarray, "n"],
    validation: Int32[np.ndarray, "m"],
    options: Sequence[Weights],
    name: str,
) -> tuple[Regression, Choice]:
    """Fits on the training reviews; the option and the penalty that are best on validation win.

    For each option C rises until the validation log-loss does.

    Args:
      blocks: features of every review.
      label: its class.
      train: reviews to fit on.
      validation: reviews to choose on.
      options: which blocks to read, and how strongly; a weight of 0 leaves a block out.
      name: of the regression, for the progress bar.
    """
    best: tuple[Regression, Choice] | None = None
    seen = joined(blocks, validation)
    for weights in ProgressBar(
        options, desc=f"choosing {name}", unit="option", delay=5, leave=False
    ):
        least, fitting = np.inf, _Fitting(blocks, label, train, weights)
        for penalty in PENALTIES:
            fitted = fitting.fit(penalty)
            logits = fitted.logits(seen)
            loss = -float(logits[np.arange(validation.size), label[validation]].mean())
            if best is None or loss < best[1].log_loss:
                best = fitted, Choice(weights, penalty, loss)
            if loss > least:
                break
            least = loss
    assert best is not None
    return best


def fit(
    blocks: Blocks,
    label: Int[np.ndarray, "reviews"],
    rows: Int32[np.ndarray, "n"],
    choice: Choice,
) -> Regression:
    """Fits on some reviews as was chosen, to convergence."""
    return _Fitting(blocks, label, rows, choice.weights).fit(choice.penalty)


class _Fitting:
    """Features that are weighed and centered once, for every penalty.

    The variances of a block's columns sum to its weight squared times their number, 10 at most, so
    that a wide block does not outweigh a narrow one.
    """

    def __init__(
        self,
        blocks: Blocks,
        label: Int[np.ndarray, "reviews"],
        rows: Int32[np.ndarray, "n"],
        weights: Weights,
    ):
        if rows.size > _MOST_REVIEWS:
            rows = np.random.default_rng(0).permutation(rows)[:_MOST_REVIEWS]
        scale = [weights.get(name, 0) * _scale(block[rows]) for name, block in blocks.items()]
        features = joined(blocks, rows)
        self.scale, self.mean = np.concatenate(scale), features.mean(axis=0, dtype=np.float64)
        self.read = self.scale > 0
        read = features[:, self.read].astype(np.float64)
        self.features = (read - self.mean[None, self.read]) * self.scale[None, self.read]
        self.label = label[rows]

    def fit(self, penalty: float) -> Regression:
        """Fits with this C; all classes must be among the reviews."""
        model = LogisticRegression(C=penalty, max_iter=_ITERATIONS).fit(self.features, self.label)
        kernel = np.zeros((self.mean.size, model.classes_.size))
        kernel[self.read] = model.coef_.T
        fitted = (self.mean, self.scale, kernel, model.intercept_)
        # In float32, as it is kept and as processes exchange it.
        return Regression(*(array.astype(np.float32) for array in fitted))


def joined(blocks: Blocks, rows: Int32[np.ndarray, "n"]) -> Float32[np.ndarray, "n f"]:
    """The features of some reviews, block by block."""
    return np.hstack([block[rows] for block in blocks.values()])


def _scale(block: Float32[np.ndarray, "n f"]) -> Float[np.ndarray, "f"]:
    width = block.shape[1]
    total = float(block.var(axis=0, dtype=np.float64).sum())
    return np.full(width, np.sqrt(min(width, _WIDEST) / total) if total else 0.0)
