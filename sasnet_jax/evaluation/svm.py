"""The paper's baseline (section 2.5): an SVM on the averages of a user's and a business's reviews.

In: features of every review [reviews, f], dense or sparse, and contexts. Out: class probabilities.
"""

import dataclasses
import itertools
from typing import TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int8, Int32
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics.pairwise import rbf_kernel

try:  # the same SVM, tens of times faster, where there is a build (x86-64)
    from sklearnex.svm import SVC
except ImportError:
    from sklearn.svm import SVC

from sasnet_jax.data.interactions import Contexts, averaging_matrix
from sasnet_jax.evaluation import metrics

Features: TypeAlias = np.ndarray | scipy.sparse.csr_matrix  # [reviews, f]
Pairs = Float[np.ndarray, "n two_f"]
_PENALTIES = (0.3, 1.0, 3.0, 10.0)  # C, chosen on validation
_TUNE_ON = 5000  # training rows
_ROWS_AT_ONCE = 1024  # whose kernel with all support vectors is in memory


def pair_averages(features: Features, contexts: Contexts, targets: Int32[np.ndarray, "n"]) -> Pairs:
    """Averages over each side's context, side by side: [n, 2f]. A side without reviews is 0."""
    sides = [averaging_matrix(context, targets) @ features for context in contexts]
    dense = [side.toarray() if scipy.sparse.issparse(side) else side for side in sides]
    return np.hstack(dense).astype(np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class FittedSVM:
    """An RBF SVM whose scores are turned into probabilities by one temperature."""

    model: SVC
    penalty: float  # C
    temperature: float

    def predict(self, pairs: Pairs) -> Float[np.ndarray, "n c"]:
        """Softmax of the scores: the most probable class is the SVM's choice."""
        return softmax(class_scores(self.model, pairs) / self.temperature, axis=1)


def class_scores(model: SVC, pairs: Pairs) -> Float[np.ndarray, "n c"]:
    """What `SVC.decision_function` is: votes of one class against one, ties by their margins.

    scikit-learn-intelex 2026.2 gets the last margin of a batch wrong on some CPUs (not that of a
    single row), so that a score would depend on the other rows.
    """
    classes = len(model.classes_)
    ends = np.cumsum(model.n_support_)
    support = [slice(end - n, end) for end, n in zip(ends, model.n_support_, strict=True)]
    votes, margins = np.zeros((2, len(pairs), classes))
    for first in range(0, len(pairs), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        kernel = rbf_kernel(pairs[rows], model.support_vectors_, gamma=model._gamma)
        for index, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
            margin = kernel[:, support[i]] @ model.dual_coef_[j - 1, support[i]]
            margin += kernel[:, support[j]] @ model.dual_coef_[i, support[j]]
            margin += model.intercept_[index]
            margins[rows, i] += margin
            margins[rows, j] -= margin
            votes[rows, i] += margin >= 0
            votes[rows, j] += margin < 0
    return votes + margins / (3 * (np.abs(margins) + 1))


def fit(
    train: Pairs,
    train_label: Int8[np.ndarray, "n"],
    validation: Float[np.ndarray, "m two_f"],
    validation_label: Int8[np.ndarray, "m"],
    seed: int,
) -> FittedSVM:
    """Fits on `train`; C by validation accuracy, the temperature by validation log-loss.

    C is tuned on at most 5,000 training rows, and the SVM refitted once on all.
    """
    rows = np.random.default_rng(seed).permutation(train_label.size)[:_TUNE_ON]
    accuracy = {}
    for penalty in _PENALTIES:
        model = SVC(C=penalty).fit(train[rows], train_label[rows])
        accuracy[penalty] = (model.predict(validation) == validation_label).mean()
    penalty = max(_PENALTIES, key=lambda p: (accuracy[p], -p))
    model = SVC(C=penalty).fit(train, train_label)
    scores = class_scores(model, validation)

    def loss(temperature: float) -> float:
        return metrics.log_loss(validation_label, softmax(scores / temperature, axis=1))

    temperature = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    return FittedSVM(model, penalty, float(temperature))
