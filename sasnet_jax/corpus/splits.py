"""Which reviews are for training, validation and test (paper section 2.1, docs/design.md 5).

Every draw is a hash of the seed and of the ids, so a split does not move when rows are reordered or
when other users come and go.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from sasnet_jax.cli import UserError

SPLITS = ("train", "validation", "test")
SplitScheme = Literal["by_user", "by_review", "within_user", "by_time"]
_BOUNDARIES = (0.8, 0.9)  # the paper's fractions: 80/10/10


class Split(NamedTuple):
    """A split, and where it was cut (corpus.json)."""

    of_review: pl.Series  # of SPLITS [reviews]
    boundaries: dict[str, Any]


def split_reviews(reviews: pl.DataFrame, scheme: SplitScheme, seed: int, held_out: int) -> Split:
    """Splits reviews.

    Args:
      reviews: `user_id, business_id, date`; a pair of user and business occurs once.
      scheme: "by_user": 80/10/10 of the users, with all their reviews (paper); "by_review":
        80/10/10 of the reviews; "within_user": of every user with more than 2 `held_out` reviews,
        `held_out` for validation and as many for test; "by_time": the latest tenth for test, the
        tenth before it for validation, with reviews of one moment kept together.
      seed: of the draws; by_time has none.
      held_out: of within_user.

    Raises:
      UserError: by_time without dates, or a split is left empty.
    """
    boundaries: dict[str, Any] = {"fractions": _BOUNDARIES}
    if scheme == "by_user":
        users = reviews.select(pl.col("user_id").unique())
        users = users.with_columns(split=_cut(_uniform(seed, users["user_id"])))
        split = reviews.join(users, on="user_id", how="left", maintain_order="left")["split"]
    elif scheme == "by_review":
        split = _cut(_uniform(seed, _pairs(reviews)))
    elif scheme == "within_user":
        split, boundaries = _within_user(reviews, seed, held_out), {"held_out": held_out}
    else:
        split, boundaries = _by_time(reviews)
    for name in SPLITS:
        if name not in split:
            raise UserError(
                f"--split={scheme} leaves no {name} review of {reviews.height} reviews by "
                f"{reviews['user_id'].n_unique()} users: give more reviews or another --split"
            )
    return Split(split, boundaries)


def _within_user(reviews: pl.DataFrame, seed: int, held_out: int) -> pl.Series:
    drawn = reviews.select("user_id", draw=_uniform(seed, _pairs(reviews)))
    place = pl.col("draw").rank("ordinal").over("user_id")
    enough = pl.len().over("user_id") > 2 * held_out
    split = (
        pl.when(enough & (place <= held_out))
        .then(pl.lit("test"))
        .when(enough & (place <= 2 * held_out))
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    return drawn.select(split.alias("split")).to_series()


def _by_time(reviews: pl.DataFrame) -> tuple[pl.Series, dict[str, Any]]:
    date = reviews["date"]
    if date.null_count():
        raise UserError(f"--split=by_time needs dates: {date.null_count()} reviews have none")
    ordered = date.sort()
    validation, test = (ordered[int(fraction * date.len())] for fraction in _BOUNDARIES)
    split = (
        pl.when(date >= test)
        .then(pl.lit("test"))
        .when(date >= validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    boundaries = {"validation_from": str(validation), "test_from": str(test)}
    return pl.select(split.alias("split")).to_series(), boundaries


def _pairs(reviews: pl.DataFrame) -> pl.Series:
    """A name for each review that no reordering changes; no id has a control character."""
    return reviews.select(pl.concat_str("user_id", "business_id", separator="\x1f")).to_series()


def _uniform(seed: int, names: Iterable[str]) -> Float[np.ndarray, "n"]:
    """A number in [0, 1) for each name, which depends only on the name and the seed."""
    hashes = (hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(hashes), ">u8") / 2**64


def _cut(uniform: Float[np.ndarray, "n"]) -> pl.Series:
    choice = np.searchsorted(_BOUNDARIES, uniform, side="right")
    return pl.Series("split", SPLITS, dtype=pl.String).gather(choice)
