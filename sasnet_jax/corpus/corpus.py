"""The corpus folder: written by `prepare`, read by everything else (docs/formats.md).

Rows of `reviews.parquet` are the review index of the whole program.
"""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int8, Int32, Int64

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.splits import SPLITS
from sasnet_jax.files import read_json, texts_sha256

FORMAT_VERSION = 2
CLASSES = ("bad", "good", "excellent")
# What a model may be asked to tell apart, by the number of classes (--classes).
CLASS_NAMES = {3: CLASSES, 5: ("1", "2", "3", "4", "5")}
NO_DATE = np.iinfo(np.int64).max
_COUNT_BINS = (1, 2, 5, 10, 20, 50, 100)
_REVIEW_COLUMNS = ("review_id", "user", "business", "stars", "label", "date", "text", "split")


@dataclasses.dataclass(frozen=True, kw_only=True)  # no slots: `sha256` is kept
class Corpus:
    """The columns of a corpus that training and evaluation use."""

    user: Int32[np.ndarray, "reviews"]
    business: Int32[np.ndarray, "reviews"]
    stars: Float32[np.ndarray, "reviews"]
    label: Int8[np.ndarray, "reviews"]
    date: Int64[np.ndarray, "reviews"]  # microseconds since 1970, or NO_DATE
    split: np.ndarray  # str [reviews], of SPLITS
    split_scheme: str
    texts_sha256: str
    folder: Path

    @functools.cached_property
    def sha256(self) -> str:
        """Names texts, pairs, stars, dates and split: what a run's results depend on."""
        digest = hashlib.sha256((self.texts_sha256 + self.split_scheme).encode())
        for column in (self.user, self.business, self.stars, self.date, self.split):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def rows(self, split: str) -> Int32[np.ndarray, "n"]:
        """The review indices of one split, ascending."""
        return np.flatnonzero(self.split == split).astype(np.int32)

    def labels(self, classes: int) -> Int8[np.ndarray, "reviews"]:
        """Index into CLASS_NAMES[classes] of every review; among 5, half stars round up."""
        return self.label if classes == 3 else labels_of(self.stars, classes)

    def texts(self) -> pl.Series:
        """The review texts, str [reviews].

        Raises:
          UserError: they are not the texts that the corpus was hashed with.
        """
        found = pl.read_parquet(self.folder / "reviews.parquet", columns=["text"], glob=False)[
            "text"
        ]
        if texts_sha256(found) != self.texts_sha256:
            raise UserError(f"the texts of {self.folder} are not those of its corpus.json")
        return found

    def refuse_missing_class(self, classes: int) -> None:
        """Raises UserError if a class has no training review: nothing could learn it."""
        label = self.labels(classes)[self.rows("train")]
        present = np.bincount(label, minlength=classes) > 0
        for name in np.array(CLASS_NAMES[classes])[~present]:
            stars = "" if classes == len(CLASSES) else " stars"
            raise UserError(f"corpus {self.folder} has no training review that is {name}{stars}")


def labels_of(stars: Float32[np.ndarray, "n"], classes: int) -> Int8[np.ndarray, "n"]:
    """Index into CLASS_NAMES[classes]: of 3, bad up to 3 stars, excellent at 5, good between (paper
    section 2.1); of 5, half stars round up.
    """
    if classes == 3:
        return ((stars > 3).astype(np.int8) + (stars >= 5)).astype(np.int8)
    return np.ceil(stars).astype(np.int8) - 1


def tables_of(
    reviews: pl.DataFrame, split: pl.Series, businesses: pl.DataFrame | None
) -> dict[str, pl.DataFrame]:
    """The tables of a corpus by file name; `reviews` is still without `review_id` and `text`.

    Args:
      reviews: `user_id, business_id, stars, date`, those of the corpus in their order.
      split: of SPLITS [reviews].
      businesses: `business_id, name, city, categories`, or None.
    """
    users, names = _dense_index(reviews, "user"), _dense_index(reviews, "business")
    table = (
        reviews.with_columns(split)
        .join(users, on="user_id", how="left", maintain_order="left")
        .join(names, on="business_id", how="left", maintain_order="left")
        .with_columns(label=pl.Series(labels_of(reviews["stars"].to_numpy(), len(CLASSES))))
        .select(name for name in _REVIEW_COLUMNS if name not in ("review_id", "text"))
    )
    described = _describe(names, businesses)
    return {
        "reviews": table,
        "users": users,
        "businesses": described,
        "categories": _categories(table, described),
    }


def write_reviews(path: Path, table: pl.DataFrame, texts: Iterable[pl.DataFrame]) -> str:
    """Writes `reviews.parquet` without ever holding all texts; returns their SHA-256.

    Args:
      path: the file.
      table: `reviews` of `tables_of`.
      texts: frames of `review_id, text` that together have the rows of `table`.
    """
    parts = path.with_suffix(".parts")
    parts.mkdir()

    def write_parts() -> Iterator[str]:
        first = 0
        for index, found in enumerate(texts):
            rows = table.slice(first, found.height)
            first += found.height
            part = pl.concat([found, rows], how="horizontal").select(_REVIEW_COLUMNS)
            part.write_parquet(parts / f"{index:06}.parquet", compression="lz4")
            yield from found["text"]

    digest = texts_sha256(write_parts())
    written = sorted(parts.iterdir())
    print(f"merging {table.height:,} reviews into {path.name} ...")
    pl.scan_parquet(written, glob=False).sink_parquet(path)
    shutil.rmtree(parts)
    return digest


def histogram(entity: pl.Series) -> dict[str, int]:
    """Entities by their number of reviews, in the bins "1", "2-4", ..., "100+"."""
    counts = entity.value_counts()["count"].to_numpy()
    found = np.histogram(counts, bins=[*_COUNT_BINS, np.inf])[0]
    names = ["1"]
    for low, high in zip(_COUNT_BINS[1:-1], _COUNT_BINS[2:], strict=True):
        names.append(f"{low}-{high - 1}")
    names.append(f"{_COUNT_BINS[-1]}+")
    return dict(zip(names, found.tolist(), strict=True))


def read_corpus(folder: Path) -> Corpus:
    """Opens a corpus.

    Raises:
      UserError: it is absent, unreadable, of another format version, or breaks the contract.
    """
    keys = ("format_version", "texts_sha256", "settings")
    description = read_json(folder / "corpus.json", "python -m sasnet_jax.prepare", keys)
    if description.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'corpus.json'} has format version {description.get('format_version')}, "
            f"this program reads {FORMAT_VERSION}: run prepare again"
        )
    columns = ["user", "business", "stars", "label", "date", "split"]
    path = folder / "reviews.parquet"
    try:
        table = pl.read_parquet(path, columns=columns, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): run prepare again") from None
    if table.select("user", "business").is_duplicated().any():
        raise UserError(f"{path} repeats a (user, business) pair: run prepare again")
    known = table["label"].is_in(range(len(CLASSES))) & table["split"].is_in(SPLITS)
    if table.drop("date").null_count().sum_horizontal().item() or not known.all():
        raise UserError(f"{path} holds a value that no corpus has: run prepare again")
    arrays = {name: table[name].to_numpy().copy() for name in columns[:4]}
    split = np.select([table["split"] == name for name in SPLITS], SPLITS, default="")
    return Corpus(
        **arrays,
        date=table["date"].cast(pl.Int64).fill_null(NO_DATE).to_numpy().copy(),
        split=split,
        split_scheme=description["settings"]["split"],
        texts_sha256=description["texts_sha256"],
        folder=folder,
    )


def _dense_index(reviews: pl.DataFrame, side: str) -> pl.DataFrame:
    """`side` int32 from 0, and its id, in the order of the ids."""
    ids = reviews.select(pl.col(f"{side}_id").unique().sort()).with_row_index(side)
    return ids.with_columns(pl.col(side).cast(pl.Int32))


def _describe(names: pl.DataFrame, businesses: pl.DataFrame | None) -> pl.DataFrame:
    if businesses is None:
        return names.with_columns(
            name=pl.lit(None, pl.String),
            city=pl.lit(None, pl.String),
            categories=pl.lit([], pl.List(pl.String)),
        )
    joined = names.join(businesses, on="business_id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("categories").fill_null([]))


def _categories(reviews: pl.DataFrame, businesses: pl.DataFrame) -> pl.DataFrame:
    """Category names and how many reviews speak of each, most reviewed first."""
    return (
        reviews.select("business")
        .join(businesses.select("business", "categories"), on="business")
        .select(pl.col("categories").alias("category"))
        .explode("category")
        .drop_nulls()
        .group_by("category")
        .agg(pl.len().alias("reviews"))
        .sort(["reviews", "category"], descending=[True, False])
    )
