"""Validates the records of a block: the second step of reading a dump.

In: a `Block` of `dumps.py`, and what its dump calls our fields (`formats.py`). Out: the columns of
its usable reviews, and for every other record the reason why it is not usable. A msgspec struct
checks every record, and none is dropped silently.
"""

import collections
import contextlib
import functools
import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import msgspec
import polars as pl

from sasnet_jax.cli import UserError
from sasnet_jax.prepare import dumps
from sasnet_jax.prepare.dumps import Block
from sasnet_jax.prepare.formats import Columns
from sasnet_jax.prepare.rejects import EMPTY_TEXT, Rejected

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]  # every id is kept in memory
_REVIEW_FIELDS = (
    ("user_id", _Id),
    ("business_id", _Id),
    ("stars", Annotated[float, msgspec.Meta(gt=0, le=5)]),
    ("text", str | None, None),
    ("date", str | int | float | None, None),
    ("review_id", str | None, None),
)
_BUSINESS_FIELDS = (
    ("business_id", _Id),
    ("name", str | None, None),
    ("city", str | None, None),
    ("categories", str | list[str | list[str]] | None, None),
)
SCANNED: dict[str, pl.DataType] = {
    "line": pl.Int64(),
    "user_id": pl.String(),
    "business_id": pl.String(),
    "stars": pl.Float32(),
    "date": pl.Datetime("us"),
    "text_length": pl.Int32(),
    "id_hash": pl.UInt64(),
}
_WRITTEN = {name: kind for name, kind in SCANNED.items() if name != "id_hash"}
_WRITTEN |= {"date": pl.String(), "review_id": pl.String()}  # as the dump has them
BUSINESSES: dict[str, pl.DataType] = {
    "line": pl.Int64(),
    "business_id": pl.String(),
    "name": pl.String(),
    "city": pl.String(),
    "categories": pl.List(pl.String()),
}
_LATEST_SECONDS = 1e11  # a date is in milliseconds beyond this, the year 5138
_FRAME_ROWS = 1000  # converted to columns together; few enough to stay in the cache
_EPOCH = re.compile(r"\d{9,}(\.\d*)?")  # eight digits are YYYYMMDD
_CONTROL_CHARACTERS = r"[\x00-\x1f\x7f]"


class _Decoded(NamedTuple):
    """Consecutive records."""

    structs: list[Any]
    lines: Sequence[int]  # of each struct, from 1; in its file, of NDJSON in its block
    newlines: int = 0  # by which the lines of NDJSON that follow are moved


def _decode(
    block: Block, kind: type[msgspec.Struct], rejected: Rejected, most_malformed: float
) -> Iterator[_Decoded]:
    """The records of a block, some at a time; those that are none are added to `rejected`.

    Beyond `most_malformed`, as the dump will be refused, the rest of the block is left unread.
    """
    if block.records is not None:
        yield _one_by_one(block.records, functools.partial(_convert, kind=kind), rejected)
        return
    decode = _decoder(kind).decode
    before = 0
    for lines in block.pieces():
        numbers = range(before + 1, before + 1 + len(lines))
        before += len(lines)
        try:
            yield _Decoded(list(map(decode, lines)), numbers, len(lines))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            filled = ((n, line) for n, line in zip(numbers, lines, strict=True) if line.strip())
            yield _one_by_one(filled, decode, rejected)._replace(newlines=len(lines))
            if sum(map(len, rejected.values())) > most_malformed:
                return


def _one_by_one(
    numbered: Iterable[tuple[int, Any]], decode: Callable[[Any], msgspec.Struct], rejected: Rejected
) -> _Decoded:
    structs, lines = [], []
    for number, record in numbered:
        struct = _validated(decode, record)
        if isinstance(struct, str):
            rejected[struct].append(number)
        else:
            structs.append(struct)
            lines.append(number)
    return _Decoded(structs, lines)


def _none_rejected() -> Rejected:
    return collections.defaultdict(functools.partial(array, "q"))


def _convert(record: dict[str, Any], kind: type[msgspec.Struct]) -> msgspec.Struct:
    if reason := record.get(dumps.MALFORMED):
        raise msgspec.ValidationError(reason)
    return msgspec.convert(record, kind, strict=False)


def _validated(decode: Callable[[Any], msgspec.Struct], record: Any) -> msgspec.Struct | str:
    """The struct, or the reason why there is none."""
    try:
        return decode(record)
    except UnicodeDecodeError:
        return dumps.NOT_UTF8
    except (msgspec.MsgspecError, RecursionError) as error:
        if record == dumps.TOO_LONG_LINE:
            return dumps.TOO_LONG
        return re.sub(r" \(byte \d+\)", "", str(error))  # minus the position, to count by reason


@functools.cache
def _struct(fields: tuple, columns: Columns) -> type[msgspec.Struct]:
    return msgspec.defstruct("Record", fields, rename=dict(columns), gc=False)


@functools.cache
def _decoder(kind: type[msgspec.Struct]) -> msgspec.json.Decoder:
    return msgspec.json.Decoder(kind)


def scan_block(
    block: Block, columns: Columns, most_malformed: float
) -> tuple[pl.DataFrame, Rejected, int]:
    """The usable reviews of a block (SCANNED), its rejects, and its newlines."""
    parts: list[pl.DataFrame] = []
    rows: dict[str, list[Any]] = {name: [] for name in _WRITTEN}
    rejected = _none_rejected()
    newlines = 0
    for decoded in _decode(block, _struct(_REVIEW_FIELDS, columns), rejected, most_malformed):
        for name, values in _as_written(decoded).items():
            rows[name] += values
        if len(rows["line"]) >= _FRAME_ROWS:
            parts.append(_frame(rows))
            rows = {name: [] for name in _WRITTEN}
        newlines += decoded.newlines
    written = pl.concat([*parts, _frame(rows)], rechunk=True)
    date, unreadable = _parse_dates(written["date"])
    ids = written["review_id"]
    table = written.with_columns(date, ids.hash().set(ids.is_null(), None).alias("id_hash"))
    table = table.select(*SCANNED)
    control_character = written["user_id"].str.contains(_CONTROL_CHARACTERS)
    control_character |= written["business_id"].str.contains(_CONTROL_CHARACTERS)
    usable = pl.repeat(True, written.height, eager=True)
    for reason, where in (
        ("unreadable date", unreadable),
        ("control character in an id", control_character),
        (EMPTY_TEXT, written["text_length"] == 0),
    ):
        rejected_now = where & usable  # each record counts for its first reason
        if rejected_now.any():
            rejected[reason].extend(written["line"].filter(rejected_now))
            usable &= ~rejected_now
    return table if usable.all() else table.filter(usable), rejected, newlines


def _as_written(decoded: _Decoded) -> dict[str, Sequence[Any]]:
    """The columns of consecutive records (_WRITTEN)."""
    reviews = decoded.structs
    texts = [review.text for review in reviews]
    return {
        "line": decoded.lines,
        "user_id": [review.user_id for review in reviews],
        "business_id": [review.business_id for review in reviews],
        "stars": [review.stars for review in reviews],
        "date": [review.date for review in reviews],
        "text_length": [len(text) if text and not text.isspace() else 0 for text in texts],
        "review_id": [review.review_id or None for review in reviews],
    }


def _frame(rows: dict[str, list[Any]]) -> pl.DataFrame:
    return pl.DataFrame({**rows, "date": _date_texts(rows["date"])}, schema=_WRITTEN)


def read_texts(block: Block, columns: Columns, lines: list[int]) -> pl.DataFrame:
    """`review_id, text` of the records at some lines of a block."""
    kind = _struct(_REVIEW_FIELDS, columns)
    try:
        if block.records is not None:
            values = dict(block.records)
            reviews = [msgspec.convert(values[line], kind, strict=False) for line in lines]
        else:
            raw, decoder = list(itertools.chain.from_iterable(block.pieces())), _decoder(kind)
            reviews = [decoder.decode(raw[line - 1]) for line in lines]
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError):
        raise UserError(f"{block.path} changed while it was being read") from None
    return pl.DataFrame(
        {
            "review_id": [review.review_id or None for review in reviews],  # type: ignore[attr-defined]
            "text": [review.text for review in reviews],  # type: ignore[attr-defined]
        },
        schema={"review_id": pl.String(), "text": pl.String()},
    )


def read_businesses(
    block: Block, columns: Columns, most_malformed: float
) -> tuple[pl.DataFrame, Rejected, int]:
    """The businesses of a block (BUSINESSES), its rejects, and its newlines."""
    rows, rejected, newlines = [], _none_rejected(), 0
    for decoded in _decode(block, _struct(_BUSINESS_FIELDS, columns), rejected, most_malformed):
        for line, business in zip(decoded.lines, decoded.structs, strict=True):
            names = _category_names(business.categories)
            rows.append((line, business.business_id, business.name, business.city, names))
        newlines += decoded.newlines
    return pl.DataFrame(rows, schema=BUSINESSES, orient="row"), rejected, newlines


def _date_texts(dates: list[str | int | float | None]) -> pl.Series:
    """Dates as a dump would write them in quotes."""
    try:
        return pl.Series(dates, dtype=pl.String)
    except (TypeError, OverflowError):  # numbers among them
        texts = [
            f"{date:.6f}".rstrip("0").rstrip(".") if isinstance(date, float) else date
            for date in dates
        ]
        return pl.Series([None if text is None else str(text) for text in texts], dtype=pl.String)


def _parse_dates(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Dates in UTC, null if there is none, and a mask of those that cannot be read."""
    dates = texts.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False, cache=False)
    # Polars knows the years 0 and 10000, Python does not.
    dates = dates.set(~dates.is_between(datetime.min, datetime.max), None)
    odd = (dates.is_null() & (texts != "")).arg_true()
    parsed = pl.Series([_parse_date(text) for text in texts[odd]], dtype=dates.dtype)
    none = pl.repeat(False, len(texts), eager=True)
    return dates.scatter(odd, parsed), none.scatter(odd.filter(parsed.is_null()), True)


def _parse_date(text: str) -> datetime | None:
    """A date in ISO 8601 or in (milli)seconds since 1970, as UTC; None if it is neither."""
    text = text.strip()
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if _EPOCH.fullmatch(text):
            seconds = float(text)
            if abs(seconds) > _LATEST_SECONDS:
                seconds /= 1000
            return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
        date = datetime.fromisoformat(text)
        return date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date
    return None


def _category_names(categories: str | list[str | list[str]] | None) -> list[str]:
    """Yelp has "A, B"; Amazon has ["A", "B"] or [["A", "B"], ["A", "C"]]."""
    if isinstance(categories, str):
        categories = list(categories.split(","))
    names = itertools.chain.from_iterable(
        [part] if isinstance(part, str) else part for part in categories or ()
    )
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))
