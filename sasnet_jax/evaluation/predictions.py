"""Predictions on disk and in a table: shared by `evaluate` and `baselines` (docs/formats.md)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int32

from sasnet_jax.data.corpus import CLASSES, Corpus
from sasnet_jax.evaluation import metrics
from sasnet_jax.files import replacing

EVALUATED = ("validation", "test")
LEAKY = "target included (leaky)"


def write(
    path: Path,
    corpus: Corpus,
    rows: Int32[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
) -> None:
    """Writes `row, split, label, p_bad, p_good, p_excellent` as Parquet, atomically."""
    columns = {"row": rows, "split": corpus.split[rows].tolist(), "label": corpus.label[rows]}
    columns |= {f"p_{name}": probability[:, i] for i, name in enumerate(CLASSES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pl.DataFrame(columns).write_parquet(file)


def summarize(
    corpus: Corpus, rows: Int32[np.ndarray, "n"], probability: Float[np.ndarray, "n c"]
) -> dict[str, Any]:
    """Metrics by split, over the evaluated ones."""
    found = {}
    for split in EVALUATED:
        here = corpus.split[rows] == split
        found[split] = metrics.summarize(corpus.label[rows[here]], probability[here])
    return found


def table(models: Mapping[str, Mapping[str, Any]], target_review: str) -> str:
    """One line a model, of the test split."""
    reviews = next(iter(models.values()))["test"]["reviews"]
    note = LEAKY if target_review == "include" else "target excluded"
    lines = [f"test split, {reviews:,} reviews, {note}"]
    lines.append(f"  {'model':<24}{'accuracy':>10}{'macro F1':>10}{'log-loss':>10}")
    for name, splits in models.items():
        test = splits["test"]
        numbers = (test["accuracy"], test["macro_f1"], test["log_loss"])
        lines.append(f"  {name:<24}" + "".join(f"{number:>10.3f}" for number in numbers))
    return "\n".join(lines)


def confusion(matrix: list[list[int]]) -> str:
    """A confusion matrix in words: rows are the true classes."""
    lines = [f"  {'true / predicted':<24}" + "".join(f"{name:>10}" for name in CLASSES)]
    for name, row in zip(CLASSES, matrix, strict=True):
        lines.append(f"  {name:<24}" + "".join(f"{count:>10,}" for count in row))
    return "\n".join(lines)
