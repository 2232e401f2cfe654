"""`python -m sasnet_jax.leakage`: what a model gains by reading the review that it predicts.

The paper does not say that this review is left out of the averages (docs/design.md 5). Every
baseline is fitted without it and with it, over the paper's subset in both readings and over all
reviews.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from sasnet_jax import cli, files
from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.baselines.protocol import AveragesOver
from sasnet_jax.baselines.registry import MAJORITY, ORACLE, Sees, TextFeatures
from sasnet_jax.baselines.results import COMPLETE, Baselines
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import Count, read_corpus
from sasnet_jax.evaluate import comparison
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions

_EITHER: tuple[TargetReview, ...] = ("exclude", "include")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LeakageConfig:
    """Settings of `leakage`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting((), help="embedding store; repeatable", topic="files")
    run: tuple[str, ...] = setting((), help="evaluated run folder; repeatable", topic="files")
    output: str = setting(
        "", help="folder to write; the same command resumes it", topic="files", required=True
    )
    subset: int = setting(
        4000,
        help="number of reviews in the paper's subset; 0 = all reviews only",
        topic="protocol",
        minimum=0,
    )
    seed: int = setting(
        0,
        help="seed of the subset and of the rows to tune on",
        topic="protocol",
        minimum=0,
        below=2**31,
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """A model's test accuracy with the target excluded and included; a baseline's description."""

    reading: str
    model: str
    exclude: float | None
    include: float | None
    leak: float | None  # include - exclude
    validation_include: float | None = None
    label: str | None = None
    sees: Sees | None = None
    features: TextFeatures | None = None
    store: str | None = None
    fit: str | None = None

    def __post_init__(self):
        """Refuses a baseline that does not say what it is."""
        if self.validation_include is not None and None in (self.label, self.sees, self.fit):
            raise ValueError("it does not say what each baseline sees and how it is fitted")

    @property
    def is_baseline(self) -> bool:
        """Whether it is a baseline's row, not a run's."""
        return self.sees is not None

    @property
    def reads_context(self) -> bool:
        """Whether it depends on the other reviews, and so on the protocol."""
        return self.sees not in ("nothing", "target")


class Leakage(files.Record, kw_only=True, frozen=True):
    """leakage.json."""

    made_by = "python -m sasnet_jax.leakage"
    version = 0
    corpus_sha256: str
    subset: Count
    seed: int
    readings: dict[str, str]  # what their names mean
    accuracy: list[Row]
    sentence: str


class _Reading(NamedTuple):
    """One way to read the paper."""

    title: str
    subset: int
    averages_over: AveragesOver


def run(config: LeakageConfig) -> None:
    """Writes leakage.json and one folder of baselines for each protocol."""
    corpus = read_corpus(Path(config.corpus))
    output = Path(config.output)
    readings = {"all": _Reading("all reviews", 0, "corpus")}
    if config.subset:
        of = f"{config.subset:,} reviews, averages over"
        readings = {
            "subset": _Reading(f"{of} them", config.subset, "subset"),
            "subset_corpus": _Reading(f"{of} all", config.subset, "corpus"),
            **readings,
        }
    protocols = {(name, kind): output / f"{name}_{kind}" for name in readings for kind in _EITHER}
    files.claim(output, "leakage.json", *(folder.name for folder in protocols.values()))
    runs = _runs(config, corpus.sha256)
    models = {}
    for (name, target_review), folder in protocols.items():
        print(f"{readings[name].title}, target {target_review}d:")
        baselines.run(
            BaselinesConfig(
                corpus=config.corpus,
                store=config.store,
                output=str(folder),
                target_review=target_review,
                subset=readings[name].subset,
                averages_over=readings[name].averages_over,
                seed=config.seed,
            )
        )
        models[name, target_review] = files.read_record(folder / COMPLETE, Baselines).models
    rows = []
    for name in readings:
        exclude, include = (models[name, target_review] for target_review in _EITHER)
        for model, result in include.items():
            accuracies = {"exclude": exclude[model].test.accuracy, "include": result.test.accuracy}
            tuned = result.validation.accuracy
            rows.append(
                _row(name, model, accuracies, validation_include=tuned, **result.description)
            )
    rows += [_row("all", name, accuracies) for name, accuracies in runs.items()]
    record = Leakage(
        corpus_sha256=corpus.sha256,
        subset=config.subset,
        seed=config.seed,
        readings={name: reading.title for name, reading in readings.items()},
        accuracy=rows,
        sentence=explained(rows),
    )
    files.write_record(output / "leakage.json", record)
    print(table(rows, record.readings))
    print(record.sentence)
    print(f"written: {output}/leakage.json")


def table(rows: list[Row], titles: Mapping[str, str]) -> str:
    """Test accuracies: a line per model, three columns per reading."""
    width = max([24, *(len(row.model) + 2 for row in rows)])
    lines = ["test accuracy with the target excluded, included (leaky), and the difference"]
    lines.append(f"  {'':<{width}}" + "".join(f"{title:^36}" for title in titles.values()))
    models: dict[tuple[str, bool], dict[str, Row]] = {}
    for row in rows:  # a run may have the name of a baseline
        models.setdefault((row.model, row.is_baseline), {})[row.reading] = row
    for (model, _), cells in models.items():
        shown = [cells.get(name) for name in titles]
        numbers = [
            (cell.exclude, cell.include, cell.leak) if cell else [None] * 3 for cell in shown
        ]
        text = "".join(f"{predictions.number(cell):>12}" for three in numbers for cell in three)
        lines.append(f"  {model:<{width}}{text}")
    return "\n".join(lines)


def explained(rows: list[Row]) -> str:
    """Says what the leak explains of the best baseline that reads only text, as the paper's do.

    The best baseline is chosen on validation, with the target included. (With stars too, the leak
    is the label itself.)
    """
    every = {row.model: row for row in rows if row.reading == "all" and row.is_baseline}
    text = [row for row in every.values() if row.sees == "text"]
    best = max(text, key=lambda row: row.validation_include or 0.0)
    majority, oracle = every[MAJORITY].include or 0.0, every[ORACLE].exclude or 0.0
    exclude, include = best.exclude or 0.0, best.include or 0.0
    gain, leak = include - majority, include - exclude
    share = f"{leak / gain:.0%} of" if gain > 0 else "all of"
    return (
        f"The leak explains {share} what {best.model} gains over a majority vote here: its "
        f"accuracy is {include:.3f} with the target included and {exclude:.3f} "
        f"without, between the {majority:.3f} of the majority and the {oracle:.3f} of a model that "
        "reads the target's own text alone."
    )


def _row(reading: str, model: str, accuracy: Mapping[Any, float | None], **others: Any) -> Row:
    exclude, include = accuracy["exclude"], accuracy["include"]
    leak = None if exclude is None or include is None else include - exclude
    return Row(reading=reading, model=model, exclude=exclude, include=include, leak=leak, **others)


def _runs(config: LeakageConfig, corpus_sha256: str) -> dict[str, dict[str, float | None]]:
    """Mean test accuracy of runs that differ only in seed and target_review, by name and protocol.

    Raises:
      UserError: a run has another corpus or other classes, or was not evaluated.
    """
    runs = {name: Run(name) for name in config.run}
    accuracy: dict[str, Any] = {}
    for name, run in runs.items():
        if run.corpus_sha256 != corpus_sha256:
            raise UserError(f"run {name} was not trained on corpus {config.corpus}: leave it out")
        if run.config.classes != 3:
            raise UserError(f"run {name} does not predict the paper's three classes: leave it out")
        if run.evaluation is None:
            raise UserError(
                f"run {name} has no evaluation of its best epoch: "
                f"run python -m sasnet_jax.evaluate --run={name}"
            )
        accuracy[name] = run.evaluation.test.accuracy
    rows: dict[str, dict[str, float | None]] = {}
    decisive = {name: run.decisive(free=("seed", "target_review")) for name, run in runs.items()}
    for group in comparison.groups_of(decisive):
        rows[group.name] = {}
        for target_review in _EITHER:
            values = [
                accuracy[name]
                for name in group.runs
                if runs[name].config.target_review == target_review
            ]
            rows[group.name][target_review] = float(np.mean(values)) if values else None
    return rows
