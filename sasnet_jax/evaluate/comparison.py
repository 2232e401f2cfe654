"""Compares runs with baselines, and their differences with chance (docs/design.md 5).

In: predictions of runs and of baselines on the same test reviews. Out: comparison.json
(docs/formats.md): mean and spread over seeds, an ensemble of them, intervals, paired tests.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float64

from sasnet_jax.baselines.registry import Baseline
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.evaluate.results import (
    ComparedBaseline,
    ComparedEnsemble,
    ComparedRun,
    Comparison,
    Difference,
    GroupScores,
    Spread,
    outside_groups,
)
from sasnet_jax.scores import paired, predictions
from sasnet_jax.scores.predictions import Evaluated, Predictions

_MEASURED = (
    *("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "quadratic_kappa"),
    *("log_loss", "calibration_error"),
)


class Group(NamedTuple):
    """Runs that differ only in their seed, under one name."""

    name: str
    runs: tuple[str, ...]

    @property
    def ensemble_name(self) -> str:
        """The name of the mean of its runs' probabilities."""
        return f"{self.name} ensemble"


def groups_of(runs: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Groups the runs whose decisive settings are equal.

    The name of a group is the common part of its paths, or a single run's folder name. No two
    groups share a name.

    Args:
      runs: what decides each run's results (`Run.decisive`), by its path.
    """
    members: dict[str, list[str]] = {}
    for run, decisive in runs.items():
        members.setdefault(json.dumps(decisive, sort_keys=True), []).append(run)
    groups: list[Group] = []
    for paths in members.values():
        common = os.path.commonprefix([str(Path(path)) for path in paths])
        if len(paths) > 1:
            common = common.rstrip("0123456789-_./ ") or paths[0]
        name = Path(common).name
        if name in (group.name for group in groups):
            name = paths[0]
        groups.append(Group(name, tuple(paths)))
    return groups


def ensemble(group: Group, runs: Mapping[str, Predictions]) -> Predictions:
    """The mean of its runs' probabilities."""
    probability = np.mean([runs[run].probability for run in group.runs], axis=0)
    return Predictions(runs[group.runs[0]].rows, probability)


def refuse_shared_names(groups: Sequence[Group], baselines: Iterable[Baseline]) -> None:
    """Refuses a baseline that shares its name with a run or an ensemble."""
    taken = {name for group in groups for name in (*group.runs, group.ensemble_name)}
    for baseline in baselines:
        if baseline.name in taken:
            raise UserError(
                f"a run and a baseline are both called {baseline.name}: rename the run's folder"
            )


def compare(
    corpus: Corpus,
    groups: Sequence[Group],
    runs: Mapping[str, Predictions],
    baselines: Mapping[Baseline, Predictions],
    target_review: TargetReview,
    seed: int,
) -> Comparison:
    """Builds the content of comparison.json.

    Raises:
      UserError: the models differ in reviews or in classes.
    """
    first = runs[groups[0].runs[0]]
    ensembles = {
        group.ensemble_name: ensemble(group, runs) for group in groups if len(group.runs) > 1
    }
    predicted_by = {one.name: predicted for one, predicted in baselines.items()}
    _refuse_others(first, {**runs, **predicted_by})
    described = {one.name: one.description for one in baselines}
    history = predictions.history_lengths(corpus)
    test = corpus.split[first.rows] == "test"
    user = corpus.user[first.rows[test]]
    label = corpus.labels(first.probability.shape[1])[first.rows[test]]
    models: dict[str, ComparedRun | ComparedEnsemble | ComparedBaseline] = {}
    statistics = {}
    for name, predicted in {**runs, **ensembles, **predicted_by}.items():
        probability = predicted.probability.astype(np.float64)
        statistics[name] = paired.statistics(label, probability[test])
        summary = predictions.summarize(corpus, *predicted, history)
        sums = paired.resample_users(user, statistics[name], seed)
        intervals = {k: paired.interval(v) for k, v in paired.metrics_of(sums).items()}
        intervals = {k: v for k, v in intervals.items() if getattr(summary.test, k) is not None}
        scores: dict[str, Any] = {"validation": summary.validation, "test": summary.test}
        scores["test_intervals"] = intervals
        if name in described:
            models[name] = ComparedBaseline(**described[name], **scores)
        else:
            models[name] = ComparedRun(**scores) if name in runs else ComparedEnsemble(**scores)
    right = {name: _right(one) for name, one in statistics.items()}
    compared = [one.name for one in baselines if not one.is_ceiling]
    differences = _differences_of_means(groups, right, compared, user, seed)
    for name in (*ensembles, *runs):
        differences += _tests(name, right, compared, user, seed)
    return Comparison(
        corpus_sha256=corpus.sha256,
        target_review=target_review,
        classes=first.probability.shape[1],
        test_reviews=int(test.sum()),
        test_users=np.unique(user).size,
        resamples=paired.RESAMPLES,
        seed=seed,
        groups={group.name: _spread(group, models) for group in groups},
        models=models,
        comparisons=differences,
    )


def table(compared: Comparison) -> str:
    """The comparisons of groups, and of runs outside them, as a table of text."""
    shown = outside_groups(compared)
    width = max([24, *(len(difference.model) + 2 for difference in shown)])
    baseline = max([24, *(len(difference.baseline) + 2 for difference in shown)])
    lines = [
        f"difference in test accuracy, {compared.test_reviews:,} reviews of "
        f"{compared.test_users:,} users: 95 % interval over users; McNemar's p, Holm-corrected",
        f"  {'model':<{width}}{'baseline':<{baseline}}{'difference':>10}  {'interval':<18}{'p':>7}",
    ]
    for difference in shown:
        low, high = difference.interval
        level = "  at least level" if difference.at_least_level else ""
        lines.append(
            f"  {difference.model:<{width}}{difference.baseline:<{baseline}}"
            f"{difference.difference:>+10.3f}  "
            f"{f'[{low:+.3f}, {high:+.3f}]':<18}{predictions.number(difference.holm_p):>7}{level}"
        )
    return "\n".join(lines)


def spread_table(compared: Comparison) -> str:
    """Mean and standard deviation over seeds, of groups of several runs; empty if there is none."""
    lines = []
    for name, group in compared.groups.items():
        if len(group.runs) > 1:
            shown = [
                f"{key.replace('_', ' ')} {numbers.mean:.3f} ± {numbers.spread:.3f}"
                for key, numbers in group.test.items()
                if key in ("accuracy", "macro_f1", "log_loss") and numbers.mean is not None
            ]
            lines.append(f"{name}, {len(group.runs)} seeds: " + ", ".join(shown))
    return "\n".join(lines)


def _refuse_others(first: Predictions, models: Mapping[str, Predictions]) -> None:
    for name, predicted in models.items():
        if predicted.probability.shape[1] != first.probability.shape[1]:
            raise UserError(
                f"{name} predicts {predicted.probability.shape[1]} classes, but another model "
                f"{first.probability.shape[1]}: compare models with the same --classes"
            )
        if not np.array_equal(predicted.rows, first.rows):
            raise UserError(
                f"{name} and the first run predict different reviews: was it fitted on a --subset?"
            )


def _spread(group: Group, models: Mapping[str, Evaluated]) -> GroupScores:
    """By split and metric: the values, their mean and their sample standard deviation."""
    spreads: dict[str, dict[str, Spread]] = {"validation": {}, "test": {}}
    for name in _MEASURED:
        for split, scores in (
            ("validation", [models[run].validation for run in group.runs]),
            ("test", [models[run].test for run in group.runs]),
        ):
            values = [getattr(score, name) for score in scores]
            defined = None not in values
            spreads[split][name] = Spread(
                values=values,
                mean=float(np.mean(values)) if defined else None,
                spread=float(np.std(values, ddof=1)) if defined and len(values) > 1 else None,
            )
    return GroupScores(runs=list(group.runs), **spreads)


def _right(statistics: Float64[np.ndarray, "n c_c_and_1"]) -> Float64[np.ndarray, "n"]:
    """1 for each review that is predicted correctly."""
    classes = int(np.sqrt(statistics.shape[1] - 1))
    return statistics[:, : -1 : classes + 1].sum(axis=1)


def _differences_of_means(
    groups: Sequence[Group],
    right: Mapping[str, Float64[np.ndarray, "n"]],
    baselines: Sequence[str],
    user: np.ndarray,
    seed: int,
) -> list[Difference]:
    """The mean of each group of several runs, compared with every baseline."""
    differences = []
    for group in groups:
        if len(group.runs) > 1:
            mean = np.mean([right[run] for run in group.runs], axis=0)
            differences += [
                _difference(f"{group.name} mean", mean, baseline, right[baseline], user, seed)
                for baseline in baselines
            ]
    return differences


def _difference(
    name: str,
    right: Float64[np.ndarray, "n"],
    baseline: str,
    other: Float64[np.ndarray, "n"],
    user: np.ndarray,
    seed: int,
) -> Difference:
    """The difference in accuracy, and its interval over users."""
    columns = np.stack([right - other, np.ones(right.size)], axis=1)
    sums = paired.resample_users(user, columns, seed)
    bounds = paired.interval(sums[:, 0] / sums[:, 1])
    return Difference(
        model=name,
        baseline=baseline,
        difference=float((right - other).mean()),
        interval=bounds,
        at_least_level=bounds[0] > -paired.MARGIN,
    )


def _tests(
    name: str,
    right: Mapping[str, Float64[np.ndarray, "n"]],
    baselines: Sequence[str],
    user: np.ndarray,
    seed: int,
) -> list[Difference]:
    """Compares one model with every baseline; Holm's correction covers these comparisons."""
    mine = right[name] > 0
    others = [right[baseline] > 0 for baseline in baselines]
    p = [paired.mcnemar(mine, other) for other in others]
    return [
        msgspec.structs.replace(
            _difference(name, right[name], baseline, right[baseline], user, seed),
            only_model_right=int((mine & ~other).sum()),
            only_baseline_right=int((other & ~mine).sum()),
            mcnemar_p=raw,
            holm_p=corrected,
        )
        for baseline, other, raw, corrected in zip(
            baselines, others, p, paired.holm(p), strict=True
        )
    ]
