"""Runs and baselines as the models of one table (paper section 3.2, Table 2).

In: `Sources`. Out: `Model`, with its metrics and their inputs, and `Group`, the models that differ
only in their seed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sasnet_jax.baselines.registry import Description
from sasnet_jax.baselines.results import Baselines, read_predictions
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.evaluate import comparison
from sasnet_jax.model.run import Run
from sasnet_jax.report.sources import Output, Sources
from sasnet_jax.scores import paper
from sasnet_jax.scores.metrics import Scores
from sasnet_jax.scores.predictions import LEAKY, Evaluated, Predictions, Truncated

EXCLUDED = "target excluded"
# The metrics that the table of models shows, and its headings.
METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "quadratic_kappa": "kappa",
    "log_loss": "log-loss",
    "calibration_error": "calibration error",
}
_INPUTS = {"nothing": "", "target": "the target's own text"}  # otherwise what a baseline sees


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """One model's results on validation and test."""

    name: str
    label: str  # its name in tables
    inputs: str
    target_review: str
    scope: str  # the rest of the protocol in words; empty for the whole corpus
    scores: Evaluated
    predictions: Callable[[], Predictions]
    paper: tuple[float, float] | None  # F1 and accuracy that the paper printed for it
    baseline: Description | None = None  # what it is; None for a run
    truncated: dict[str, Truncated] = dataclasses.field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether it is a SASNet."""
        return self.baseline is None

    @property
    def test(self) -> Scores:
        """The metrics of the test split."""
        return self.scores.test

    @property
    def accuracy(self) -> float:
        """Accuracy on the test split."""
        return self.test.accuracy or 0.0

    @property
    def is_ceiling(self) -> bool:
        """Whether it reads the target's own text under any protocol."""
        return self.baseline is not None and self.baseline.is_ceiling

    @property
    def leaky(self) -> bool:
        """Whether the review to be predicted is among what is averaged."""
        return self.target_review == "include"

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        words = "reads the target: a ceiling" if self.is_ceiling else EXCLUDED
        words = LEAKY if self.leaky else words
        return f"{words}, {self.scope}" if self.scope else words


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A model, or runs that differ only in their seed."""

    stem: str  # without the number of seeds
    models: tuple[Model, ...]

    @property
    def first(self) -> Model:
        """Any model, for what all have in common."""
        return self.models[0]

    @property
    def name(self) -> str:
        """The name, and the number of seeds."""
        return self.stem if len(self.models) == 1 else f"{self.stem} ({len(self.models)} seeds)"

    @property
    def accuracy(self) -> float:
        """Mean accuracy over seeds, on the test split."""
        return float(np.mean([model.accuracy for model in self.models]))

    def value(self, metric: str) -> str:
        """A test metric: its mean and its standard deviation over seeds."""
        return spread([getattr(model.test, metric) for model in self.models])


def groups_of(sources: Sources) -> list[Group]:
    """Every evaluated run, those of several seeds together, and every baseline.

    Honest models come first; among these, those of the whole corpus; among these, the most
    accurate.
    """
    runs = {str(run.folder): run for run in sources.runs if run.evaluation}
    groups = [
        Group(group.name, tuple(_of_run(runs[name], sources.corpus) for name in group.runs))
        for group in comparison.groups_of({name: run.decisive() for name, run in runs.items()})
    ]
    for baselines in sources.baselines:
        models = _of_baselines(baselines, sources.corpus)
        groups += [Group(model.label, (model,)) for model in models]
    return sorted(
        groups, key=lambda g: (g.first.leaky, g.first.is_ceiling, g.first.scope, -g.accuracy)
    )


def best_baseline(groups: Sequence[Group], inputs: str = "") -> Group | None:
    """The most accurate baseline that does not read the target; with `inputs`, of those only."""
    honest = (g for g in groups if not g.first.is_run and not _reads_target(g))
    return next((g for g in honest if inputs in ("", g.first.inputs)), None)


def best_run(groups: Sequence[Group]) -> Group | None:
    """The most accurate SASNet that does not read the target."""
    return next((g for g in groups if g.first.is_run and not _reads_target(g)), None)


def spread(values: Sequence[float | None]) -> str:
    """`0.512`, or `0.512 ± 0.004` for several values; a dash if any is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}"


def _reads_target(group: Group) -> bool:
    return group.first.leaky or group.first.is_ceiling


def _of_run(run: Run, corpus: Corpus) -> Model:
    assert run.evaluation is not None
    config = run.config
    scope = "five classes" if config.classes == 5 else ""
    return Model(
        name=run.name,
        label=run.name,
        inputs="text+stars" if config.sees_stars else "text",
        target_review=config.target_review,
        scope=scope,
        scores=run.evaluation,
        predictions=functools.partial(run.predictions, corpus, run.evaluation),
        paper=None if config.sees_stars or scope else paper.TABLE_2["SASNet"],
        truncated=run.evaluation.truncated_histories or {},
    )


def _of_baselines(baselines: Output[Baselines], corpus: Corpus) -> list[Model]:
    record, parts = baselines.record, []
    if record.subset:
        parts.append(f"{record.subset:,} reviews, averages over the {record.averages_over}")
    if record.classes == 5:
        parts.append("five classes")
    return [
        Model(
            name=name,
            label=baseline.label,
            inputs=_INPUTS.get(baseline.sees, baseline.sees),
            target_review=record.target_review,
            scope=", ".join(parts),
            scores=baseline,
            predictions=functools.partial(read_predictions, baselines.folder, record, name, corpus),
            paper=_papers(baseline, record.stores.get(baseline.store or "")),
            baseline=baseline,
        )
        for name, baseline in record.models.items()
    ]


def _papers(baseline: Description, store: dict[str, Any] | None) -> tuple[float, float] | None:
    """What the paper printed for such a baseline.

    Args:
      baseline: the baseline.
      store: the identity of the store that it reads, or None.
    """
    if (baseline.sees, baseline.fit) != ("text", "svm"):
        return None
    if baseline.features == "tfidf":
        return paper.TABLE_2["TF-IDF + SVM"]
    is_phi3 = store and (paper.method_of(store, store["pooling"]) or "").startswith("phi3")
    return paper.TABLE_2["phi3 + SVM"] if is_phi3 else None
