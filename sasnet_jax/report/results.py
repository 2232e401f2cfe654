"""Pictures of runs and baselines: curves, confusion, calibration, history, leakage."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sasnet_jax.corpus.corpus import CLASS_NAMES, Corpus
from sasnet_jax.embedding_quality.quality_tables import Table
from sasnet_jax.evaluate.results import ComparedBaseline, Comparison, outside_groups
from sasnet_jax.leakage.command import Leakage
from sasnet_jax.model.run import Run
from sasnet_jax.report import charts, models
from sasnet_jax.report.charts import PALETTE, Bar, Bars, Chart, Series
from sasnet_jax.report.models import Group, Model
from sasnet_jax.scores import metrics, paired
from sasnet_jax.scores.predictions import LEAKY

_MOST_RUNS = 4  # groups of runs in a picture; the tables hold all
_LEAST_SURE = 0.2  # the smallest value of the largest of five probabilities
_FEWEST_IN_BIN = 10  # reviews; the accuracy of fewer says nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Curves:
    """The learning curves of one run."""

    name: str
    note: str
    charts: tuple[Chart, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One number of a confusion matrix."""

    count: int
    share: float  # of the true class


@dataclasses.dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix of the test split, summed over seeds."""

    name: str
    protocol: str
    leaky: bool
    rows: dict[str, tuple[Cell, ...]]  # by true class; the cells are in the same order


def shown(groups: Sequence[Group]) -> list[Group]:
    """What the pictures compare: the first runs, and the best baseline."""
    runs = [group for group in groups if group.first.is_run][:_MOST_RUNS]
    best = models.best_baseline(groups)
    return [*runs, *([best] if best else [])]


def curves(run: Run) -> Curves:
    """Loss and accuracy by epoch."""
    epochs = [epoch.epoch for epoch in run.curve]
    best = run.best.epoch if run.best else None

    def drawn(title: str, y_label: str, names: dict[str, str]) -> Chart:
        values = {name: [getattr(epoch, key) for epoch in run.curve] for key, name in names.items()}
        lines = [
            Series(name, [*zip(epochs, by_epoch, strict=True)], color)
            for (name, by_epoch), color in zip(values.items(), PALETTE, strict=False)
        ]
        return charts.chart(title, lines, "epoch", y_label, mark=best)

    losses = {"train_loss": "training", "validation_log_loss": "validation"}
    rates = {"validation_accuracy": "accuracy", "validation_macro_f1": "macro F1"}
    pictures = (
        drawn("Loss", "nats", losses),
        drawn("On validation", "share", rates),
    )
    notes = [LEAKY] if run.config.target_review == "include" else []
    notes += [run.state]
    notes += [f"best epoch {best:,} of {epochs[-1]:,}"] if run.curve else []
    return Curves(run.name, "; ".join(notes), pictures if run.curve else ())


def confusion(group: Group) -> Confusion:
    """The confusion matrix of a group; its rows are the true classes."""
    matrix = np.sum([model.test.confusion for model in group.models], axis=0)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return Confusion(
        group.name,
        group.first.protocol,
        group.first.leaky,
        {
            name: tuple(Cell(int(n), float(s)) for n, s in zip(*line, strict=True))
            for name, *line in zip(CLASS_NAMES[len(matrix)], matrix, share, strict=True)
        },
    )


def reliability(groups: Sequence[Group], corpus: Corpus) -> Chart | None:
    """How often a model is right, by how sure it is; None without models."""
    lines = []
    for group, color in zip(groups, PALETTE, strict=False):
        bins = np.sum([_bins(model, corpus) for model in group.models], axis=0)
        bins = bins[bins[:, 0] >= _FEWEST_IN_BIN]
        points = [(confidence / n, right / n) for n, confidence, right in bins.tolist()]
        notes = [
            f"{n:,.0f} reviews, {right / n:.2f} of them predicted correctly"
            for n, _, right in bins.tolist()
        ]
        lines.append(Series(_legend(group), points, color, dots=True, notes=notes))
    if not lines:
        return None
    diagonal = Series(
        "confidence equals accuracy", [(_LEAST_SURE, _LEAST_SURE), (1, 1)], "muted", dashed=True
    )
    return charts.chart(
        "Reliability",
        [diagonal, *lines],
        "probability of the predicted class",
        "share predicted correctly",
        x_range=(_LEAST_SURE, 1),
        y_range=(0, 1),
        note=f"test split; bins of at least {_FEWEST_IN_BIN} reviews. Below the dashed line, "
        "a model is overconfident.",
        height=320,
    )


def _bins(model: Model, corpus: Corpus) -> np.ndarray:
    rows, probability = model.predictions()
    test = corpus.split[rows] == "test"
    label = corpus.labels(probability.shape[1])[rows[test]]
    return metrics.reliability(label, probability[test])


def histories(groups: Sequence[Group]) -> Chart | None:
    """Accuracy by the length of the user's history; None if no model recorded it."""
    known = [group for group in groups if all(m.test.by_history for m in group.models)]
    if not known:
        return None
    slices = known[0].first.test.by_history
    lines = [
        Series(
            _legend(group),
            [*enumerate(_mean_by_history(group, slices))],
            color,
            dots=True,
            dashed=group.first.leaky,
        )
        for group, color in zip(shown(known), PALETTE, strict=False)
    ]
    return charts.chart(
        "Accuracy by length of history",
        lines,
        "the user's other reviews",
        "accuracy",
        x_names=list(slices),
        note="test split; 0 is a cold start. Reviews: "
        + ", ".join(f"{scores.reviews:,} with {name}" for name, scores in slices.items()),
    )


def _mean_by_history(group: Group, slices: Iterable[str]) -> list[float]:
    """The mean over seeds; NaN for a slice without reviews."""
    table = [[m.test.by_history[name].accuracy for name in slices] for m in group.models]
    return np.array(table, dtype=np.float64).mean(axis=0).tolist()


def cut_histories(groups: Sequence[Group]) -> Chart | None:
    """Accuracy if only the first reviews of each user are seen; None if not measured."""
    known = [group for group in groups if all(model.truncated for model in group.models)]
    if not known:
        return None
    names = list(known[0].first.truncated)
    lines = []
    for group, color in zip(known, PALETTE, strict=False):
        table = [
            [model.truncated[name].every_user.accuracy for name in names] for model in group.models
        ]
        means = np.array(table, dtype=np.float64).mean(axis=0).tolist()
        lines.append(Series(_legend(group), [*enumerate(means)], color, dots=True))
    return charts.chart(
        "Accuracy when histories are cut",
        lines,
        "reviews of the user that are seen",
        "accuracy",
        x_names=names,
        note="test split, the same reviews at every point",
    )


def comparison(compared: Comparison) -> Table:
    """Paired differences to each baseline; for several seeds, those of mean and ensemble."""
    rows = []
    for difference in outside_groups(compared):
        low, high = difference.interval
        baseline = compared.models[difference.baseline]
        label = baseline.label if isinstance(baseline, ComparedBaseline) else difference.baseline
        rows.append(
            [
                f"{Path(difference.model).name} against {label}",
                f"{difference.difference:+.3f}",
                f"[{low:+.3f}, {high:+.3f}]",
                "–" if difference.holm_p is None else f"{difference.holm_p:.2g}",
                "yes" if difference.at_least_level else "no",
            ]
        )
    protocol = LEAKY if compared.target_review == "include" else models.EXCLUDED
    return Table(
        f"Difference in test accuracy, {protocol}",
        ["model against baseline", "difference", "95 % interval", "p", "at least level"],
        rows,
        [
            f"{compared.test_reviews:,} reviews of {compared.test_users:,} users. The intervals "
            "are by bootstrap over users; p is McNemar's, Holm-corrected over the baselines. At "
            f"least level: the interval lies above -{paired.MARGIN}."
        ],
    )


def leakage(measured: Sequence[Leakage]) -> list[Bars]:
    """Accuracy of models with and without the target, one picture per reading."""
    pictures: dict[str, list[Bar]] = {}
    for record in measured:
        for row in record.accuracy:
            if row.exclude is not None and row.include is not None and row.reads_context:
                leak = f"{row.include:.3f} ({row.include - row.exclude:+.3f})"
                name = f"{row.label or row.model}, {models.EXCLUDED}"
                pictures.setdefault(record.readings[row.reading], []).extend(
                    [
                        Bar(name, row.exclude, f"{row.exclude:.3f}"),
                        Bar(LEAKY, row.include, leak, "leaky", leaky=True),
                    ]
                )
    return [
        charts.bars(f"Test accuracy, {title}", rows, longest=1) for title, rows in pictures.items()
    ]


def _legend(group: Group) -> str:
    return f"{group.name}, {group.first.protocol}" if group.first.leaky else group.name
