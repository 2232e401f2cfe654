"""Does one model predict better than another, beyond chance? (docs/design.md 5)

In: predictions of two or more models for the same reviews. Out: intervals and p-values. Reviews of
one user are not independent, so the bootstrap draws users, the same ones for all models; nor are
reviews that one training predicts, so it draws the seeds of each fold too. McNemar's test takes
reviews as independent, and so is the more lenient of the two if users have many.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int8
from scipy.stats import binomtest

from sasnet_jax.cli import ProgressBar
from sasnet_jax.corpus.corpus import Count

LEVEL = 0.95
# "At least level": the interval lies above -0.01 of accuracy, or below +0.005 nats.
MARGIN = 0.01
LOSS_MARGIN = 0.005
RESAMPLES = 2000

Interval: TypeAlias = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]
Probability: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Verdict: TypeAlias = Literal["above", "level", "below", "undecided"]


class Outcomes(NamedTuple):
    """How one model predicts the same reviews with each of its seeds."""

    right: Float64[np.ndarray, "seeds n"]  # 1 if the most probable class is the label, else 0
    loss: Float64[np.ndarray, "seeds n"] | None  # -log p(label), nats; None if one is infinite


class Resampled(NamedTuple):
    """The scores of one model in each draw of the bootstrap."""

    accuracy: Float64[np.ndarray, "r"]
    log_loss: Float64[np.ndarray, "r"] | None  # nats


class Difference(msgspec.Struct, kw_only=True, frozen=True):
    """The accuracy and log-loss of a model minus those of a baseline on the same reviews."""

    model: str
    baseline: str
    difference: float  # of accuracy
    interval: Interval
    log_loss_difference: float | None  # nats; None if one of the two has no log-loss
    log_loss_interval: Interval | None
    at_least_level: bool
    only_model_right: Count | None = None  # for single models, not for a mean over seeds
    only_baseline_right: Count | None = None
    mcnemar_p: Probability | None = None
    holm_p: Probability | None = None

    @property
    def verdict(self) -> Verdict:
        """How the accuracy compares."""
        return verdict(self.interval, MARGIN)

    @property
    def log_loss_verdict(self) -> Verdict | None:
        """How the log-loss compares; "above" is better."""
        if self.log_loss_interval is None:
            return None
        low, high = self.log_loss_interval
        return verdict([-high, -low], LOSS_MARGIN)


def verdict(interval: Sequence[float], margin: float) -> Verdict:
    """What the interval of a difference shows, if more is better."""
    low, high = interval
    if low > 0:
        return "above"
    if low > -margin:
        return "level"
    return "below" if high < 0 else "undecided"


def mcnemar(right: Bool[np.ndarray, "n"], other: Bool[np.ndarray, "n"]) -> float:
    """Two-sided exact p that two models are right on different reviews equally often."""
    only, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    if not only + only_other:
        return 1.0
    return float(binomtest(only, only + only_other).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: of any of these tests, one errs with probability p at most."""
    order = np.argsort(p_values, kind="stable")
    remaining = len(p_values) - np.arange(len(p_values))
    corrected = np.maximum.accumulate(np.asarray(p_values, float)[order] * remaining)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(corrected, 1)
    return adjusted.tolist()


def outcomes(label: Int8[np.ndarray, "n"], probability: Float[np.ndarray, "seeds n c"]) -> Outcomes:
    """Compares a model's probabilities with the labels."""
    right = (probability.argmax(axis=2) == label).astype(np.float64)
    chosen = probability[:, np.arange(label.size), label].astype(np.float64)
    return Outcomes(right, -np.log(chosen) if (chosen > 0).all() else None)


def joined(seeds: Iterable[Outcomes]) -> Outcomes:
    """The outcomes of several seeds as those of one model: its scores are means over them."""
    models = list(seeds)
    losses = [model.loss for model in models if model.loss is not None]
    complete = len(losses) == len(models)
    right = np.concatenate([model.right for model in models])
    return Outcomes(right, np.concatenate(losses) if complete else None)


def resample(
    models: Mapping[str, Outcomes],
    user: Int[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"],
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Resampled]:
    """The scores of every model over users and seeds drawn with replacement.

    Args:
      models: the outcomes of each, on the same reviews.
      user: the user of each review.
      fold: what was trained together: the fold of each review, the same for all of a user's.
      seed: seed of the draws. All models share the users that are drawn, and those with as many
        seeds share these.
      resamples: r, the number of draws.
    """
    columns = [np.ones((1, user.size))]
    for model in models.values():
        columns += [model.right] if model.loss is None else [model.right, model.loss]
    sums = _resampled_sums(user, fold, np.concatenate(columns).T, seed, resamples)
    reviews = sums[:, :, 0].sum(axis=1)
    place, scores = 1, {}
    for name, model in models.items():
        seeds = len(model.right)
        weights = _seed_weights(seeds, sums.shape[:2], seed)
        parts = []
        for _ in range(1 if model.loss is None else 2):
            of_seeds = sums[:, :, place : place + seeds]  # [r, folds, seeds]
            parts.append(np.einsum("rfs,rfs->r", of_seeds, weights) / reviews)
            place += seeds
        scores[name] = Resampled(parts[0], None if model.loss is None else parts[1])
    return scores


def _seed_weights(
    seeds: int, shape: tuple[int, ...], seed: int
) -> Float64[np.ndarray, "r folds seeds"]:
    """The weight of each seed in each draw and fold.

    All but one of `seeds` are drawn, so that the variance over draws is that of a mean over seeds
    (Rao and Wu 1988): drawing all would make it too small by (seeds - 1) / seeds.
    """
    if seeds == 1:
        return np.ones((*shape, 1))
    rng = np.random.default_rng([seed, seeds])
    return rng.multinomial(seeds - 1, [1 / seeds] * seeds, size=shape) / (seeds - 1)


def resample_users(
    user: Int[np.ndarray, "n"],
    values: Float64[np.ndarray, "n k"],
    seed: int,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, "r k"]:
    """Sums of each column over users drawn with replacement, as many as there are.

    Args:
      user: the user of each review.
      values: columns to sum; a column of ones gives the number of reviews drawn.
      seed: seed of the draws; the same users are drawn for every column.
      resamples: r, the number of draws.
    """
    return _resampled_sums(user, np.zeros_like(user), values, seed, resamples)[:, 0]


def _resampled_sums(
    user: Int[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"],
    values: Float64[np.ndarray, "n k"],
    seed: int,
    resamples: int,
) -> Float64[np.ndarray, "r folds k"]:
    """Sums of each column over the drawn users of each fold."""
    _, first, index = np.unique(user, return_index=True, return_inverse=True)
    users = first.size
    of_user = np.stack([np.bincount(index, column) for column in values.T], axis=1)
    members = [np.flatnonzero(fold[first] == number) for number in np.unique(fold)]
    parts = [of_user[of_fold] for of_fold in members]
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, len(members), values.shape[1]))
    for i in ProgressBar(range(resamples), desc="bootstrap over users", delay=5, leave=False):
        times = np.bincount(rng.integers(users, size=users), minlength=users)
        for number, of_fold in enumerate(members):
            sums[i, number] = times[of_fold] @ parts[number]
    return sums


def interval(values: Float64[np.ndarray, "r"]) -> list[float]:
    """The central 95 % of resampled values."""
    tail = (1 - LEVEL) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist()


def differences(
    name: str,
    baselines: Sequence[str],
    models: Mapping[str, Outcomes],
    resampled: Mapping[str, Resampled],
) -> list[Difference]:
    """Compares one model with others; Holm's correction covers these comparisons.

    Args:
      name: the model.
      baselines: those that it is compared with.
      models: the outcomes of all of them.
      resampled: their scores in each draw (`resample`).
    """
    compared = [_difference(name, other, models, resampled) for other in baselines]
    p_values = [one.mcnemar_p for one in compared if one.mcnemar_p is not None]
    corrected = iter(holm(p_values))
    return [
        one if one.mcnemar_p is None else msgspec.structs.replace(one, holm_p=next(corrected))
        for one in compared
    ]


def _difference(
    name: str,
    baseline: str,
    models: Mapping[str, Outcomes],
    resampled: Mapping[str, Resampled],
) -> Difference:
    mine, other = models[name], models[baseline]
    drawn, drawn_other = resampled[name], resampled[baseline]
    bounds = _interval_of_difference(drawn.accuracy, drawn_other.accuracy)
    loss = loss_bounds = None
    if mine.loss is not None and other.loss is not None:
        assert drawn.log_loss is not None and drawn_other.log_loss is not None
        loss = float(mine.loss.mean() - other.loss.mean())
        loss_bounds = _interval_of_difference(drawn.log_loss, drawn_other.log_loss)
    difference = Difference(
        model=name,
        baseline=baseline,
        difference=float(mine.right.mean() - other.right.mean()),
        interval=bounds,
        log_loss_difference=loss,
        log_loss_interval=loss_bounds,
        at_least_level=bounds[0] > -MARGIN
        or (loss_bounds is not None and loss_bounds[1] < LOSS_MARGIN),
    )
    if len(mine.right) + len(other.right) > 2:
        return difference
    right, other_right = mine.right[0] > 0, other.right[0] > 0
    return msgspec.structs.replace(
        difference,
        only_model_right=int((right & ~other_right).sum()),
        only_baseline_right=int((other_right & ~right).sum()),
        mcnemar_p=mcnemar(right, other_right),
    )


def _interval_of_difference(
    scores: Float64[np.ndarray, "r"], others: Float64[np.ndarray, "r"]
) -> list[float]:
    """`interval`, without the rounding errors by which models that predict alike differ."""
    return interval(np.round(scores - others, 12) + 0.0)  # no -0.0


def signed(value: float | None, bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Formats a difference and its interval, and an undefined one as a dash."""
    if value is None or bounds is None:
        return "-"
    low, high = bounds
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def statistics(
    label: Int8[np.ndarray, "n"], probability: Float64[np.ndarray, "n c"]
) -> Float64[np.ndarray, "n c_c_and_1"]:
    """Each review's cell of the confusion matrix, one-hot, and its -log p(label), in nats."""
    classes = probability.shape[1]
    cell = label.astype(int) * classes + probability.argmax(axis=1)
    chosen = probability[np.arange(label.size), label]
    loss = -np.log(np.maximum(chosen, np.finfo(np.float64).tiny))
    return np.hstack([np.eye(classes**2)[cell], loss[:, None]])


def metrics_of(sums: Float64[np.ndarray, "r c_c_and_1"]) -> dict[str, Float64[np.ndarray, "r"]]:
    """Accuracy, macro F1 and log-loss from sums of `statistics`.

    The F1 of a class that a resample neither holds nor predicts counts as 0.
    """
    classes = int(np.sqrt(sums.shape[1] - 1))
    confusion = sums[:, :-1].reshape(-1, classes, classes)
    reviews = confusion.sum(axis=(1, 2))
    right = np.einsum("rii->ri", confusion)
    either = confusion.sum(axis=1) + confusion.sum(axis=2)
    return {
        "accuracy": right.sum(axis=1) / reviews,
        "macro_f1": (2 * right / np.maximum(either, 1)).mean(axis=1),
        "log_loss": sums[:, -1] / reviews,
    }
