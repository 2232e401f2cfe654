"""The corpus folder: written by `prepare`, read by everything else (docs/formats.md).

Rows of `reviews.parquet` are the review index of the whole program. `build` applies the order of
DESIGN section 5: count filters on raw counts, duplicates of a pair, split.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Int8, Int32

from sasnet_jax.cli import UserError
from sasnet_jax.data.splits import SPLIT_SCHEMES, SPLITS
from sasnet_jax.files import read_json, texts_sha256

FORMAT_VERSION = 1
CLASSES = ("bad", "good", "excellent")
_COUNT_BINS = (1, 2, 5, 10, 20, 50, 100)
# Paper section 2.1, kept beside our own counts.
PAPER_COUNTS = {
    "read": {"reviews": 6_200_000, "users": 1_900_000, "businesses": 150_000},
    "filtered": {"reviews": 2_787_011, "users": 103_251, "businesses": 61_272},
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The columns of a corpus that training and evaluation use."""

    user: Int32[np.ndarray, "reviews"]
    business: Int32[np.ndarray, "reviews"]
    stars: Float32[np.ndarray, "reviews"]
    label: Int8[np.ndarray, "reviews"]
    split: np.ndarray  # str [reviews], of SPLITS
    texts_sha256: str
    folder: Path

    @property
    def sha256(self) -> str:
        """Names texts, pairs, stars and split: what a run's results depend on."""
        digest = hashlib.sha256(self.texts_sha256.encode())
        for column in (self.user, self.business, self.stars, self.split):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def rows(self, split: str) -> Int32[np.ndarray, "n"]:
        """The review indices of one split, ascending."""
        return np.flatnonzero(self.split == split).astype(np.int32)

    def texts(self) -> pl.Series:
        """The review texts, str [reviews].

        Raises:
          UserError: they are not the texts that the corpus was hashed with.
        """
        found = pl.read_parquet(self.folder / "reviews.parquet", columns=["text"])["text"]
        if texts_sha256(found) != self.texts_sha256:
            raise UserError(f"the texts of {self.folder} are not those of its corpus.json")
        return found

    def refuse_missing_class(self) -> None:
        """Raises UserError if a class has no training review: nothing could learn it."""
        present = np.bincount(self.label[self.rows("train")], minlength=len(CLASSES)) > 0
        for name in np.array(CLASSES)[~present]:
            raise UserError(f"corpus {self.folder} has no training review that is {name}")


def label_of(stars: pl.Expr) -> pl.Expr:
    """Index into CLASSES: bad up to 3 stars, excellent at 5, good between (paper section 2.1)."""
    return pl.when(stars <= 3).then(0).when(stars < 5).then(1).otherwise(2).cast(pl.Int8)


def build(
    reviews: pl.DataFrame,
    businesses: pl.DataFrame | None,
    *,
    min_reviews_user: int,
    min_reviews_business: int,
    filter_mode: str,
    split: str,
    seed: int,
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Filters, deduplicates, labels and splits raw reviews.

    Args:
      reviews: `review_id, user_id, business_id, stars, date, text` in file order.
      businesses: `business_id, name, city, categories`, or None.
      min_reviews_user: reviews that a user must have.
      min_reviews_business: reviews that a business must have.
      filter_mode: "once" as the paper (both counts on the unfiltered data), or "core" (to a
        fixed point).
      split: a name of SPLIT_SCHEMES.
      seed: of the split.

    Returns:
      The tables of the corpus by file name, and the `steps` and `histograms` of corpus.json.

    Raises:
      UserError: nothing is left, or a split is empty.
    """
    steps = [_step("read", reviews)]
    minima = {"user_id": min_reviews_user, "business_id": min_reviews_business}
    reviews = _filter_by_counts(reviews, minima, filter_mode)
    steps.append(_step("filtered", reviews))
    reviews = _earliest_of_each_pair(reviews)
    steps.append(_step("deduplicated", reviews))
    if reviews.is_empty():
        raise UserError(
            f"no review is left: of {steps[0]['reviews']} read, {steps[1]['reviews']} passed "
            f"--min_reviews_user={min_reviews_user} --min_reviews_business={min_reviews_business}"
        )
    users = _dense_index(reviews, "user")
    splits = users.with_columns(SPLIT_SCHEMES[split](users["user_id"], seed))
    names = _dense_index(reviews, "business")
    reviews = (
        reviews.join(splits, on="user_id", how="left", maintain_order="left")
        .join(names, on="business_id", how="left", maintain_order="left")
        .select(
            "review_id",
            "user",
            "business",
            "stars",
            label_of(pl.col("stars")).alias("label"),
            "date",
            "text",
            "split",
        )
    )
    empty = [name for name in SPLITS if name not in reviews["split"]]
    if empty:
        raise UserError(f"{users.height} users are too few to split: no {empty[0]} review is left")
    business_table = _describe(names, businesses)
    tables = {
        "reviews": reviews,
        "users": users,
        "businesses": business_table,
        "categories": _categories(reviews, business_table),
    }
    histograms = {side: _histogram(reviews[side]) for side in ("user", "business")}
    split_counts = {name: int((reviews["split"] == name).sum()) for name in SPLITS}
    return tables, {"steps": steps, "split_reviews": split_counts, "reviews_per": histograms}


def read_corpus(folder: Path) -> Corpus:
    """Opens a corpus.

    Raises:
      UserError: it is absent, unreadable, of another format version, or breaks the contract.
    """
    keys = ("format_version", "texts_sha256")
    description = read_json(folder / "corpus.json", "python -m sasnet_jax.prepare", keys)
    if description.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'corpus.json'} has format version {description.get('format_version')}, "
            f"this program reads {FORMAT_VERSION}: run prepare again"
        )
    columns = ["user", "business", "stars", "label", "split"]
    path = folder / "reviews.parquet"
    try:
        table = pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): run prepare again") from None
    if table.select("user", "business").is_duplicated().any():
        raise UserError(f"{path} repeats a (user, business) pair: run prepare again")
    known = table["label"].is_in(range(len(CLASSES))) & table["split"].is_in(SPLITS)
    if table.null_count().sum_horizontal().item() or not known.all():
        raise UserError(f"{path} holds a value that no corpus has: run prepare again")
    arrays = {name: table[name].to_numpy().copy() for name in columns[:-1]}
    return Corpus(
        **arrays,
        split=np.array(table["split"].to_list()),
        texts_sha256=description["texts_sha256"],
        folder=folder,
    )


def _step(name: str, reviews: pl.DataFrame) -> dict[str, Any]:
    return {
        "step": name,
        "reviews": reviews.height,
        "users": reviews["user_id"].n_unique(),
        "businesses": reviews["business_id"].n_unique(),
        "paper": PAPER_COUNTS.get(name),
    }


def _filter_by_counts(
    reviews: pl.DataFrame, minima: dict[str, int], filter_mode: str
) -> pl.DataFrame:
    enough = pl.all_horizontal([pl.len().over(key) >= least for key, least in minima.items()])
    while True:
        filtered = reviews.filter(enough)
        if filter_mode == "once" or filtered.height == reviews.height:
            return filtered
        reviews = filtered


def _earliest_of_each_pair(reviews: pl.DataFrame) -> pl.DataFrame:
    """Keeps the earliest review of each (user, business) pair; ties and no date: file order."""
    pair = ["user_id", "business_id"]
    return (
        reviews.with_row_index("file_order")
        .sort("date", "file_order", nulls_last=True)
        .unique(pair, keep="first", maintain_order=True)
        .sort("file_order")
        .drop("file_order")
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


def _histogram(entity: pl.Series) -> dict[str, int]:
    """Entities by their number of reviews, in the bins "1", "2-4", ..., "100+"."""
    counts = entity.value_counts()["count"].to_numpy()
    found = np.histogram(counts, bins=[*_COUNT_BINS, np.inf])[0]
    names = ["1"]
    for low, high in zip(_COUNT_BINS[1:-1], _COUNT_BINS[2:], strict=True):
        names.append(f"{low}-{high - 1}")
    names.append(f"{_COUNT_BINS[-1]}+")
    return dict(zip(names, found.tolist(), strict=True))
