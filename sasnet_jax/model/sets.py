"""The reviews of a user or a business, and the sets drawn from them to predict (docs/design.md 7).

An entity is nothing but its reviews: which sets are drawn depends on their content, not on their
owner or their order. So a user known by an id and a person who pastes the same reviews get the same
answer, and an entity that is encoded once serves every pair that it is part of.
"""

import hashlib
import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt32

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import read_grouped
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store
from sasnet_jax.model import sampling

Context = Literal["all", "train"]


class Reviews:
    """All that is known about a user or a business: the set of its reviews.

    Attributes:
      vectors: float32 [n, e], all stores of the run side by side, as stored; n = 0 is a side
        without reviews.
      stars: float32 [n], NaN if a review has none; None if no stars are known.
    """

    def __init__(
        self,
        vectors: npt.ArrayLike,
        stars: Sequence[float | None] | npt.ArrayLike | None = None,
    ):
        """Takes vectors as an encoder returns them, and stars as a person gives them.

        Args:
          vectors: [n, e], or empty.
          stars: of each review, or None where it has none; half stars count.

        Raises:
          UserError: the vectors are not a finite matrix, or the stars are outside (0, 5] or
            differ in number.
        """
        self.vectors = _numbers("vectors", vectors)
        if not self.vectors.size and self.vectors.ndim < 2:
            self.vectors = np.zeros((0, 0), np.float32)
        if self.vectors.ndim != 2 or not np.isfinite(self.vectors).all():
            raise UserError(
                f"vectors of reviews must be finite and of shape [n, e], not {self.vectors.shape}"
            )
        self.stars = None if stars is None else _numbers("stars", stars)
        if self.stars is not None:
            if self.stars.shape != (len(self),):
                shape = self.stars.shape
                raise UserError(
                    f"{len(self)} vectors, but stars of shape {shape}: give one per review"
                )
            if ((self.stars <= 0) | (self.stars > 5)).any():
                raise UserError("stars of reviews must be above 0 and at most 5")

    def __len__(self) -> int:
        """The number of reviews."""
        return len(self.vectors)


def _numbers(name: str, values: Any) -> Float32[np.ndarray, "..."]:
    try:
        with np.errstate(over="ignore"):
            return np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} of reviews must be numbers in rows of equal length: {error}"
        ) from None


class StoredReviews(Sequence[Reviews]):
    """The reviews of every user, or of every business, of a corpus; read on demand.

    Attributes:
      table: users.parquet or businesses.parquet, row i of which is entity i.
    """

    def __init__(
        self,
        corpus: Corpus,
        stores: Sequence[Store],
        side: Literal["user", "business"],
        *,
        context: Context = "all",
        with_stars: bool = True,
    ):
        """Opens the reviews of one side.

        Args:
          corpus: the corpus.
          stores: its embedding stores, side by side.
          side: whose reviews.
          context: every review, or only the training reviews.
          with_stars: whether the reviews have their stars.

        Raises:
          UserError: the corpus is damaged, or there is no such context.
        """
        if context not in get_args(Context):
            raise UserError(f"context={context!r} is none of {', '.join(get_args(Context))}")
        name = {"user": "users", "business": "businesses"}[side]
        self.table = corpus.table(name)
        self._stores, self._stars = stores, corpus.stars if with_stars else None
        self._grouped = read_grouped(corpus, side)
        self._visible = corpus.split == "train" if context == "train" else None

    def __len__(self) -> int:
        """The number of entities."""
        return self.table.height

    def __getitem__(self, index):
        """Entity `index`, or a list of those in a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        rows = self.rows(index)
        vectors = np.hstack([store.table[rows].astype(np.float32) for store in self._stores])
        return Reviews(vectors, None if self._stars is None else self._stars[rows])

    def rows(self, index: SupportsIndex) -> Int32[np.ndarray, "n"]:
        """The review indices of an entity."""
        index = operator.index(index)
        first, last = self._grouped.offsets[index : index + 2]
        rows = np.asarray(self._grouped.rows[first:last])
        return rows if self._visible is None else rows[self._visible[rows]]


class Members(NamedTuple):
    """The reviews of one entity, in an order and with a digest that their content decides."""

    vectors: Float32[np.ndarray, "n e"]
    stars: Float32[np.ndarray, "n"]  # NaN if unknown, or ignored
    digest: UInt32[np.ndarray, "two"]


def members_of(reviews: Reviews, with_stars: bool) -> Members:
    """Sorts an entity's reviews by hashes of their vectors, and by their stars.

    Stars count only if the network reads them.
    """
    digests = (hashlib.sha256(vector.tobytes()).digest()[:16] for vector in reviews.vectors)
    hashes = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    stars = np.full(len(reviews), np.nan, np.float32)
    if with_stars and reviews.stars is not None:
        stars = reviews.stars
    order = np.lexsort((stars, hashes[:, 1], hashes[:, 0]))
    content = hashlib.sha256(hashes[order].tobytes() + stars[order].tobytes()).digest()
    digest = np.frombuffer(content[:8], np.uint32)
    return Members(reviews.vectors[order], stars[order], digest)


@jax.jit(static_argnames="size")
def draw(
    stream: Key[Array, ""],
    digest: UInt32[Array, "m two"],
    count: Int32[Array, "m"],
    number: Int32[Array, "m"],
    size: int,
) -> tuple[Int32[Array, "m s"], Bool[Array, "m s"]]:
    """Sets of up to `size` of each entity's sorted members: their positions, and the mask.

    A set holds all members if they fit. Otherwise it is draw `number`: uniform without replacement,
    and dependent only on the stream, the digest and the number.

    Args:
      stream: `sampling.stream(seed, "recommend")`.
      digest: of the members.
      count: the number of members.
      number: of the draw.
      size: s.
    """

    def one(digest, count, number):
        key = stream
        for word in (*digest, number):
            key = jax.random.fold_in(key, word)
        positions, mask = sampling.sample_positions(key, count, size)
        return jnp.where(count <= size, jnp.arange(size) * mask, positions), mask

    return jax.vmap(one)(digest, count, number)
