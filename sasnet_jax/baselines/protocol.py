"""What a baseline may learn from and see (paper section 2.5, docs/design.md 5).

In: a corpus, and options for what the paper leaves open. Out: a `Protocol` (the reviews of each
split, their labels and contexts), and from it the inputs of a classifier for every target.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Int8, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import (
    Contexts,
    TargetReview,
    averaging_matrix,
    contexts_of,
    restrict,
)
from sasnet_jax.corpus.corpus import CLASS_NAMES, Corpus
from sasnet_jax.corpus.counts import bias_features, class_shares, context_counts, out_of_fold_counts
from sasnet_jax.corpus.splits import SPLITS

AveragesOver = Literal["corpus", "subset"]
Counts = Literal["all_others", "out_of_fold"]
Features: TypeAlias = np.ndarray | scipy.sparse.csr_matrix  # [reviews, f]
Inputs: TypeAlias = dict[str, Float32[np.ndarray, "_ _"]]  # of each split's targets
# What a classifier may be given: blocks of columns (`scaled`) side by side, each times its weight.
Candidate: TypeAlias = Sequence[tuple[float, Inputs]]

_SUBSET_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # the paper's 3,200/400/400
_FOLDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """The reviews of each split, and what may be seen of each as a target."""

    rows: dict[str, Int32[np.ndarray, "_"]]  # of each split, ascending
    label: Int8[np.ndarray, "reviews"]
    classes: int
    contexts: Contexts
    fold: Int32[np.ndarray, "reviews"]  # for out-of-fold counts

    def labels(self, split: str) -> Int8[np.ndarray, "n"]:
        """The labels of one split."""
        return self.label[self.rows[split]]

    def shares(self) -> Float[np.ndarray, "c"]:
        """The share of each class among training reviews."""
        return class_shares(self.labels("train"), self.classes)


def protocol_of(
    corpus: Corpus,
    target_review: TargetReview,
    *,
    classes: int = 3,
    subset: int = 0,
    averages_over: AveragesOver = "corpus",
    seed: int = 0,
) -> Protocol:
    """The protocol over a corpus.

    Args:
      corpus: the corpus.
      target_review: whether a target is kept out of its own context.
      classes: 3 or 5.
      subset: reviews drawn to learn from and to predict, 80/10/10; 0 for all.
      averages_over: whether contexts hold all reviews that the split allows, or only the subset's.
      seed: of the draws.

    Raises:
      UserError: the corpus has too few reviews of a split, or no review of a class to learn from.
    """
    rng = np.random.default_rng(seed)
    fold = rng.integers(_FOLDS, size=corpus.user.size, dtype=np.int32)
    contexts = contexts_of(corpus, target_review)
    rows = {split: corpus.rows(split) for split in SPLITS}
    if subset:
        for split, share in _SUBSET_SHARES.items():
            wanted = round(subset * share)
            if not 0 < wanted <= rows[split].size:
                raise UserError(
                    f"--subset={subset} needs {wanted} {split} reviews, but the corpus has "
                    f"{rows[split].size}: use a smaller --subset"
                )
            rows[split] = np.sort(rng.permutation(rows[split])[:wanted])
    if averages_over == "subset":
        kept = np.isin(np.arange(corpus.user.size), np.concatenate(list(rows.values())))
        contexts = restrict(contexts, kept)
    label = corpus.labels(classes)
    present = np.bincount(label[rows["train"]], minlength=classes) > 0
    for name in np.array(CLASS_NAMES[classes])[~present]:
        raise UserError(f"no review to learn from is {name}: nothing could learn that class")
    return Protocol(rows=rows, label=label, classes=classes, contexts=contexts, fold=fold)


def averages(protocol: Protocol, features: Features) -> Inputs:
    """Averages over each side's context, side by side: [n, 2f]. A side without reviews is 0."""
    return {
        split: np.hstack(
            [_dense(averaging_matrix(context, rows) @ features) for context in protocol.contexts]
        )
        for split, rows in protocol.rows.items()
    }


def own(protocol: Protocol, features: Features) -> Inputs:
    """The features of the targets themselves: what only the oracle may see."""
    return {split: _dense(features[rows]) for split, rows in protocol.rows.items()}


def stars(protocol: Protocol, counts: Counts, smoothing: float) -> Inputs:
    """How the other reviews were rated (`counts.bias_features`), each number standardized.

    `counts` decides which reviews count for a training review: all that its context allows, or only
    those of other folds. For a review to predict, all of them count.
    """
    args = (protocol.contexts, protocol.label, protocol.classes)
    counts_by_option = {"all_others": context_counts(*args)}
    if counts == "out_of_fold":
        counts_by_option["out_of_fold"] = out_of_fold_counts(*args, protocol.fold)
    inputs = {}
    for split, rows in protocol.rows.items():
        counted = counts_by_option[counts if split == "train" else "all_others"][rows]
        inputs[split] = np.asarray(bias_features(counted, protocol.shares(), smoothing), np.float32)
    mean, deviation = inputs["train"].mean(axis=0), inputs["train"].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1).astype(np.float32)
    return {split: (columns - mean) / scale for split, columns in inputs.items()}


def scaled(inputs: Inputs) -> Inputs:
    """Inputs minus their mean, times one number, so that the training variances sum to 1.

    Then one grid of penalties suits inputs of any width, and blocks of equal weight count equally.
    """
    mean = inputs["train"].mean(axis=0, dtype=np.float64).astype(np.float32)
    total = float(inputs["train"].var(axis=0, dtype=np.float64).sum())
    scale = np.float32(1 / np.sqrt(total)) if total > 0 else np.float32(1)
    return {split: (columns - mean) * scale for split, columns in inputs.items()}


def joined(candidate: Candidate, split: str) -> Float32[np.ndarray, "n f"]:
    """A candidate's inputs for the targets of a split."""
    return np.hstack([np.float32(weight) * block[split] for weight, block in candidate])


def _dense(features: Features) -> Float32[np.ndarray, "n f"]:
    dense = features.toarray() if isinstance(features, scipy.sparse.spmatrix) else features
    return np.asarray(dense, np.float32)
