"""What a comparison writes: comparison.json (docs/formats.md)."""

import msgspec

from sasnet_jax import files
from sasnet_jax.baselines.registry import Description
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import Count
from sasnet_jax.scores.metrics import Scores
from sasnet_jax.scores.paired import Difference, Interval


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


class Comparison(files.Record, kw_only=True, frozen=True):
    """comparison.json."""

    made_by = "python -m sasnet_jax.evaluate --output"
    version = 1  # 0 held seeds fixed, and its "at least level" allowed 0.02
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
