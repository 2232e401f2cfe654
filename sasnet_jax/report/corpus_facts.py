"""What the data look like: corpus.json and reviews.parquet -> tables, bars and example reviews."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from sasnet_jax.corpus.corpus import CLASSES, NO_DATE, Corpus
from sasnet_jax.corpus.splits import SPLITS
from sasnet_jax.report import charts
from sasnet_jax.report.charts import Bars
from sasnet_jax.report.sources import Sources

# Lower bounds of the bins of text lengths, in words.
_WORDS = (0, 10, 25, 50, 100, 200, 400)
_EXAMPLES = 2  # of each class
_EXCERPT = 280  # characters
_SIDES = {"user": "users", "business": "businesses"}


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A review to read."""

    row: int
    stars: str
    label: str  # of CLASSES
    split: str
    text: str


def splits(corpus: Corpus) -> list[dict[str, Any]]:
    """The reviews, users, businesses and class shares of each split."""
    rows_by_split = []
    for split in SPLITS:
        rows = corpus.rows(split)
        share = np.bincount(corpus.label[rows], minlength=len(CLASSES)) / max(rows.size, 1)
        rows_by_split.append(
            {
                "split": split,
                "reviews": rows.size,
                "users": np.unique(corpus.user[rows]).size,
                "businesses": np.unique(corpus.business[rows]).size,
                "shares": [charts.percent(one) for one in share],
            }
        )
    return rows_by_split


def pictures(sources: Sources, texts: pl.Series) -> list[Bars]:
    """Bars of stars, reviews per user and per business, text lengths, and years."""
    corpus = sources.corpus
    reviews_per = sources.record.reviews_per
    figures = [_stars(corpus)]
    for side, name in _SIDES.items():
        title = f"{name.capitalize()} by their number of reviews"
        figures.append(charts.counts(title, reviews_per.get(side, {}), f"{name} in each bin"))
    figures += [_lengths(texts), _years(corpus)]
    return [one for one in figures if one is not None]


def _stars(corpus: Corpus) -> Bars | None:
    half_stars = np.round(corpus.stars * 2) / 2
    values, count = np.unique(half_stars, return_counts=True)
    label = [0 if value <= 3 else 1 if value < 5 else 2 for value in values]
    return charts.counts(
        "Stars",
        {f"{value:g} ★": int(n) for value, n in zip(values, count, strict=True)},
        "colored by class: bad up to 3, good between, excellent 5",
        [CLASSES[one] for one in label],
    )


def _lengths(texts: pl.Series) -> Bars | None:
    words = texts.str.count_matches(r"\S+").to_numpy()
    count = np.histogram(words, bins=[*_WORDS, np.inf])[0]
    names = [f"{low}–{high - 1}" for low, high in zip(_WORDS, _WORDS[1:], strict=False)]
    return charts.counts(
        "Length of the texts",
        dict(zip([*names, f"{_WORDS[-1]}+"], count.tolist(), strict=True)),
        f"words; median {np.median(words):,.0f}, longest {words.max():,}",
    )


def _years(corpus: Corpus) -> Bars | None:
    dated = corpus.date[corpus.date != NO_DATE]
    years = dated.astype("datetime64[us]").astype("datetime64[Y]").astype(int) + 1970
    values, count = np.unique(years, return_counts=True)
    missing = corpus.date.size - dated.size
    note = f"{missing:,} reviews without a date" if missing else ""
    return charts.counts(
        "Reviews by year", dict(zip(map(str, values), count.tolist(), strict=True)), note
    )


def examples(corpus: Corpus, texts: pl.Series, seed: int) -> list[Example]:
    """A few reviews of each class, drawn at random; the classes take turns."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(corpus.label == i))[:_EXAMPLES] for i in range(len(CLASSES))
    ]
    turns = (rows[turn] for turn in range(_EXAMPLES) for rows in drawn if turn < rows.size)
    return [example(corpus, int(row), texts[int(row)], _EXCERPT) for row in turns]


def example(corpus: Corpus, row: int, text: str, length: int) -> Example:
    """One review, its text cut to `length` characters."""
    words = " ".join(text.split())
    return Example(
        row,
        f"{corpus.stars[row]:g}",
        CLASSES[corpus.label[row]],
        str(corpus.split[row]),
        words if len(words) <= length else words[:length].rstrip() + " …",
    )
