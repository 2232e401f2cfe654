"""What a model may see: the context of every target review (docs/design.md 5).

`prepare` groups the reviews by user and by business once, into offset arrays that are
memory-mapped from then on. From them `contexts_of` builds a `Context` for each side: for every
review as a target, the range of the grouped rows that may be seen, minus the target itself. Sets,
averages and counts are all taken from it.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int, Int32, Int64

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.splits import SPLITS

HostOrDevice: TypeAlias = Any  # np.ndarray or jax.Array, without loading JAX to say so
TargetReview = Literal["exclude", "include"]
SIDES = ("user", "business")


class Grouped(NamedTuple):
    """The reviews of each entity of one side: `rows[offsets[i] : offsets[i + 1]]` (CSR).

    Each entity's training reviews come first, then validation, then test, each by date, and by
    row if dates are equal or missing. So what a target may see is always the beginning of a list.
    """

    offsets: Int64[np.ndarray, "entities+1"]
    rows: Int32[np.ndarray, "reviews"]


class Context(NamedTuple):
    """One side's context of every target r: `rows[start[r] : start[r] + n]` without `skip[r]`.

    A target that is not in its own range has skip[r] = size[r], beyond every position, and then
    n = size[r]; otherwise n = size[r] + 1. So position p in [0, size[r]) of the context is
    rows[start[r] + p + (p >= skip[r])], for any r.
    """

    rows: Int32[HostOrDevice, "listed"]
    start: Int32[HostOrDevice, "reviews"]
    size: Int32[HostOrDevice, "reviews"]
    skip: Int32[HostOrDevice, "reviews"]


class Contexts(NamedTuple):
    """Both sides."""

    user: Context
    business: Context


def write_grouped(corpus: Corpus) -> None:
    """Groups the reviews of a corpus by user and by business, into its folder `interactions`."""
    folder = corpus.folder / "interactions"
    folder.mkdir()
    split = _split_rank(corpus)
    for side in SIDES:
        entity = getattr(corpus, side)
        rows = np.lexsort((corpus.date, split, entity)).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(entity))])
        np.save(folder / f"{side}_offsets.npy", offsets)
        np.save(folder / f"{side}_rows.npy", rows)


def read_grouped(corpus: Corpus, side: str) -> Grouped:
    """Opens what `write_grouped` wrote for one side, memory-mapped.

    Raises:
      UserError: it is absent, or belongs to another corpus.
    """
    folder, remedy = corpus.folder / "interactions", corpus.remedy
    paths = [folder / f"{side}_{part}.npy" for part in Grouped._fields]
    try:
        arrays = [
            np.load(files.require_file(path, remedy), mmap_mode="r", allow_pickle=False)
            for path in paths
        ]
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"{folder} cannot be read ({error}): {remedy}") from None
    if not _is_of(corpus, getattr(corpus, side), *arrays):
        raise UserError(f"{folder} belongs to another corpus ({side}_*.npy): {remedy}")
    return Grouped(*arrays)


def _is_of(
    corpus: Corpus, entity: Int32[np.ndarray, "reviews"], offsets: np.ndarray, rows: np.ndarray
) -> bool:
    """Whether these are the lists that `write_grouped` makes: there is one such order."""
    expected = np.concatenate([[0], np.cumsum(np.bincount(entity))])
    if not np.array_equal(offsets, expected) or rows.shape != entity.shape:
        return False
    if (rows.dtype, offsets.dtype) != (np.int32, np.int64) or rows.min() < 0:
        return False
    if rows.max() >= rows.size:
        return False
    order = np.stack([entity[rows], _split_rank(corpus)[rows], corpus.date[rows], rows])
    step = np.sign(np.diff(order))  # of each key; the first that changes decides
    return bool((8 * step[0] + 4 * step[1] + 2 * step[2] + step[3] > 0).all())


def _split_rank(corpus: Corpus) -> Int[np.ndarray, "reviews"]:
    return np.select([corpus.split == name for name in SPLITS], range(len(SPLITS)))


def contexts_of(corpus: Corpus, target_review: TargetReview) -> Contexts:
    """The contexts of every review as a target.

    Under "exclude", the table of docs/design.md 5: with the split by_user, the user's other reviews
    (of the same split by construction) and the business's training reviews; by_review and
    within_user, training reviews on both sides; by_time, the reviews that are strictly earlier.
    The target is never seen, and so neither is its pair of user and business, which occurs once in
    a corpus. Under "include", all reviews of the entity are seen, the target among them
    (leaky: only to reproduce the paper).
    """
    return Contexts(*(_context(corpus, side, target_review) for side in SIDES))


def _context(corpus: Corpus, side: str, target_review: TargetReview) -> Context:
    grouped = read_grouped(corpus, side)
    entity = getattr(corpus, side)
    start, every = grouped.offsets[entity], np.diff(grouped.offsets)[entity]
    if target_review == "include":
        size, skip = every, every
    else:
        if corpus.split_scheme == "by_time":
            listed = _earlier(corpus.date, grouped, start)
        elif corpus.split_scheme == "by_user" and side == "user":
            listed = every
        else:
            listed = np.bincount(entity[corpus.split == "train"], minlength=entity.max() + 1)[
                entity
            ]
        position = np.empty_like(every)
        position[grouped.rows] = np.arange(every.size)
        position -= start
        size = listed - (position < listed)
        skip = np.where(position < listed, position, size)
    return Context(grouped.rows, *(array.astype(np.int32) for array in (start, size, skip)))


def _earlier(
    date: Int64[np.ndarray, "reviews"], grouped: Grouped, start: Int[np.ndarray, "reviews"]
) -> Int[np.ndarray, "reviews"]:
    """How many of its entity's reviews are strictly earlier than each review.

    A split by time puts an entity's list in temporal order.
    """
    dates = date[grouped.rows]
    first = np.zeros(dates.size, bool)  # of the entity's reviews of one moment
    first[1:] = dates[1:] != dates[:-1]
    first[grouped.offsets[:-1]] = True
    first_of_moment = np.maximum.accumulate(np.where(first, np.arange(dates.size), 0))
    earlier = np.empty_like(first_of_moment)
    earlier[grouped.rows] = first_of_moment
    return earlier - start


def restrict(contexts: Contexts, kept: Bool[np.ndarray, "reviews"]) -> Contexts:
    """The contexts that remain when no other reviews than the `kept` ones may be seen."""
    return Contexts(*(_restrict(context, kept) for context in contexts))


def _restrict(context: Context, kept: Bool[np.ndarray, "reviews"]) -> Context:
    rows = np.asarray(context.rows)
    before = np.concatenate([[0], np.cumsum(kept[rows])])  # kept reviews before a position
    start, size, skip = (np.asarray(x, np.int64) for x in context[1:])
    inside = skip < size  # past its size, a skip changes nothing
    end, place = start + size + inside, start + np.where(inside, skip, 0)
    skipped = inside & kept[rows[place.clip(max=rows.size - 1)]]
    left = before[end] - before[start] - skipped
    skip = np.where(skipped, before[place] - before[start], left)
    numbers = (before[start], left, np.minimum(skip, left))
    return Context(rows[kept[rows]], *(array.astype(np.int32) for array in numbers))


def truncate_histories(contexts: Contexts, reviews: int) -> Contexts:
    """The contexts if every user had written only the first `reviews` reviews.

    First in the order of `Grouped`: split, then date. The business side stays.
    """
    user = contexts.user
    size = np.minimum(np.asarray(user.size), np.int32(reviews))
    skip = np.minimum(np.asarray(user.skip), size)
    return contexts._replace(user=user._replace(size=size, skip=skip))


def averaging_matrix(context: Context, targets: Int32[np.ndarray, "n"]) -> scipy.sparse.csr_matrix:
    """The matrix [n, reviews] whose product with features averages each target's context.

    A row without context is zero. The target's own column is absent, not canceled, so not
    even a rounding error of it is left.
    """
    size = context.size[targets].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(size)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], size)
    position += position >= np.repeat(context.skip[targets], size)
    columns = context.rows[np.repeat(context.start[targets], size) + position]
    weights = np.repeat(1 / np.maximum(size, 1), size)
    shape = (targets.size, context.start.size)
    return scipy.sparse.csr_matrix((weights, columns, offsets), shape=shape)
