"""Predictions on disk and in a table: shared by `evaluate` and `baselines` (docs/formats.md)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
import polars as pl
from jaxtyping import Float, Int32

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import TargetReview, contexts_of
from sasnet_jax.corpus.corpus import CLASS_NAMES, Corpus
from sasnet_jax.scores import metrics
from sasnet_jax.scores.metrics import BriefScores, Scores

EVALUATED = ("validation", "test")
LEAKY = "target included (leaky)"


class Predictions(NamedTuple):
    """The predicted reviews, and their class probabilities."""

    rows: Int32[np.ndarray, "n"]
    probability: Float[np.ndarray, "n c"]


class SplitScores(msgspec.Struct, kw_only=True, frozen=True):
    """A model's scores on the two splits that it has not seen."""

    validation: Scores
    test: Scores


@runtime_checkable
class Evaluated(Protocol):
    """Anything with scores on both splits (a Struct cannot have two bases with fields)."""

    @property
    def validation(self) -> Scores: ...  # noqa: D102

    @property
    def test(self) -> Scores: ...  # noqa: D102


class Truncated(msgspec.Struct, kw_only=True, frozen=True):
    """Test scores when only the beginning of each user's history is seen."""

    every_user: BriefScores
    long_histories: BriefScores  # of users whose history is cut every time


class Evaluation(files.Record, kw_only=True, frozen=True):
    """evaluation.json."""

    made_by = "python -m sasnet_jax.evaluate"
    version = 0
    validation: Scores
    test: Scores
    target_review: TargetReview
    corpus_sha256: str
    best_sha256: str | None = None  # of the parameters that predicted
    predictions_sha256: str | None = None
    truncated_histories: dict[str, Truncated] | None = None  # by the number of reviews seen


def write(
    path: Path,
    corpus: Corpus,
    rows: Int32[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
) -> str:
    """Writes `row, split, label` and a probability per class (`_columns`) as Parquet, atomically.

    Returns:
      The file's SHA-256.
    """
    classes = probability.shape[1]
    columns = {
        "row": rows,
        "split": corpus.split[rows].tolist(),
        "label": corpus.labels(classes)[rows],
    }
    columns |= {name: probability[:, i] for i, name in enumerate(_columns(classes))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        pl.DataFrame(columns).write_parquet(file)
    return files.file_sha256(path)


def read(path: Path, corpus: Corpus, sha256: str | None, remedy: str) -> Predictions:
    """Reads what `write` wrote.

    Args:
      path: the file.
      corpus: the corpus that was predicted.
      sha256: hash of the file; None if an older version did not record it.
      remedy: what to do if the file does not fit.

    Raises:
      UserError: it is absent, damaged, or of another model, corpus or split.
    """
    try:
        table = pl.read_parquet(files.require_file(path, remedy, sha256), glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from None
    classes = next((c for c in CLASS_NAMES if {*_columns(c)} <= {*table.columns}), 0)
    if not classes or not {"row", "split", "label"} <= {*table.columns}:
        columns = ", ".join(table.columns)
        raise UserError(f"{path} does not hold predictions but the columns {columns}: {remedy}")
    rows = table["row"].to_numpy().astype(np.int32)
    fits = rows.size > 0 and rows.min() >= 0 and rows.max() < corpus.user.size
    fits = fits and table["split"].to_list() == corpus.split[rows].tolist()
    if not fits or (table["label"].to_numpy() != corpus.labels(classes)[rows]).any():
        raise UserError(f"{path} does not predict the reviews of {corpus.folder}: {remedy}")
    return Predictions(rows, table.select(_columns(classes)).to_numpy())


def history_lengths(corpus: Corpus) -> Int32[np.ndarray, "reviews"]:
    """The user's number of other reviews that may be seen with the target excluded, per review.

    It does not depend on the protocol, so a review is in the same group in every table.
    """
    return np.asarray(contexts_of(corpus, "exclude").user.size)


def summarize(
    corpus: Corpus,
    rows: Int32[np.ndarray, "n"],
    probability: Float[np.ndarray, "n c"],
    history: Int32[np.ndarray, "reviews"],
) -> SplitScores:
    """Metrics of each split that is evaluated; in each, by the length of the user's history.

    Args:
      corpus: the corpus.
      rows: the predicted reviews.
      probability: probability of each class.
      history: `history_lengths` of the corpus.
    """
    label = corpus.labels(probability.shape[1])
    scores = {}
    for split in EVALUATED:
        here = corpus.split[rows] == split
        labeled = label[rows[here]], probability[here]
        by_history = metrics.by_history(*labeled, history[rows[here]])
        scores[split] = msgspec.structs.replace(metrics.summarize(*labeled), by_history=by_history)
    return SplitScores(**scores)


def table(models: Mapping[str, Evaluated], target_review: str) -> str:
    """Formats the scores on the test split, one line per model."""
    reviews = next(iter(models.values())).test.reviews
    note = LEAKY if target_review == "include" else "target excluded"
    width = _width(models)
    lines = [f"test split, {reviews:,} reviews, {note}"]
    lines.append(f"  {'model':<{width}}{'accuracy':>10}{'macro F1':>10}{'log-loss':>10}")
    for name, splits in models.items():
        test = splits.test
        shown = [number(value) for value in (test.accuracy, test.macro_f1, test.log_loss)]
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>10}" for cell in shown))
    return "\n".join(lines)


def history_table(models: Mapping[str, Evaluated]) -> str:
    """Formats test accuracy by the user's number of other reviews, one line per model."""
    first = next(iter(models.values())).test.by_history
    width = _width(models)
    lines = ["test accuracy by the user's number of other reviews"]
    lines.append(f"  {'':<{width}}" + "".join(f"{name:>10}" for name in first))
    counts = "".join(f"{one.reviews:>10,}" for one in first.values())
    lines.append(f"  {'reviews':<{width}}{counts}")
    for name, splits in models.items():
        slices = splits.test.by_history.values()
        shown = "".join(f"{number(one.accuracy):>10}" for one in slices)
        lines.append(f"  {name:<{width}}{shown}")
    return "\n".join(lines)


def truncated_table(truncated: Mapping[str, Truncated]) -> str:
    """Formats test accuracy and log-loss by how much of the users' histories was seen."""
    lines = ["test reviews predicted from the user's first reviews only"]
    for title, slices in (
        ("every user", {kept: scores.every_user for kept, scores in truncated.items()}),
        ("long histories", {kept: scores.long_histories for kept, scores in truncated.items()}),
    ):
        lines.append(f"  {title}, {slices['all'].reviews:,} reviews")
        accuracy = [f"{kept}: {number(scores.accuracy)}" for kept, scores in slices.items()]
        log_loss = [f"{kept}: {number(scores.log_loss)}" for kept, scores in slices.items()]
        lines += [f"    {'accuracy':<10}" + "  ".join(accuracy)]
        lines += [f"    {'log-loss':<10}" + "  ".join(log_loss)]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Formats a number with three decimals, and an undefined one as a dash."""
    return "-" if value is None else f"{value:.3f}"


def confusion(matrix: list[list[int]]) -> str:
    """Formats a confusion matrix: rows are the true classes."""
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
