"""The Siamese AttentionSetNet (paper section 2.4; DESIGN section 4).

In: for each target the sampled reviews of its user and of its business. Out: logits over
(bad, good, excellent). Letters: b batch, s set, e embedding width, d model width, c classes.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from sasnet_jax.models.layers import AttentionBlock, dropout, masked_mean

CrossAttention = Literal["pooled", "set"]
ReviewFeatures = Literal["text", "text+stars"]
_HALF_STARS = 11  # 0, 0.5, ..., 5


class ReviewSet(NamedTuple):
    """Sets of reviews. Where `mask` is False the content does not matter, but must be finite."""

    embeddings: Float[Array, "b s e"]
    stars: Float[Array, "b s"]
    mask: Bool[Array, "b s"]


class SASNet(nnx.Module):
    """Predicts how a user will like a business from two sets of reviews.

    `cross_attention="pooled"` is the paper's: each side is pooled first, so the user's one vector
    attends to the business's one vector. A softmax over one key is the constant 1: its query and
    key weights never matter and get no gradient. `"set"` attends before pooling, each review of the
    user to every review of the business, which is not degenerate.

    `review_features="text+stars"` adds an embedding of a review's stars (half-star grid) to its
    token. The target is in neither set, so its stars are never seen.

    A side without reviews is one learned vector, as its only valid token.
    """

    def __init__(
        self,
        embedding_dim: int,
        *,
        width: int,
        depth: int,
        heads: int,
        feed_forward: int,
        classes: int,
        dropout: float,
        cross_attention: CrossAttention,
        review_features: ReviewFeatures,
        rngs: nnx.Rngs,
    ):
        self.cross_attention = cross_attention
        self.dropout = dropout
        self.project = nnx.Linear(embedding_dim, width, rngs=rngs)
        with_stars = review_features == "text+stars"
        self.stars = nnx.Embed(_HALF_STARS, width, rngs=rngs) if with_stars else None
        self.no_reviews = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))

        def block() -> AttentionBlock:
            return AttentionBlock(width, heads, feed_forward, dropout, rngs=rngs)

        self.encoder = nnx.List([block() for _ in range(depth)])
        self.cross = block()
        self.hidden = nnx.Linear(2 * width, width, rngs=rngs)
        # Small, so that training starts from nearly equal probabilities.
        small = nnx.initializers.normal(0.02)
        self.classify = nnx.Linear(width, classes, kernel_init=small, rngs=rngs)

    def __call__(
        self, user: ReviewSet, business: ReviewSet, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b c"]:
        """Logits. `key` drives dropout; without one there is none."""
        parts = len(self.encoder) + 2  # that drop out: the encoder's blocks, cross, hidden
        keys = [None] * parts if key is None else list(jax.random.split(key, parts))
        both = jax.tree.map(lambda u, v: jnp.concatenate([u, v]), user, business)
        tokens, mask = self._encode(both, keys)  # [2b, s, d], siamese: one encoder for both sides
        if self.cross_attention == "pooled":
            tokens, mask = masked_mean(tokens, mask)[:, None], mask.any(axis=1, keepdims=True)
        users, businesses = jnp.split(tokens, 2)
        user_mask, business_mask = jnp.split(mask, 2)
        users = self.cross(users, businesses, business_mask, keys[-2])
        pair = jnp.concatenate(
            [masked_mean(users, user_mask), masked_mean(businesses, business_mask)], axis=-1
        )
        hidden = dropout(jax.nn.gelu(self.hidden(pair)), self.dropout, keys[-1])
        return self.classify(hidden)

    def _encode(
        self, reviews: ReviewSet, keys: list
    ) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """Contextualised reviews and the mask of the valid ones, at least one a set."""
        tokens = jax.nn.gelu(self.project(reviews.embeddings))
        if self.stars is not None:
            tokens += self.stars(star_index(reviews.stars))
        first = jnp.arange(tokens.shape[1])[None] == 0
        alone = first & ~reviews.mask.any(axis=1, keepdims=True)  # [b, s]: stands for "no reviews"
        tokens = jnp.where(alone[..., None], self.no_reviews[None, None], tokens)
        mask = reviews.mask | alone
        for block, key in zip(self.encoder, keys[:-2], strict=True):
            tokens = block(tokens, tokens, mask, key)
        return tokens, mask


def star_index(stars: Float[Array, "..."]) -> Int[Array, "..."]:
    """Position of a rating on the half-star grid."""
    return jnp.round(stars * 2).astype(jnp.int32)
