"""Reads raw review dumps into one table: the first step of `prepare`.

In: NDJSON files in the schema of the Yelp Open Dataset, plain or gzip. Out: a polars frame with
`review_id, user_id, business_id, stars, date, text`, in file order, and the list of rejected lines.
Every line is validated by a msgspec struct; none is dropped silently.
"""

import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import polars as pl
from tqdm import tqdm

from sasnet_jax.cli import UserError

EMPTY_TEXT = "empty text"


class YelpReview(msgspec.Struct):
    """A line of `yelp_academic_dataset_review.json`; other fields are ignored."""

    review_id: str
    user_id: Annotated[str, msgspec.Meta(min_length=1)]
    business_id: Annotated[str, msgspec.Meta(min_length=1)]
    stars: Annotated[float, msgspec.Meta(gt=0, le=5)]
    text: str
    date: str | None = None


class YelpBusiness(msgspec.Struct):
    """A line of `yelp_academic_dataset_business.json`; other fields are ignored."""

    business_id: Annotated[str, msgspec.Meta(min_length=1)]
    name: str | None = None
    city: str | None = None
    categories: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """A line that was left out, and why."""

    file: str
    line: int  # counted from 1
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class RawReviews:
    """What the files held: the usable reviews, the lines read and the lines rejected."""

    table: pl.DataFrame
    lines: int
    rejects: list[Reject]


def read_reviews(paths: Sequence[Path], max_reject_fraction: float) -> RawReviews:
    """Reads Yelp-schema reviews.

    Args:
      paths: files, read in this order.
      max_reject_fraction: the largest tolerated fraction of malformed lines.

    Raises:
      UserError: a file is missing or unreadable, or too many lines are malformed.
    """
    columns: dict[str, list[Any]] = {name: [] for name in YelpReview.__struct_fields__}
    rejects: list[Reject] = []
    lines = 0
    for path in paths:
        for number, review in _decode_lines(path, YelpReview):
            lines += 1
            if isinstance(review, str):
                rejects.append(Reject(path.name, number, review))
                continue
            date = _parse_date(review.date)
            if isinstance(date, str):
                rejects.append(Reject(path.name, number, date))
                continue
            if not review.text.strip():
                rejects.append(Reject(path.name, number, EMPTY_TEXT))
                continue
            for name, values in columns.items():
                values.append(date if name == "date" else getattr(review, name))
    _refuse_wrong_format(lines, rejects, max_reject_fraction)
    schema: dict[str, pl.DataType] = {name: pl.String() for name in columns}
    schema |= {"stars": pl.Float32(), "date": pl.Datetime("us")}
    return RawReviews(pl.DataFrame(columns, schema=schema), lines, rejects)


def read_businesses(path: Path, max_reject_fraction: float) -> tuple[pl.DataFrame, list[Reject]]:
    """Reads Yelp-schema businesses: `business_id, name, city, categories` (a list of names).

    Returns:
      The businesses, the first line of each id, and the rejected lines.

    Raises:
      UserError: the file is missing or unreadable, or too many lines are malformed.
    """
    rows = []
    rejects: list[Reject] = []
    for number, business in _decode_lines(path, YelpBusiness):
        if isinstance(business, str):
            rejects.append(Reject(path.name, number, business))
            continue
        names = [name.strip() for name in (business.categories or "").split(",")]
        categories = list(dict.fromkeys(name for name in names if name))
        rows.append((business.business_id, business.name, business.city, categories))
    schema: dict[str, pl.DataType] = {
        "business_id": pl.String(),
        "name": pl.String(),
        "city": pl.String(),
        "categories": pl.List(pl.String()),
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    _refuse_wrong_format(len(rows) + len(rejects), rejects, max_reject_fraction)
    return frame.unique("business_id", keep="first", maintain_order=True), rejects


def _decode_lines(path: Path, kind: type) -> Iterator[tuple[int, Any]]:
    """Yields (line number, struct), or (line number, reason) where a line does not fit."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    size = path.stat().st_size
    label = f"reading {path.name}"
    with (
        path.open("rb") as raw,
        gzip.open(raw) if path.suffix == ".gz" else raw as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=label, delay=5, mininterval=1) as bar,
    ):
        try:
            for number, line in enumerate(file, start=1):
                if number % 10_000 == 0:
                    bar.update(raw.tell() - bar.n)
                if not line.strip():
                    continue
                try:
                    yield number, decoder.decode(line)
                except UnicodeDecodeError:
                    yield number, "not UTF-8"
                except msgspec.MsgspecError as error:  # less the position, to count by reason
                    yield number, re.sub(r" \(byte \d+\)", "", str(error))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}") from None


def _parse_date(text: str | None) -> datetime | None | str:
    """The date, None where there is none, or the reason why it cannot be read."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return "unreadable date"


def _refuse_wrong_format(lines: int, rejects: list[Reject], max_reject_fraction: float) -> None:
    malformed = [reject for reject in rejects if reject.reason != EMPTY_TEXT]
    if len(malformed) > max_reject_fraction * lines:
        first = malformed[0]
        raise UserError(
            f"{len(malformed)} of {lines} lines are malformed, more than --max_reject_fraction="
            f"{max_reject_fraction} allows; "
            f"the first is {first.file}, line {first.line}: {first.reason}"
        )
