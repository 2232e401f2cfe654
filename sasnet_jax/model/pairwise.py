"""What the network says of a pair beside its attention: `Match` and `Votes` (docs/design.md 4.3).

Both read one side by itself first, so that what is read once can meet any number of other sides.
Letters: b batch, s set, e embedding width, d model width, n heads, r rank of a head, c classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sasnet_jax.corpus.counts import SMOOTHING
from sasnet_jax.features.averages import SHRINKAGE
from sasnet_jax.features.votes import RANK, SHARPNESS


class Match(nnx.Module):
    """The averages of both sides, and their bilinear product.

    The reviews x_i of a side are averaged as sum(x_i) / (n + k) with a learned k > 0 for each
    dimension: the best linear prediction of an entity, where k is the variance of reviews over that
    of entities (Henderson 1975). A side without reviews is 0, which is the usual entity.
    """

    def __init__(self, embedding_dim: int, width: int, *, rngs: nnx.Rngs):
        self.project = nnx.Linear(embedding_dim, width, use_bias=False, rngs=rngs)
        self.usual = nnx.Param(jnp.zeros((width,)))  # added to each review
        self.shrinkage = nnx.Param(jnp.ones((2, width)))  # k = softplus of it; user, business
        self.of_user = nnx.Linear(width, width, rngs=rngs)
        self.of_business = nnx.Linear(width, width, rngs=rngs)

    def total(
        self, embeddings: Float[Array, "b s e"], mask: Bool[Array, "b s"]
    ) -> Float[Array, "b d"]:
        """The sum of one side's projected reviews; the average is taken once its k is known."""
        real = mask.astype(jnp.float32)
        # Projecting the sum takes s times less work than summing the projections.
        total = self.project(jnp.einsum("bse,bs->be", embeddings, real))
        return total + real.sum(axis=1, keepdims=True) * self.usual[...][None]

    def __call__(
        self,
        user: tuple[Float[Array, "b d"], Float[Array, "b 1"]],
        business: tuple[Float[Array, "b d"], Float[Array, "b 1"]],
    ) -> Float[Array, "b three_d"]:
        """Both averages, and the product of their two linear maps.

        Args:
          user: the `total` of its reviews, and their number.
          business: likewise.
        """
        averages = [
            total / (reviews + k[None])
            for (total, reviews), k in zip(
                (user, business), jax.nn.softplus(self.shrinkage[...]), strict=True
            )
        ]
        product = self.of_user(averages[0]) * self.of_business(averages[1])
        return jnp.concatenate([*averages, product], axis=-1)


class Voters(NamedTuple):
    """One side by itself, as `Votes` reads it."""

    keys: Float[Array, "b s n r"]  # each review's text, of length 1 in each head
    query: Float[Array, "b n r"]  # the mean text, of length 1; 0 for a side without reviews
    classes: Float[Array, "b s c"]  # one-hot; 0 where there is no review, or its class is unknown


class Votes(nnx.Module):
    """Attention whose values are ratings.

    The business's reviews are weighed by the likeness of their text to the user's mean text, the
    user's reviews by the likeness of theirs to the business's: exp(sharpness * cosine) in each
    head, whose keys and queries share one projection. The weighed class shares of n reviews are
    smoothed by the class shares of the training split, as if by 5 more reviews; sharpness 0, or
    another side without reviews, gives the smoothed class frequencies of
    `sasnet_jax.corpus.counts`. The heads start at the discriminants of users and of businesses.
    """

    def __init__(self, embedding_dim: int, discriminants: int, classes: int):
        """Makes two heads for each store: directions for users, directions for businesses.

        Args:
          embedding_dim: e, of all stores.
          discriminants: k, the directions of each store for users, and as many for businesses.
          classes: c.
        """
        heads, rank = embedding_dim // discriminants, min(RANK, discriminants)
        self.classes, self.features = classes, 2 * heads * classes
        self.project = nnx.Param(jnp.tile(jnp.eye(discriminants, rank), (heads, 1, 1)))
        self.sharpness = nnx.Param(jnp.full((2, heads), SHARPNESS))

    def voters(
        self,
        embeddings: Float[Array, "b s e"],
        mask: Bool[Array, "b s"],
        label: Int[Array, "b s"],
    ) -> Voters:
        """Reads one side; a label of -1 is unknown."""
        heads, discriminants, _ = self.project.shape
        apart = embeddings.reshape(*embeddings.shape[:2], heads, discriminants)
        keys = jnp.einsum("bsnk,nkr->bsnr", apart, self.project[...])
        query = jnp.einsum("bsnr,bs->bnr", keys, mask.astype(jnp.float32))
        classes = jax.nn.one_hot(jnp.where(mask, label, -1), self.classes)
        return Voters(_normalized(keys), _normalized(query), classes)

    def __call__(
        self, user: Voters, business: Voters, shares: Float[Array, "c"]
    ) -> Float[Array, "b two_n_c"]:
        """Logs of the shares by which the user's reviews vote in each head, then the business's."""
        logs = []
        for voting, other, sharpness in zip(
            (user, business), (business, user), self.sharpness[...], strict=True
        ):
            cosine = jnp.einsum("bsnr,bnr->bsn", voting.keys, other.query)
            votes = voting.classes.sum(axis=2) > 0
            reviews = votes.sum(axis=1)[:, None, None]
            logits = jnp.where(votes[..., None], sharpness[None, None] * cosine, -jnp.inf)
            logits = jnp.where(reviews > 0, logits, 0)  # a softmax needs something to weigh
            weight = jax.nn.softmax(logits, axis=1)
            shared = jnp.einsum("bsn,bsc->bnc", weight, voting.classes)
            smoothed = reviews * shared + SMOOTHING * shares[None, None]
            logs.append(jnp.log(smoothed / (reviews + SMOOTHING)))
        return jnp.concatenate(logs, axis=1).reshape(len(user.query), -1)


class Gate(nnx.Module):
    """How much the network may add to a regression, by how much is known of each side."""

    def __init__(self):
        self.weight = nnx.Param(jnp.zeros((2,)))  # of n / (n + 4); user, business
        self.bias = nnx.Param(jnp.zeros((1,)))

    def __call__(
        self, user: Float[Array, "b 1"], business: Float[Array, "b 1"]
    ) -> Float[Array, "b 1"]:
        """A number between 0 and 1 for each pair, from the numbers of reviews."""
        reviews = jnp.concatenate([user, business], axis=1)
        # Nearly the same for the larger sets of an evaluation as for those of training.
        known = reviews / (reviews + SHRINKAGE)
        return jax.nn.sigmoid((known @ self.weight[...])[:, None] + self.bias[...][None])


def _normalized(vectors: Float[Array, "... r"]) -> Float[Array, "... r"]:
    """Vectors of length 1; a zero vector stays zero, and its gradient finite."""
    squares = (vectors**2).sum(axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
