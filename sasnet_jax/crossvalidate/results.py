"""What a cross-validation writes, crossvalidation.json (docs/formats.md), and its tables."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sasnet_jax import files
from sasnet_jax.baselines.registry import Sees
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import Count
from sasnet_jax.scores import paired
from sasnet_jax.scores.metrics import Loss, Share
from sasnet_jax.scores.paired import Difference, Interval
from sasnet_jax.scores.predictions import LEAKY, number

# Rows that are, per fold, one of several models: the one with the best validation log-loss.
BEST = "best baseline"
BEST_ON_TEXTS = "best baseline on texts"
CHOSEN = "chosen"


class Model(msgspec.Struct, kw_only=True, frozen=True):
    """What was compared."""

    kind: Literal["model", "ensemble", "baseline", "choice"]
    label: str  # its name in tables
    sees: Sees
    seeds: Count
    choices: dict[str, str] | None = None  # by fold, of a choice
    predictions_sha256: list[str] = []  # of each seed's


class Score(msgspec.Struct, kw_only=True, frozen=True):
    """The scores of one model: means over its seeds."""

    accuracy: Share
    accuracy_interval: Interval
    accuracy_of_seeds: list[Share]
    log_loss: Loss | None  # nats
    log_loss_interval: Interval | None
    log_loss_of_seeds: list[Loss] | None


class Slice(msgspec.Struct, kw_only=True, frozen=True):
    """Some of the reviews, predicted by every model."""

    reviews: Count
    users: Count
    scores: dict[str, Score]
    comparisons: list[Difference]


class Crossvalidation(files.Record, kw_only=True, frozen=True):
    """crossvalidation.json."""

    made_by = "python -m sasnet_jax.crossvalidate"
    version = 1
    corpus_sha256: str
    stores: list[dict[str, Any]]
    target_review: TargetReview
    classes: Count
    folds: Count
    reported_folds: list[Count]
    seed: Count
    resamples: Count
    reference: str
    models: dict[str, Model]
    overall: Slice
    by_history: dict[str, Slice]


def table(compared: Crossvalidation) -> str:
    """The scores of all models and what sets them apart, overall and by history, as text."""
    against = BEST if BEST in compared.models else compared.reference
    protocol = LEAKY if compared.target_review == "include" else "target excluded"
    lines = [
        f"{len(compared.reported_folds)} of {compared.folds} folds, "
        f"{compared.overall.reviews:,} reviews of {compared.overall.users:,} users, {protocol}; "
        "95 % intervals over users and seeds; nats. Of a log-loss, above is better.",
        *_rows(compared, compared.overall, against, [*compared.models]),
    ]
    if BEST_ON_TEXTS in compared.models:
        on_texts = [name for name, model in compared.models.items() if model.sees == "text"]
        lines += _rows(compared, compared.overall, BEST_ON_TEXTS, on_texts)
    models = [name for name, model in compared.models.items() if model.kind != "baseline"]
    for name, part in compared.by_history.items():
        if part.reviews:
            lines.append(f"users with {name} other reviews: {part.reviews:,} reviews")
            lines += _rows(compared, part, against, models)
    return "\n".join(lines)


def _rows(compared: Crossvalidation, part: Slice, against: str, names: Sequence[str]) -> list[str]:
    """A heading, and a line per model."""
    width = 2 + max(5, *(len(model.label) for model in compared.models.values()))
    differences = {one.model: one for one in part.comparisons if one.baseline == against}
    lines = [
        f"  {'model':<{width}}{'sees':<12}{'accuracy':>8}{'log-loss':>10}"
        f"   {'accuracy - ' + against:<37}log-loss - {against}"
    ]
    for name in names:
        score, model = part.scores[name], compared.models[name]
        line = f"  {model.label:<{width}}{model.sees:<12}"
        line += f"{score.accuracy:>8.3f}{number(score.log_loss):>10}"
        if name in differences:
            one = differences[name]
            accuracy = f"{paired.signed(one.difference, one.interval)} {one.verdict}"
            loss = paired.signed(one.log_loss_difference, one.log_loss_interval, digits=4)
            line += f"   {accuracy:<37}{loss} {one.log_loss_verdict or ''}".rstrip()
        lines.append(line)
    return lines
