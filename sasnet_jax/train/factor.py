"""How much of a network is added to the regression that it builds on (docs/design.md 4.3).

In: validation probabilities with each factor. Out: which factor. A factor must earn its place: the
smallest one within a standard error of the best is taken, and none at all unless that choice, made
on other users, beats the regression by more than a standard error.
"""

import numpy as np
from jaxtyping import Float, Int

_FOLDS = 5  # of users


def choose_factor(
    probability: Float[np.ndarray, "n factors c"],
    label: Int[np.ndarray, "n"],
    user: Int[np.ndarray, "n"],
) -> int:
    """The place of the chosen factor; the factors ascend from 0, which is the regression."""
    if probability.shape[1] == 1:
        return 0
    chosen = np.take_along_axis(probability, label[:, None, None].astype(int), axis=2)[..., 0]
    loss = -np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).astype(np.float64)
    _, user = np.unique(user, return_inverse=True)
    fold = np.random.default_rng(0).permutation(user.max() + 1)[user] % _FOLDS
    excess = np.zeros(len(loss))  # of the rule's choice, over the regression's loss
    for number in range(_FOLDS):
        inside = fold == number
        if inside.any() and not inside.all():
            place = _smallest_good(loss[~inside], user[~inside])
            excess[inside] = loss[inside, place] - loss[inside, 0]
    error = np.sqrt((np.bincount(user, excess) ** 2).sum())
    return _smallest_good(loss, user) if excess.sum() < -error else 0


def _smallest_good(loss: Float[np.ndarray, "n factors"], user: Int[np.ndarray, "n"]) -> int:
    """The smallest factor whose loss is within a standard error, over users, of the least."""
    excess = loss - loss[:, [loss.mean(axis=0).argmin()]]
    of_user = np.stack([np.bincount(user, column) for column in excess.T], axis=1)
    error = np.sqrt((of_user**2).sum(axis=0)) / len(loss)
    return int(np.argmax(excess.mean(axis=0) <= error))
