"""Compares models over all folds, and by how much of a user is known (docs/design.md 5)."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int32

from sasnet_jax.crossvalidate import pooled
from sasnet_jax.crossvalidate.fold import Fold
from sasnet_jax.crossvalidate.results import BEST, BEST_ON_TEXTS, Crossvalidation, Score, Slice
from sasnet_jax.scores import paired
from sasnet_jax.scores.paired import Outcomes, Resampled

# Groups of reviews by the user's number of other reviews: name -> the smallest number.
_HISTORIES = {"0": 0, "1": 1, "2-3": 2, "4+": 4}


def compare(folds: Sequence[Fold], nested: bool, reference: str, seed: int) -> Crossvalidation:
    """Pools the predictions of complete folds, writes them, and compares the models.

    Args:
      folds: the folds to report.
      nested: whether to add the model that is chosen on validation in each fold.
      reference: the model that all others are compared with; empty for the first.
      seed: of the bootstrap.

    Raises:
      UserError: predictions were damaged, or folds have different baselines.
    """
    plan = folds[0].plan
    corpus = plan.corpus
    all_folds = pooled.pool(folds, nested)
    reference = reference or next(iter(plan.bases))
    models = pooled.write(all_folds, corpus, plan.output / "predictions")
    label, user = (
        corpus.labels(plan.protocol["classes"])[all_folds.rows],
        corpus.user[all_folds.rows],
    )
    outcomes = {name: paired.outcomes(label, p) for name, p in all_folds.probability.items()}
    # All of a user's reviews are of one fold, so a target's user has one fewer that may be seen.
    history = (np.bincount(corpus.user) - 1)[user]
    group = np.searchsorted(list(_HISTORIES.values()), history, side="right") - 1
    baselines = [name for name, model in models.items() if model.kind == "baseline"]
    choices = [name for name in (BEST, BEST_ON_TEXTS) if name in models]

    def part(kept: Bool[np.ndarray, "n"], against: Sequence[str]) -> Slice:
        return _slice(outcomes, kept, user, all_folds.fold, seed, against)

    return Crossvalidation(
        corpus_sha256=corpus.sha256,
        stores=plan.stores,
        **plan.protocol,
        folds=plan.folds,
        reported_folds=[fold.number for fold in folds],
        seed=seed,
        resamples=paired.RESAMPLES,
        reference=reference,
        models=models,
        overall=part(group >= 0, [*dict.fromkeys([*baselines, *choices, reference])]),
        by_history={
            name: part(group == i, choices or [reference]) for i, name in enumerate(_HISTORIES)
        },
    )


def _slice(
    models: Mapping[str, Outcomes],
    kept: Bool[np.ndarray, "n"],
    user: Int32[np.ndarray, "n"],
    fold: Int32[np.ndarray, "n"],
    seed: int,
    against: Sequence[str],
) -> Slice:
    """Scores on the `kept` reviews, and differences of every model to those in `against`."""
    if not kept.any():
        return Slice(reviews=0, users=0, scores={}, comparisons=[])
    models = {
        name: Outcomes(one.right[:, kept], None if one.loss is None else one.loss[:, kept])
        for name, one in models.items()
    }
    drawn = paired.resample(models, user[kept], fold[kept], seed)
    return Slice(
        reviews=int(kept.sum()),
        users=np.unique(user[kept]).size,
        scores={name: _score(one, drawn[name]) for name, one in models.items()},
        comparisons=[
            difference
            for name in models
            for difference in paired.differences(
                name, [other for other in against if other != name], models, drawn
            )
        ],
    )


def _score(model: Outcomes, drawn: Resampled) -> Score:
    accuracy = model.right.mean(axis=1)
    loss = None if model.loss is None else model.loss.mean(axis=1)
    return Score(
        accuracy=float(accuracy.mean()),
        accuracy_interval=paired.interval(drawn.accuracy),
        accuracy_of_seeds=accuracy.tolist(),
        log_loss=None if loss is None else float(loss.mean()),
        log_loss_interval=None if drawn.log_loss is None else paired.interval(drawn.log_loss),
        log_loss_of_seeds=None if loss is None else loss.tolist(),
    )
