"""Runs beside baselines, with what chance would do (docs/design.md 5).

In: predictions of runs and of baselines on the same test reviews. Out: comparison.json
(docs/formats.md): mean and spread over seeds, an ensemble of them, intervals, paired tests.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from sasnet_jax.baselines.registry import Baseline
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.model.config import what_decides
from sasnet_jax.scores import paired, predictions
from sasnet_jax.scores.predictions import EVALUATED, Predictions

_MEASURED = (
    *("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "quadratic_kappa"),
    *("log_loss", "calibration_error"),
)


class Group(NamedTuple):
    """Runs that differ in little, under a name."""

    name: str
    runs: tuple[str, ...]

    @property
    def ensemble_name(self) -> str:
        """What the mean of its runs' probabilities is called."""
        return f"{self.name} ensemble"


def groups_of(
    descriptions: Mapping[str, Mapping[str, Any]], free: Sequence[str] = ("seed",)
) -> list[Group]:
    """Groups the runs that differ in the `free` settings only, and in nothing a result hangs on.

    A name is what the paths have in common; of one run, its folder's name; all are different.

    Args:
      descriptions: config.json of each run, by its path.
      free: settings that may differ.
    """
    members: dict[str, list[str]] = {}
    for run, description in descriptions.items():
        alike = json.dumps(what_decides(description, free), sort_keys=True)
        members.setdefault(alike, []).append(run)
    groups: list[Group] = []
    for runs in members.values():
        common = os.path.commonprefix([str(Path(run)) for run in runs])
        if len(runs) > 1:
            common = common.rstrip("0123456789-_./ ") or runs[0]
        name = Path(common).name
        if name in (group.name for group in groups):
            name = runs[0]
        groups.append(Group(name, tuple(runs)))
    return groups


def ensemble(group: Group, runs: Mapping[str, Predictions]) -> Predictions:
    """The mean of its runs' probabilities."""
    probability = np.mean([runs[run].probability for run in group.runs], axis=0)
    return Predictions(runs[group.runs[0]].rows, probability)


def refuse_shared_names(groups: Sequence[Group], baselines: Iterable[Baseline]) -> None:
    """Refuses a baseline that is called as a run, or as an ensemble of them."""
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
    seed: int,
) -> dict[str, Any]:
    """What comparison.json is to hold, but for what was compared.

    Raises:
      UserError: they do not predict the same reviews into the same classes.
    """
    first = runs[groups[0].runs[0]]
    ensembles = {
        group.ensemble_name: ensemble(group, runs) for group in groups if len(group.runs) > 1
    }
    predicted_by = {one.name: predicted for one, predicted in baselines.items()}
    _refuse_others(first, {**runs, **predicted_by})
    kinds = {"run": runs, "ensemble": ensembles, "baseline": predicted_by}
    described = {one.name: one.description for one in baselines}
    history = predictions.history_lengths(corpus)
    test = corpus.split[first.rows] == "test"
    user = corpus.user[first.rows[test]]
    label = corpus.labels(first.probability.shape[1])[first.rows[test]]
    found: dict[str, Any] = {"test_reviews": int(test.sum()), "test_users": np.unique(user).size}
    found |= {"resamples": paired.RESAMPLES, "seed": seed, "groups": {}, "models": {}}
    statistics = {}
    for kind, models in kinds.items():
        for name, predicted in models.items():
            probability = predicted.probability.astype(np.float64)
            statistics[name] = paired.statistics(label, probability[test])
            summary = predictions.summarize(corpus, *predicted, history)
            sums = paired.resample_users(user, statistics[name], seed)
            intervals = {k: paired.interval(v) for k, v in paired.metrics_of(sums).items()}
            intervals = {k: v for k, v in intervals.items() if summary["test"][k] is not None}
            what = {"kind": kind, **described.get(name, {})}
            found["models"][name] = what | summary | {"test_intervals": intervals}
    for group in groups:
        found["groups"][group.name] = {
            "runs": list(group.runs),
            **_spread([found["models"][run] for run in group.runs]),
        }
    right = {name: _right(one) for name, one in statistics.items()}
    compared = [one.name for one in baselines if not one.is_ceiling]
    found["comparisons"] = []
    for group in groups:
        if len(group.runs) > 1:
            mean = np.mean([right[run] for run in group.runs], axis=0)
            found["comparisons"] += [
                _difference(f"{group.name} mean", mean, name, right[name], user, seed)
                for name in compared
            ]
    for name in (*ensembles, *runs):
        found["comparisons"] += _tests(name, right, compared, user, seed)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The comparisons of groups, and of runs without one, in words."""
    inside = {
        run for one in found["groups"].values() if len(one["runs"]) > 1 for run in one["runs"]
    }
    shown = [one for one in found["comparisons"] if one["model"] not in inside]
    width, baseline = (
        max([24, *(len(one[key]) + 2 for one in shown)]) for key in ("model", "baseline")
    )
    lines = [
        f"difference in test accuracy, {found['test_reviews']:,} reviews of "
        f"{found['test_users']:,} users: 95 % interval over users; McNemar's p, Holm-corrected",
        f"  {'model':<{width}}{'baseline':<{baseline}}{'difference':>10}  {'interval':<18}{'p':>7}",
    ]
    for one in shown:
        low, high = one["interval"]
        p = predictions.number(one.get("holm_p"))
        level = "  at least level" if one["at_least_level"] else ""
        lines.append(
            f"  {one['model']:<{width}}{one['baseline']:<{baseline}}{one['difference']:>+10.3f}  "
            f"{f'[{low:+.3f}, {high:+.3f}]':<18}{p:>7}{level}"
        )
    return "\n".join(lines)


def spread_table(found: Mapping[str, Any]) -> str:
    """Mean and standard deviation over seeds, of groups of several runs; empty without one."""
    lines = []
    for name, one in found["groups"].items():
        if len(one["runs"]) > 1:
            shown = [
                f"{key.replace('_', ' ')} {numbers['mean']:.3f} ± {numbers['spread']:.3f}"
                for key, numbers in one["test"].items()
                if key in ("accuracy", "macro_f1", "log_loss") and numbers["mean"] is not None
            ]
            lines.append(f"{name}, {len(one['runs'])} seeds: " + ", ".join(shown))
    return "\n".join(lines)


def _refuse_others(first: Predictions, models: Mapping[str, Predictions]) -> None:
    for name, one in models.items():
        if one.probability.shape[1] != first.probability.shape[1]:
            raise UserError(
                f"{name} predicts {one.probability.shape[1]} classes, another model "
                f"{first.probability.shape[1]}: compare those of one --classes"
            )
        if not np.array_equal(one.rows, first.rows):
            raise UserError(
                f"{name} predicts other reviews than the first run: made on a --subset?"
            )


def _spread(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By split and metric: the values, their mean and standard deviation (of n - 1)."""
    found: dict[str, Any] = {}
    for split in EVALUATED:
        found[split] = {}
        for name in _MEASURED:
            values = [summary[split][name] for summary in summaries]
            defined = None not in values
            found[split][name] = {
                "values": values,
                "mean": float(np.mean(values)) if defined else None,
                "spread": float(np.std(values, ddof=1)) if defined and len(values) > 1 else None,
            }
    return found


def _right(statistics: Float64[np.ndarray, "n c_c_and_1"]) -> Float64[np.ndarray, "n"]:
    """1 for each review that is predicted rightly."""
    classes = int(np.sqrt(statistics.shape[1] - 1))
    return statistics[:, : -1 : classes + 1].sum(axis=1)


def _difference(
    name: str,
    right: Float64[np.ndarray, "n"],
    baseline: str,
    other: Float64[np.ndarray, "n"],
    user: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """The difference in accuracy, and its interval over users."""
    columns = np.stack([right - other, np.ones(right.size)], axis=1)
    sums = paired.resample_users(user, columns, seed)
    bounds = paired.interval(sums[:, 0] / sums[:, 1])
    return {
        "model": name,
        "baseline": baseline,
        "difference": float((right - other).mean()),
        "interval": bounds,
        "at_least_level": bounds[0] > -paired.MARGIN,
    }


def _tests(
    name: str,
    right: Mapping[str, Float64[np.ndarray, "n"]],
    baselines: Sequence[str],
    user: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """One model against every baseline: Holm's correction is over these."""
    mine = right[name] > 0
    found = []
    for baseline in baselines:
        other = right[baseline] > 0
        found.append(
            _difference(name, right[name], baseline, right[baseline], user, seed)
            | {
                "only_model_right": int((mine & ~other).sum()),
                "only_baseline_right": int((other & ~mine).sum()),
                "mcnemar_p": paired.mcnemar(mine, other),
            }
        )
    corrected = paired.holm([one["mcnemar_p"] for one in found])
    return [one | {"holm_p": p} for one, p in zip(found, corrected, strict=True)]
