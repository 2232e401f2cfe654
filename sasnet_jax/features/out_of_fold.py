"""From which reviews each target's features are computed: of training reviews, out of fold.

A model that is trained on features over all reviews but the target can learn an entity's totals,
which its texts give away, and then reads the target's rating from what is missing. So what a
training review's features are computed from, and what is fitted for them, leaves out the whole fold
of the target. For a review to predict, everything that its context allows counts.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int, Int32

from sasnet_jax.corpus.contexts import Contexts, restrict

FOLDS = 5
Blocks: TypeAlias = Mapping[str, Any]  # arrays [n, ...] by name


class Part(NamedTuple):
    """Some targets, and what their features may be computed from."""

    targets: Int32[np.ndarray, "n"]
    contexts: Contexts
    train: Int32[np.ndarray, "m"]  # training reviews to fit on


def folds_of(
    label: Int[np.ndarray, "reviews"], train: Int32[np.ndarray, "m"], seed: int
) -> Int32[np.ndarray, "reviews"]:
    """The fold of every review, drawn at random.

    The training reviews of a class are dealt out evenly, so that a class with two of them is in the
    other folds of every fold.
    """
    shuffled = np.random.default_rng(seed).permutation(label.size)
    fold = shuffled.astype(np.int32) % FOLDS
    for number in np.unique(label):
        mine = train[label[train] == number]
        fold[mine[np.argsort(shuffled[mine])]] = np.arange(mine.size) % FOLDS
    return fold


def parts(
    contexts: Contexts,
    train: Int32[np.ndarray, "m"],
    held_out: Int32[np.ndarray, "n"],
    fold: Int32[np.ndarray, "reviews"],
) -> Iterator[Part]:
    """The held-out reviews, then the training reviews of each fold."""
    yield Part(held_out, contexts, train)
    for number in range(FOLDS):
        inside = fold[train] == number
        yield Part(train[inside], restrict(contexts, fold != number), train[~inside])


def compute(
    contexts: Contexts,
    train: Int32[np.ndarray, "m"],
    held_out: Int32[np.ndarray, "n"],
    fold: Int32[np.ndarray, "reviews"],
    features: Callable[[Part], Blocks],
) -> dict[str, Float32[np.ndarray, "reviews ..."]]:
    """The features of every training and every held-out review, 0 for any other, by name."""
    every: dict[str, Float32[np.ndarray, "reviews ..."]] = {}
    for part in parts(contexts, train, held_out, fold):
        for name, block in features(part).items():
            whole = every.setdefault(name, np.zeros((fold.size, *block.shape[1:]), np.float32))
            whole[part.targets] = block
    return every
