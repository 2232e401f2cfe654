"""The paper's baseline (section 2.5): an SVM, here with the RBF or the linear kernel.

In: candidate inputs and labels of every split. Out: class probabilities. Every choice is
made on validation.
"""

import dataclasses
import importlib.metadata
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int8
from scipy.optimize import minimize_scalar
from scipy.special import softmax

try:  # the same SVM, tens of times faster, if there is a build (x86-64)
    from sklearnex.svm import SVC

    LIBRARY = f"scikit-learn-intelex {importlib.metadata.version('scikit-learn-intelex')}"
except ImportError:
    from sklearn.svm import SVC

    LIBRARY = f"scikit-learn {importlib.metadata.version('scikit-learn')}"

from sasnet_jax.baselines.protocol import Candidate, Inputs, joined
from sasnet_jax.cli import ProgressBar
from sasnet_jax.scores import metrics

Kernel = Literal["rbf", "linear"]
KERNELS: tuple[Kernel, ...] = ("rbf", "linear")
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # C
TUNE_ON = 5000  # training rows
CACHE_MEGABYTES = 4000  # kernel cache; SVC's 200 took twice as long on 12,000 pairs
_ROWS_AT_ONCE = 1024  # rows whose kernel with all support vectors is held in memory


@dataclasses.dataclass(frozen=True, slots=True)
class FittedSVM:
    """An SVM whose scores are turned into probabilities by one temperature."""

    model: SVC
    support: Float32[np.ndarray, "m f"]
    kernel: Kernel
    gamma: float
    temperature: float

    def scores(self, inputs: Float32[np.ndarray, "n f"]) -> Float[np.ndarray, "n c"]:
        """`class_scores`, computed a block of rows at a time."""
        squares = _squares(self.support)
        parts = []
        for first in range(0, len(inputs), _ROWS_AT_ONCE):
            some = inputs[first : first + _ROWS_AT_ONCE]
            both_squares = _squares(some), squares
            kernel = kernel_matrix(self.kernel, self.gamma, some @ self.support.T, both_squares)
            parts.append(class_scores(self.model, kernel))
        return np.concatenate(parts)

    def predict(self, inputs: Float32[np.ndarray, "n f"]) -> Float[np.ndarray, "n c"]:
        """Softmax of the scores: the most probable class is the SVM's choice."""
        return softmax(self.scores(inputs) / self.temperature, axis=1)


def kernel_matrix(
    kernel: Kernel,
    gamma: float,
    inner: Float32[np.ndarray, "n m"],
    squares: tuple[Float32[np.ndarray, "n"], Float32[np.ndarray, "m"]],
) -> Float32[np.ndarray, "n m"]:
    """exp(-gamma |a - b|^2) or gamma a.b, from inner products a.b and both squared norms."""
    if kernel == "linear":
        return np.float32(gamma) * inner
    distance = squares[0][:, None] + squares[1][None] - 2 * inner
    return np.exp(-np.float32(gamma) * np.maximum(distance, 0))


def class_scores(model: SVC, kernel: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n c"]:
    """Computes `SVC.decision_function`: one-versus-one votes, with ties broken by the margins.

    scikit-learn-intelex 2026.2 gets the last margin of a batch wrong on some CPUs (not that of a
    single row), so that a score would depend on the other rows. `kernel` is the kernel matrix with
    the support vectors.
    """
    classes = len(model.classes_)
    ends = np.cumsum(model.n_support_)
    support = [slice(end - n, end) for end, n in zip(ends, model.n_support_, strict=True)]
    votes, margins = np.zeros((2, len(kernel), classes))
    for index, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        margin = kernel[:, support[i]] @ model.dual_coef_[j - 1, support[i]]
        margin += kernel[:, support[j]] @ model.dual_coef_[i, support[j]]
        margin += model.intercept_[index]
        margins[:, i] += margin
        margins[:, j] -= margin
        votes[:, i] += margin >= 0
        votes[:, j] += margin < 0
    return votes + margins / (3 * (np.abs(margins) + 1))


class _Choice(NamedTuple):
    candidate: int
    kernel: Kernel
    penalty: float  # C


def fit(
    candidates: Sequence[Candidate],
    label: dict[str, Int8[np.ndarray, "_"]],
    seed: int,
    name: str = "SVM",
) -> tuple[int, FittedSVM, dict[str, Any]]:
    """Fits on the training rows of one of the candidates.

    The candidate, the kernel and C are chosen by the validation accuracy of SVMs fitted on at most
    5,000 training rows (the earliest of equals), and the temperature by validation log-loss. The
    best choice is fitted again on all rows.

    Returns:
      Which candidate, the SVM, and what was chosen.
    """
    accuracy = _tune(candidates, label, seed, name)
    best = max(accuracy, key=lambda choice: accuracy[choice])
    candidate, gamma = candidates[best.candidate], _gamma(candidates[best.candidate])
    train = joined(candidate, "train")
    penalty = best.penalty
    if (
        best.kernel == "linear"
    ):  # SVC's linear kernel has no gamma: scaling the kernel by gamma scales C
        penalty, gamma = penalty * gamma, 1.0
    model = SVC(C=penalty, kernel=best.kernel, gamma=gamma, cache_size=CACHE_MEGABYTES)
    model.fit(train, label["train"])
    fitted = FittedSVM(model, train[model.support_], best.kernel, gamma, 1.0)
    scores = fitted.scores(joined(candidate, "validation"))

    def loss(temperature: float) -> float:
        return metrics.log_loss(label["validation"], softmax(scores / temperature, axis=1))

    temperature = float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x)
    chosen = {"kernel": best.kernel, "C": penalty, "tuned_accuracy": accuracy[best]}
    return best.candidate, dataclasses.replace(fitted, temperature=temperature), chosen


def _tune(
    candidates: Sequence[Candidate], label: dict[str, Int8[np.ndarray, "_"]], seed: int, name: str
) -> dict[_Choice, float]:
    """Validation accuracy of every choice.

    The inner products of a block are computed once for all its weights, kernels and C.
    """
    rows = np.random.default_rng(seed).permutation(label["train"].size)[:TUNE_ON]
    blocks = {id(block): block for candidate in candidates for _, block in candidate}
    products = {key: _products(block, rows) for key, block in blocks.items()}
    accuracy = {}
    options = list(itertools.product(range(len(candidates)), KERNELS))
    for index, kernel in ProgressBar(options, desc=f"tuning {name}", unit="kernel", leave=False):
        weighted = [(weight**2, *products[id(block)]) for weight, block in candidates[index]]
        inner = sum(weight * product for weight, product, _ in weighted)
        squares = sum(weight * norms for weight, _, norms in weighted)
        gamma = _gamma(candidates[index])
        matrix = kernel_matrix(kernel, gamma, inner, (squares, squares[: rows.size]))
        train, validation = np.split(matrix, [rows.size])
        for penalty in PENALTIES:
            model = SVC(C=penalty, kernel="precomputed").fit(train, label["train"][rows])
            scores = class_scores(model, validation[:, model.support_])
            right = model.classes_[scores.argmax(axis=1)] == label["validation"]
            accuracy[_Choice(index, kernel, penalty)] = float(right.mean())
    return accuracy


def _products(
    block: Inputs, rows: Int[np.ndarray, "n"]
) -> tuple[Float32[np.ndarray, "n_and_m n"], Float32[np.ndarray, "n_and_m"]]:
    """Inner products of training, then validation rows with training rows; squared norms."""
    train = block["train"][rows]
    seen = np.concatenate([train, block["validation"]])
    return seen @ train.T, _squares(seen)


def _squares(inputs: Float32[np.ndarray, "n f"]) -> Float32[np.ndarray, "n"]:
    return np.einsum("nf,nf->n", inputs, inputs)


def _gamma(candidate: Candidate) -> float:
    """1 / the summed variance of the columns: scikit-learn's "scale" of centered inputs."""
    return 1 / sum(weight**2 for weight, _ in candidate)
