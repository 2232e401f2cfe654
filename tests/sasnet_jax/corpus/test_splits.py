import numpy as np
import polars as pl
import pytest
from conftest import reviews_frame

from sasnet_jax.cli import UserError
from sasnet_jax.corpus import splits
from sasnet_jax.corpus.splits import SPLITS, folds_of_users, split_reviews

SCHEMES = ("by_user", "by_review", "within_user", "by_time")


def _reviews(users=300, businesses=40, count=3000) -> pl.DataFrame:
    """Reviews by users of very different activity; many share a date."""
    rng = np.random.default_rng(0)
    user = (users * rng.random(count) ** 3).astype(int)
    pairs = np.unique(np.stack([user, rng.integers(businesses, size=count)], axis=1), axis=0)
    days = rng.integers(1, 29, size=len(pairs))
    rows = [
        (f"u{u}", f"b{b}", 3.0, f"2020-02-{day:02}")
        for (u, b), day in zip(pairs, days, strict=True)
    ]
    return reviews_frame(rows)


def _split(reviews: pl.DataFrame, scheme: str, seed: int = 1, held_out: int = 3) -> list[str]:
    return split_reviews(reviews, scheme, seed, held_out).of_review.to_list()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_split_does_not_depend_on_the_order_of_rows(scheme):
    reviews = _reviews()
    order = np.random.default_rng(1).permutation(reviews.height)
    expected = np.array(_split(reviews, scheme))[order]
    assert _split(reviews[order], scheme) == expected.tolist()


@pytest.mark.parametrize("scheme", ["by_user", "by_review", "within_user"])
def test_a_split_depends_on_the_seed(scheme):
    reviews = _reviews()
    assert _split(reviews, scheme, seed=1) != _split(reviews, scheme, seed=2)


@pytest.mark.parametrize("scheme", ["by_user", "within_user"])
def test_other_users_do_not_move_a_users_reviews(scheme):
    reviews = _reviews()
    some = pl.col("user_id").is_in([f"u{i}" for i in range(0, 300, 2)])
    kept = reviews.select(some).to_series().to_list()
    expected = [name for name, here in zip(_split(reviews, scheme), kept, strict=True) if here]
    assert _split(reviews.filter(some), scheme) == expected


@pytest.mark.parametrize("scheme", ["by_user", "by_review", "by_time"])
def test_shares_are_those_of_the_paper(scheme):
    reviews = _reviews(users=5000, businesses=300, count=9000)
    found = np.array(_split(reviews, scheme))
    unit = reviews["user_id"].to_numpy() if scheme == "by_user" else np.arange(found.size)
    _, first = np.unique(unit, return_index=True)
    for name, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        tolerance = 4 * np.sqrt(share * (1 - share) / first.size)  # four standard deviations
        tolerance += 1 / 28 if scheme == "by_time" else 0  # the reviews of one day stay together
        assert abs((found[first] == name).mean() - share) < tolerance


def test_reviews_of_a_user_share_a_split():
    reviews = _reviews().with_columns(split=pl.Series(_split(_reviews(), "by_user")))
    assert (reviews.group_by("user_id").agg(pl.col("split").n_unique())["split"] == 1).all()


@pytest.mark.parametrize("held_out", [1, 3])
def test_within_user_holds_out_as_many_of_every_user_with_enough(held_out):
    reviews = _reviews()
    found = np.array(_split(reviews, "within_user", held_out=held_out))
    users = reviews["user_id"].to_numpy()
    few = 0
    for user in np.unique(users):
        here = found[users == user]
        enough = here.size > 2 * held_out
        few += not enough
        for name in ("validation", "test"):
            assert (here == name).sum() == (held_out if enough else 0)
    assert few > 10


def test_by_time_trains_on_the_past():
    reviews = _reviews()
    found = split_reviews(reviews, "by_time", 0, 3)
    date = {name: reviews["date"].filter(found.of_review == name) for name in SPLITS}
    assert date["train"].max() < date["validation"].min() <= date["validation"].max()
    assert date["validation"].max() < date["test"].min()
    assert found.boundaries["validation_from"] == str(date["validation"].min())
    assert found.boundaries["test_from"] == str(date["test"].min())


def test_by_time_needs_dates():
    reviews = _reviews().with_columns(pl.lit(None, pl.Datetime("us")).alias("date"))
    with pytest.raises(UserError, match="--split=by_time needs dates"):
        split_reviews(reviews, "by_time", 0, 3)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="leaves no validation review"):
        split_reviews(reviews_frame([("u", "b", 3.0, None)] * 3), "within_user", 0, 3)


def test_hashes_are_uniform():
    found = np.sort(splits._uniform(0, [f"user {i}" for i in range(20_000)]))
    gap = np.abs(found - (np.arange(20_000) + 0.5) / 20_000).max()
    assert gap < 1.95 / np.sqrt(20_000)  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.parametrize("folds", [3, 10])
def test_every_user_is_in_one_of_folds_of_equal_size_whatever_the_order(folds):
    users = pl.Series([f"user {i}" for i in range(1004)])
    fold = folds_of_users(users, folds, seed=1)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.size == folds and sizes.max() - sizes.min() <= 1
    order = np.random.default_rng(0).permutation(users.len())
    np.testing.assert_array_equal(folds_of_users(users[order], folds, seed=1), fold[order])
    assert (folds_of_users(users, folds, seed=2) != fold).any()


def test_more_folds_than_users_are_refused():
    with pytest.raises(UserError, match="--folds=4 is more than the corpus has users, 3"):
        folds_of_users(pl.Series(["a", "b", "c"]), 4, seed=0)
