"""The paper's baseline (section 2.5): an SVM on the averages of a user's and a business's reviews.

In: features of every review [reviews, f], dense or sparse, and contexts. Out: class probabilities.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int8, Int32
from scipy.optimize import minimize_scalar
from scipy.special import softmax

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
        """Softmax of the one-against-rest scores: the most probable class is the SVM's choice."""
        return softmax(self.model.decision_function(pairs) / self.temperature, axis=1)


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
    scores = model.decision_function(validation)

    def loss(temperature: float) -> float:
        return metrics.log_loss(validation_label, softmax(scores / temperature, axis=1))

    temperature = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    return FittedSVM(model, penalty, float(temperature))
