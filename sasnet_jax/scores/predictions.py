"""Predictions on disk and in a table: shared by `evaluate` and `baselines` (docs/formats.md)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.corpus import CLASS_NAMES, Corpus
from sasnet_jax.files import replacing
from sasnet_jax.scores import metrics

EVALUATED = ("validation", "test")
LEAKY = "target included (leaky)"


class Predictions(NamedTuple):
    """What was predicted of which reviews."""

    rows: Int32[np.ndarray, "n"]
    probability: Float[np.ndarray, "n c"]


def write(
    path: Path,
    corpus: Corpus,
    rows: Int32[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
) -> None:
    """Writes `row, split, label` and a probability a class (`_columns`) as Parquet, atomically."""
    classes = probability.shape[1]
    columns = {
        "row": rows,
        "split": corpus.split[rows].tolist(),
        "label": corpus.labels(classes)[rows],
    }
    columns |= {name: probability[:, i] for i, name in enumerate(_columns(classes))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pl.DataFrame(columns).write_parquet(file)


def read(path: Path, corpus: Corpus) -> Predictions:
    """Reads what `write` wrote.

    Raises:
      UserError: it is absent, damaged, or of another corpus or split.
    """
    try:
        table = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): predict again") from None
    classes = next((c for c in CLASS_NAMES if {*_columns(c)} <= {*table.columns}), 0)
    if not classes or not {"row", "split", "label"} <= {*table.columns}:
        raise UserError(f"{path} does not hold predictions: {', '.join(table.columns)}")
    rows = table["row"].to_numpy().astype(np.int32)
    fits = rows.size > 0 and rows.min() >= 0 and rows.max() < corpus.user.size
    fits = fits and table["split"].to_list() == corpus.split[rows].tolist()
    if not fits or (table["label"].to_numpy() != corpus.labels(classes)[rows]).any():
        raise UserError(f"{path} predicts another corpus or split than {corpus.folder}")
    return Predictions(rows, table.select(_columns(classes)).to_numpy())


def history_lengths(corpus: Corpus) -> Int32[np.ndarray, "reviews"]:
    """The user's number of other reviews that may be seen with the target excluded, per review.

    Whatever the protocol, so that a review is in the same group in every table.
    """
    return np.asarray(contexts_of(corpus, "exclude").user.size)


def summarize(
    corpus: Corpus,
    rows: Int32[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
    history: Int32[np.ndarray, "reviews"],
) -> dict[str, Any]:
    """Metrics by split, over the evaluated ones; in each, by the length of the user's history.

    Args:
      corpus: the corpus.
      rows: what was predicted.
      probability: of each class.
      history: `history_lengths` of the corpus.
    """
    label = corpus.labels(probability.shape[1])
    found = {}
    for split in EVALUATED:
        here = corpus.split[rows] == split
        one = label[rows[here]], probability[here]
        found[split] = metrics.summarize(*one)
        found[split]["by_history"] = metrics.by_history(*one, history[rows[here]])
    return found


def table(models: Mapping[str, Mapping[str, Any]], target_review: str) -> str:
    """One line a model, of the test split."""
    reviews = next(iter(models.values()))["test"]["reviews"]
    note = LEAKY if target_review == "include" else "target excluded"
    width = _width(models)
    lines = [f"test split, {reviews:,} reviews, {note}"]
    lines.append(f"  {'model':<{width}}{'accuracy':>10}{'macro F1':>10}{'log-loss':>10}")
    for name, splits in models.items():
        shown = [number(splits["test"][key]) for key in ("accuracy", "macro_f1", "log_loss")]
        lines.append(f"  {name:<{width}}" + "".join(f"{one:>10}" for one in shown))
    return "\n".join(lines)


def history_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a model: test accuracy by the user's number of other reviews."""
    first = next(iter(models.values()))["test"]["by_history"]
    width = _width(models)
    lines = ["test accuracy by the user's number of other reviews"]
    lines.append(f"  {'':<{width}}" + "".join(f"{name:>10}" for name in first))
    counts = "".join(f"{one['reviews']:>10,}" for one in first.values())
    lines.append(f"  {'reviews':<{width}}{counts}")
    for name, splits in models.items():
        slices = splits["test"]["by_history"].values()
        shown = "".join(f"{number(one['accuracy']):>10}" for one in slices)
        lines.append(f"  {name:<{width}}{shown}")
    return "\n".join(lines)


def truncated_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Test accuracy and log-loss by how much of the users' histories was seen."""
    lines = ["test reviews predicted from the user's first reviews only"]
    for key in ("every_user", "long_histories"):
        reviews = found["all"][key]["reviews"]
        lines.append(f"  {key.replace('_', ' ')}, {reviews:,} reviews")
        for name in ("accuracy", "log_loss"):
            shown = [f"{kept}: {number(one[key][name])}" for kept, one in found.items()]
            lines.append(f"    {name.replace('_', '-'):<10}" + "  ".join(shown))
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits; a dash for what is undefined."""
    return "-" if value is None else f"{value:.3f}"


def confusion(matrix: list[list[int]]) -> str:
    """A confusion matrix in words: rows are the true classes."""
    names = CLASS_NAMES[len(matrix)]
    lines = [f"  {'true / predicted':<24}" + "".join(f"{name:>10}" for name in names)]
    for name, row in zip(names, matrix, strict=True):
        lines.append(f"  {name:<24}" + "".join(f"{count:>10,}" for count in row))
    return "\n".join(lines)


def _width(names: Iterable[str]) -> int:
    return max([24, *(len(name) + 2 for name in names)])


def _columns(classes: int) -> list[str]:
    """p_bad, p_good, p_excellent, or p_1 to p_5."""
    return [f"p_{name}" for name in CLASS_NAMES[classes]]
