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
from sasnet_jax.features.effects import Effects
from sasnet_jax.model import sampling

Context = Literal["all", "train"]


class Reviews:
    """All that is known about a user or a business: the set of its reviews.

    Attributes:
      vectors: float32 [n, e], all stores of the run side by side, as stored; n = 0 is a side
        without reviews.
      stars: float32 [n], NaN if a review has none; None if no stars are known.
      other_effect: float32 [n], how well liked the business of a user's review is, or how kind the
        user of a business's review; 0 if that is not known, None if none is known.
    """

    def __init__(
        self,
        vectors: npt.ArrayLike,
        stars: Sequence[float | None] | npt.ArrayLike | None = None,
        other_effect: Sequence[float] | npt.ArrayLike | None = None,
    ):
        """Takes vectors as an encoder returns them, and stars as a person gives them.

        Args:
          vectors: [n, e], or empty.
          stars: of each review on the scale of the run's corpus, or None where it has none.
          other_effect: of each review, as in `Run.users` and `Run.businesses` of a run with
            `--crossed_bias` or `--offset`.

        Raises:
          UserError: the vectors are not a finite matrix, or stars or effects differ in number.
        """
        self.vectors = _numbers("vectors", vectors)
        if not self.vectors.size and self.vectors.ndim < 2:
            self.vectors = np.zeros((0, 0), np.float32)
        if self.vectors.ndim != 2 or not np.isfinite(self.vectors).all():
            raise UserError(
                f"vectors of reviews must be finite and of shape [n, e], not {self.vectors.shape}"
            )
        self.stars = None if stars is None else _numbers("stars", stars)
        if self.stars is not None and self.stars.shape != (len(self),):
            shape = self.stars.shape
            raise UserError(f"{len(self)} vectors, but stars of shape {shape}: give one per review")
        self.other_effect = None
        if other_effect is not None:
            self.other_effect = _numbers("other_effect", other_effect)
            if self.other_effect.shape != (len(self),) or not np.isfinite(self.other_effect).all():
                raise UserError(
                    f"{len(self)} vectors need as many finite effects, not other_effect of shape "
                    f"{self.other_effect.shape}"
                )

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
        effects: Effects | None = None,
    ):
        """Opens the reviews of one side.

        Args:
          corpus: the corpus.
          stores: its embedding stores, side by side.
          side: whose reviews.
          context: every review, or only the training reviews.
          with_stars: whether the reviews have their stars.
          effects: the fitted effects of a run that reads them.

        Raises:
          UserError: the corpus is damaged, or there is no such context.
        """
        if context not in get_args(Context):
            raise UserError(f"context={context!r} is none of {', '.join(get_args(Context))}")
        name = {"user": "users", "business": "businesses"}[side]
        self.table = corpus.table(name)
        self._stores, self._stars = stores, corpus.stars if with_stars else None
        self._grouped = read_grouped(corpus, side)
        self._others = None
        if effects is not None:
            of_business, of_user = effects.business[corpus.business], effects.user[corpus.user]
            self._others = of_business if side == "user" else of_user
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
        known = (None if column is None else column[rows] for column in (self._stars, self._others))
        return Reviews(vectors, *known)

    def rows(self, index: SupportsIndex) -> Int32[np.ndarray, "n"]:
        """The review indices of an entity."""
        index = operator.index(index)
        first, last = self._grouped.offsets[index : index + 2]
        rows = np.asarray(self._grouped.rows[first:last])
        return rows if self._visible is None else rows[self._visible[rows]]


class Members(NamedTuple):
    """The reviews of one entity, in an order and with a digest that their content decides."""

    vectors: Float32[np.ndarray, "n e"]
    stars: Float32[np.ndarray, "n"]  # NaN if unknown
    other_effect: Float32[np.ndarray, "n"]  # 0 if unknown
    digest: UInt32[np.ndarray, "two"]


def members_of(reviews: Reviews, with_stars: bool) -> Members:
    """Sorts an entity's reviews by hashes of their vectors, by their stars and effects.

    Stars count in the digest only if the network reads them.
    """
    digests = (hashlib.sha256(vector.tobytes()).digest()[:16] for vector in reviews.vectors)
    hashes = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    nothing = np.zeros(len(reviews), np.float32)
    unknown = np.full(len(reviews), np.nan, np.float32)
    stars = unknown if reviews.stars is None else reviews.stars
    other_effect = nothing if reviews.other_effect is None else reviews.other_effect
    order = np.lexsort((other_effect, stars, hashes[:, 1], hashes[:, 0]))
    read = stars[order] if with_stars else unknown
    content = hashlib.sha256(hashes[order].tobytes() + read.tobytes()).digest()
    digest = np.frombuffer(content[:8], np.uint32)
    return Members(reviews.vectors[order], stars[order], other_effect[order], digest)


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
