"""The corpus folder: written by `prepare`, read by everything else (docs/formats.md).

Rows of `reviews.parquet` are the review index of the whole program.
"""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
import polars as pl
from jaxtyping import Float32, Int8, Int32, Int64

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.splits import SPLITS
from sasnet_jax.files import texts_sha256

CLASSES = ("bad", "good", "excellent")
# What a model may be asked to tell apart, by the number of classes (--classes).
CLASS_NAMES = {3: CLASSES, 5: ("1", "2", "3", "4", "5")}
NO_DATE = np.iinfo(np.int64).max
_COUNT_BINS = (1, 2, 5, 10, 20, 50, 100)
_REVIEW_COLUMNS = ("review_id", "user", "business", "stars", "label", "date", "text", "split")
_READ_BACK = ("*.parquet", "interactions/*.npy")  # the files of a corpus that commands read
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """What is left after a step of `prepare`."""

    step: str
    reviews: Count
    users: Count
    businesses: Count
    paper: dict[str, Count] | None = None


class Choice(msgspec.Struct, kw_only=True, frozen=True):
    """How the linear program chose reviews."""

    demand: dict[str, Count]
    objective: Count  # reviews
    lower_bound: Count  # reviews
    gap: float  # relative
    solver: str
    prefer: str
    seconds: float


class CorpusRecord(files.Record, kw_only=True, frozen=True):
    """corpus.json."""

    made_by = "python -m sasnet_jax.prepare"
    version = 2
    program_version: str = ""
    settings: dict[str, Any]  # every flag that matters, and the input files
    formats: list[str] = []
    texts_sha256: str
    columns_sha256: str | None = None
    files_sha256: dict[str, str] = {}
    lines: Count = 0
    rejected: dict[str, Count] = {}
    businesses_rejected: dict[str, Count] = {}
    steps: list[Step] = []
    choice: Choice | None = None
    split_reviews: dict[str, Count] = {}
    split_boundaries: dict[str, Any] = {}
    reviews_per: dict[str, dict[str, Count]] = {}

    def __post_init__(self):
        """Refuses settings without a split."""
        if not isinstance(self.settings.get("split"), str):
            raise ValueError("its settings name no split")

    @property
    def split_scheme(self) -> str:
        """--split."""
        return self.settings["split"]


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
    files_sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def sha256(self) -> str:
        """Identifies texts, pairs, stars, dates and split: what a run's results depend on."""
        digest = hashlib.sha256((self.texts_sha256 + self.split_scheme).encode())
        for column in (self.user, self.business, self.stars, self.date, self.split):
            digest.update(column.tobytes())
        return digest.hexdigest()

    @property
    def columns_sha256(self) -> str:
        """Identifies every column of `reviews.parquet` that is read, except the texts."""
        return hashlib.sha256(self.sha256.encode() + self.label.tobytes()).hexdigest()

    @property
    def remedy(self) -> str:
        """What to do about a damaged corpus."""
        return _remedy(self.folder)

    def rows(self, split: str) -> Int32[np.ndarray, "n"]:
        """The review indices of one split, ascending."""
        return np.flatnonzero(self.split == split).astype(np.int32)

    def labels(self, classes: int) -> Int8[np.ndarray, "reviews"]:
        """Index into CLASS_NAMES[classes] of every review; among 5, half stars round up."""
        return self.label if classes == 3 else labels_of(self.stars, classes)

    def texts(self) -> pl.Series:
        """The review texts, str [reviews].

        Raises:
          UserError: the texts do not have the hash in corpus.json.
        """
        path = self.folder / "reviews.parquet"
        texts = _read_parquet(path, ["text"])["text"]
        if texts_sha256(texts) != self.texts_sha256:
            raise UserError(
                f"{path} has changed: its texts are not those that were written: {self.remedy}"
            )
        return texts

    def table(self, name: str) -> pl.DataFrame:
        """`users`, `businesses` or `categories`.

        Raises:
          UserError: the file is not the one that `prepare` wrote.
        """
        path = self.folder / f"{name}.parquet"
        return _read_parquet(path, None, self.files_sha256.get(path.name))

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
      reviews: `user_id, business_id, stars, date` of the corpus, in its order.
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
        for index, frame in enumerate(texts):
            rows = table.slice(first, frame.height)
            first += frame.height
            part = pl.concat([frame, rows], how="horizontal").select(_REVIEW_COLUMNS)
            part.write_parquet(parts / f"{index:06}.parquet", compression="lz4")
            yield from frame["text"]

    digest = texts_sha256(write_parts())
    written = sorted(parts.iterdir())
    print(f"merging {table.height:,} reviews into {path.name} ...")
    pl.scan_parquet(written, glob=False).sink_parquet(path)
    shutil.rmtree(parts)
    return digest


def histogram(entity: pl.Series) -> dict[str, int]:
    """Entities by their number of reviews, in the bins "1", "2-4", ..., "100+"."""
    counts = entity.value_counts()["count"].to_numpy()
    reviews_per_bin = np.histogram(counts, bins=[*_COUNT_BINS, np.inf])[0]
    names = ["1"]
    for low, high in zip(_COUNT_BINS[1:-1], _COUNT_BINS[2:], strict=True):
        names.append(f"{low}-{high - 1}")
    names.append(f"{_COUNT_BINS[-1]}+")
    return dict(zip(names, reviews_per_bin.tolist(), strict=True))


def read_corpus(folder: Path) -> Corpus:
    """Opens a corpus.

    Raises:
      UserError: it is absent, unreadable, of another format version, or breaks the contract.
    """
    record = files.read_record(folder / "corpus.json", CorpusRecord)
    corpus = read_columns(folder, record.split_scheme, record.texts_sha256)
    if record.columns_sha256 not in (None, corpus.columns_sha256):
        path = folder / "reviews.parquet"
        raise UserError(
            f"{path} has changed: its rows are not those that were written: {corpus.remedy}"
        )
    return dataclasses.replace(corpus, files_sha256=record.files_sha256)


def read_columns(folder: Path, split_scheme: str, texts_sha256: str) -> Corpus:
    """Reads `reviews.parquet`, whatever corpus.json says about it.

    Raises:
      UserError: it is unreadable, or breaks the contract.
    """
    path = folder / "reviews.parquet"
    table = _read_parquet(path, ["user", "business", "stars", "label", "date", "split"])
    if table.select("user", "business").is_duplicated().any():
        raise UserError(f"{path} repeats a (user, business) pair: {_remedy(folder)}")
    known = table["label"].is_in(range(len(CLASSES))) & table["split"].is_in(SPLITS)
    if table.drop("date").null_count().sum_horizontal().item() or not known.all():
        raise UserError(f"{path} holds an invalid value: {_remedy(folder)}")
    arrays: dict[str, Any] = {
        name: table[name].to_numpy().copy() for name in ("user", "business", "stars", "label")
    }
    split = np.select([table["split"] == name for name in SPLITS], SPLITS, default="")
    return Corpus(
        **arrays,
        date=table["date"].cast(pl.Int64).fill_null(NO_DATE).to_numpy().copy(),
        split=split,
        split_scheme=split_scheme,
        texts_sha256=texts_sha256,
        folder=folder,
    )


def hash_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a corpus that other commands read, by its path in the folder."""
    paths = sorted(path for pattern in _READ_BACK for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): files.file_sha256(path) for path in paths}


def _remedy(folder: Path) -> str:
    return f"remove {folder} and run {CorpusRecord.made_by} again"


def _read_parquet(path: Path, columns: list[str] | None, sha256: str | None = None) -> pl.DataFrame:
    """Columns of a table of a corpus, all of them by default.

    Raises:
      UserError: it is absent, unreadable, or has another hash.
    """
    remedy = _remedy(path.parent)
    try:
        files.require_file(path, remedy, sha256)
        return pl.read_parquet(path, columns=columns, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}): {remedy}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    """Category names and the number of reviews of each, most reviewed first."""
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
