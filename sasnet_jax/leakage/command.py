"""`python -m sasnet_jax.leakage`: what a model gains by reading the review it is to predict.

The paper does not say that this review is left out of the averages (docs/design.md 5). Every
baseline is made with it out and in, over the paper's subset in both readings and over all reviews.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sasnet_jax import cli, files
from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines import registry
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.baselines.protocol import AveragesOver
from sasnet_jax.baselines.registry import MAJORITY, ORACLE
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.evaluate import comparison
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions

_EITHER: tuple[TargetReview, ...] = ("exclude", "include")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LeakageConfig:
    """Settings of `leakage`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting((), help="embedding store; repeatable", topic="files")
    run: tuple[str, ...] = setting((), help="run that was evaluated; repeatable", topic="files")
    output: str = setting(
        "", help="folder to write; the same command goes on", topic="files", required=True
    )
    subset: int = setting(
        4000,
        help="reviews of the paper's subset; 0 = over all reviews only",
        topic="protocol",
        minimum=0,
    )
    seed: int = setting(
        0, help="of the subset and of the rows to tune on", topic="protocol", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)


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
    for path in output.glob("*/baselines.json"):
        found = files.read_json(path, "python -m sasnet_jax.leakage", ("models",))
        registry.read(path, found["models"], "python -m sasnet_jax.leakage")
    runs = _runs(config, corpus.sha256)
    rows: list[dict[str, Any]] = []
    for name, reading in readings.items():
        made = {}
        for target_review in _EITHER:
            folder = output / f"{name}_{target_review}"
            print(f"{reading.title}, target {target_review}d:")
            baselines.run(
                BaselinesConfig(
                    corpus=config.corpus,
                    store=config.store,
                    output=str(folder),
                    target_review=target_review,
                    subset=reading.subset,
                    averages_over=reading.averages_over,
                    seed=config.seed,
                )
            )
            path = folder / "baselines.json"
            made[target_review] = files.read_json(path, "python -m sasnet_jax.leakage")["models"]
        for model, baseline in registry.read(path, made["include"]).items():
            both = {one: made[one][model]["test"]["accuracy"] for one in _EITHER}
            tuned = made["include"][model]["validation"]["accuracy"]
            rows.append(
                _row(name, model, both) | {"validation_include": tuned} | baseline.description
            )
    rows += [_row("all", name, both) for name, both in runs.items()]
    titles = {name: reading.title for name, reading in readings.items()}
    sentence = explained(rows)
    result = {"corpus_sha256": corpus.sha256, "subset": config.subset, "seed": config.seed}
    result |= {"readings": titles, "accuracy": rows, "sentence": sentence}
    files.write_json(output / "leakage.json", result)
    print(table(rows, titles))
    print(sentence)
    print(f"written: {output}/leakage.json")


def table(rows: list[dict[str, Any]], titles: Mapping[str, str]) -> str:
    """Test accuracies: a line a model, three columns a reading."""
    width = max([24, *(len(row["model"]) + 2 for row in rows)])
    lines = ["test accuracy with the target excluded, included (leaky), and the difference"]
    lines.append(f"  {'':<{width}}" + "".join(f"{title:^36}" for title in titles.values()))
    models: dict[tuple[str, bool], dict[str, dict[str, Any]]] = {}
    for row in rows:  # only a baseline says what it sees; a run may have its name
        models.setdefault((row["model"], "sees" in row), {})[row["reading"]] = row
    for (model, _), cells in models.items():
        numbers = [
            f"{predictions.number(cells.get(name, {}).get(key)):>12}"
            for name in titles
            for key in ("exclude", "include", "leak")
        ]
        lines.append(f"  {model:<{width}}" + "".join(numbers))
    return "\n".join(lines)


def explained(rows: list[dict[str, Any]]) -> str:
    """What the leak explains here, of the best baseline of text alone, as the paper's are.

    The best on validation, with the target included. (With stars beside, the leak is the label.)
    """
    every = {row["model"]: row for row in rows if row["reading"] == "all" and "sees" in row}
    text = [row for row in every.values() if row["sees"] == "text"]
    best = max(text, key=lambda row: row["validation_include"])
    majority, oracle = every[MAJORITY]["include"], every[ORACLE]["exclude"]
    gain, leak = best["include"] - majority, best["leak"]
    share = f"{leak / gain:.0%} of" if gain > 0 else "all of"
    return (
        f"The leak explains {share} what {best['model']} gains over a majority vote here: its "
        f"accuracy is {best['include']:.3f} with the target included and {best['exclude']:.3f} "
        f"without, between the {majority:.3f} of the majority and the {oracle:.3f} of a model that "
        "reads the target's own text alone."
    )


def _row(reading: str, model: str, accuracy: Mapping[Any, float | None]) -> dict[str, Any]:
    exclude, include = accuracy["exclude"], accuracy["include"]
    leak = None if exclude is None or include is None else include - exclude
    return {
        "reading": reading,
        "model": model,
        "exclude": exclude,
        "include": include,
        "leak": leak,
    }


def _runs(config: LeakageConfig, corpus_sha256: str) -> dict[str, dict[str, float | None]]:
    """Mean test accuracy of runs alike but for seed and target_review, by name and target_review.

    Raises:
      UserError: a run is of another corpus or classes, or was not evaluated.
    """
    runs = {name: Run(name) for name in config.run}
    accuracy = {}
    for name, run in runs.items():
        if run.corpus_sha256 != corpus_sha256:
            raise UserError(f"run {name} is of another corpus than {config.corpus}")
        if run.config.classes != 3:
            raise UserError(f"run {name} predicts other classes than the paper's three")
        if run.evaluation is None:
            raise UserError(
                f"run {name} has no evaluation of its best epoch: "
                f"python -m sasnet_jax.evaluate --run={name}"
            )
        accuracy[name] = run.evaluation["test"]["accuracy"]
    rows: dict[str, dict[str, float | None]] = {}
    descriptions = {name: run.description for name, run in runs.items()}
    for group in comparison.groups_of(descriptions, free=("seed", "target_review")):
        rows[group.name] = {}
        for target_review in _EITHER:
            values = [
                accuracy[name]
                for name in group.runs
                if runs[name].config.target_review == target_review
            ]
            rows[group.name][target_review] = float(np.mean(values)) if values else None
    return rows
