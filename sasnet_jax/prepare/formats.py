"""Recognizes the format of a dump by its columns: what a known dump calls each of our fields.

In: a `Dump` of `dumps.py`. Out: the name of its format, and its column for each field.
"""

from collections.abc import Mapping, Sequence

import msgspec

from sasnet_jax.cli import UserError
from sasnet_jax.prepare.archives import shown
from sasnet_jax.prepare.dumps import Dump

Columns = tuple[tuple[str, str], ...]  # our name and the dump's, for every field

# What we call it -> what the dump calls it.
FORMATS = {
    "Yelp": {
        "review_id": "review_id",
        "user_id": "user_id",
        "business_id": "business_id",
        "stars": "stars",
        "text": "text",
        "date": "date",
    },
    "Amazon 2014/2018": {
        "review_id": "review_id",
        "user_id": "reviewerID",
        "business_id": "asin",
        "stars": "overall",
        "text": "reviewText",
        "date": "unixReviewTime",
    },
    "Amazon 2023": {
        "review_id": "review_id",
        "user_id": "user_id",
        "business_id": "parent_asin",
        "stars": "rating",
        "text": "text",
        "date": "timestamp",
    },
}
BUSINESS_FORMATS = {
    "Yelp": {
        "business_id": "business_id",
        "name": "name",
        "city": "city",
        "categories": "categories",
    },
    "Amazon 2018": {
        "business_id": "asin",
        "name": "title",
        "city": "city",
        "categories": "category",
    },
    "Amazon 2023": {
        "business_id": "parent_asin",
        "name": "title",
        "city": "city",
        "categories": "categories",
    },
}


def recognise_reviews(dump: Dump, given: Mapping[str, str]) -> tuple[str, Columns]:
    """The name of a dump's format, and its column of each field.

    Args:
      dump: the dump of reviews.
      given: what the dump calls some fields, if no known format fits.

    Raises:
      UserError: the dump does not have the columns of any format.
    """
    formats = {name: {**names, **given} for name, names in FORMATS.items()}
    required = dict.fromkeys(("user_id", "business_id", "stars", "text", *given))
    name, columns = _recognise(dump, formats, tuple(required))
    return "named columns" if given else name, columns


def recognise_businesses(dump: Dump) -> tuple[str, Columns]:
    """The same for a dump of businesses."""
    return _recognise(dump, BUSINESS_FORMATS, ("business_id",))


def _recognise(
    dump: Dump, formats: dict[str, dict[str, str]], required: Sequence[str]
) -> tuple[str, Columns]:
    present = dump.columns(_keys)
    for name, names in formats.items():
        if all(names[field] in present for field in required):
            return name, tuple(names.items())
    if not dump.head and dump.kind != "parquet":
        return "empty file", tuple(next(iter(formats.values())).items())
    if not present:
        raise UserError(f"{dump.path}, line 1: neither a JSON object nor the header of a CSV file")
    known = "; ".join(
        f"{name}: {', '.join(names[field] for field in required)}"
        for name, names in formats.items()
    )
    readable = sorted(name for name in present if name.isprintable())
    columns = (
        ", ".join(map(shown, readable[:20])) or "no readable name: is it compressed or binary?"
    )
    raise UserError(
        f"{dump.path}, line 1: malformed or of no known format ({known}); it has the columns "
        f"{columns}: name them with --user_column, --text_column, ..."
    )


def _keys(line: bytes) -> set[str]:
    try:
        return set(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return set()
