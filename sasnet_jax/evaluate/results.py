"""What a comparison writes: comparison.json (docs/formats.md)."""

from typing import Annotated, TypeAlias

import msgspec

from sasnet_jax import files
from sasnet_jax.baselines.registry import Description
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import Count
from sasnet_jax.scores.metrics import Scores

Interval: TypeAlias = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]
Probability: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Spread(msgspec.Struct, kw_only=True, frozen=True):
    """A metric over the runs of a group."""

    values: list[float | None]
    mean: float | None
    spread: float | None  # sample standard deviation; None for a single run


class GroupScores(msgspec.Struct, kw_only=True, frozen=True):
    """Runs that differ only in their seed; each split's metrics by name."""

    runs: list[str]
    validation: dict[str, Spread]
    test: dict[str, Spread]


class ComparedRun(msgspec.Struct, kw_only=True, frozen=True, tag="run", tag_field="kind"):
    """A run."""

    validation: Scores
    test: Scores
    test_intervals: dict[str, Interval]  # by metric


class ComparedEnsemble(ComparedRun, kw_only=True, frozen=True, tag="ensemble"):
    """The mean of the probabilities of a group's runs."""

    predictions_sha256: str | None = None


class ComparedBaseline(Description, kw_only=True, frozen=True, tag="baseline", tag_field="kind"):
    """A baseline, and what it is."""

    validation: Scores
    test: Scores
    test_intervals: dict[str, Interval]


class Difference(msgspec.Struct, kw_only=True, frozen=True):
    """A model's test accuracy minus a baseline's."""

    model: str
    baseline: str
    difference: float
    interval: Interval
    at_least_level: bool
    only_model_right: Count | None = None  # for one model, not for a mean over seeds
    only_baseline_right: Count | None = None
    mcnemar_p: Probability | None = None
    holm_p: Probability | None = None


class Comparison(files.Record, kw_only=True, frozen=True):
    """comparison.json."""

    made_by = "python -m sasnet_jax.evaluate --output"
    version = 0
    corpus_sha256: str
    target_review: TargetReview
    classes: Count
    test_reviews: Count
    test_users: Count
    resamples: Count
    seed: int
    groups: dict[str, GroupScores]
    models: dict[str, ComparedRun | ComparedEnsemble | ComparedBaseline]
    comparisons: list[Difference]


def outside_groups(compared: Comparison) -> list[Difference]:
    """The differences of groups, and of runs that are not in a group of several."""
    groups = (group.runs for group in compared.groups.values())
    inside = {run for runs in groups if len(runs) > 1 for run in runs}
    return [difference for difference in compared.comparisons if difference.model not in inside]
