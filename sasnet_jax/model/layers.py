"""Attention over sets (paper section 2.4; Set Transformer, Lee et al. 2019).

Letters: b batch, q queries, k keys, d model width, n heads, h head width. Masks are bool, True = a
real review; every row of a mask must have at least one True.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zeroes each value with probability `rate` (to 1/256) and rescales; no key, no dropout.

    It draws eight random bits per value, and so four values per word of the generator: on a CPU,
    the bits cost more than the product.
    """
    dropped = round(rate * 256)
    if key is None or dropped == 0:
        return x
    rows, size = x.shape[0], x[0].size
    words = jax.random.bits(key, (rows, -(-size // 4)), jnp.uint32)  # by rows, as devices share x
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(rows, -1)[:, :size]
    return jnp.where(octets.reshape(x.shape) >= dropped, x * (256 / (256 - dropped)), 0)


def masked_mean(x: Float[Array, "b s d"], mask: Bool[Array, "b s"]) -> Float[Array, "b d"]:
    """Mean over the real members of each set."""
    total = jnp.einsum("bsd,bs->bd", x, mask.astype(x.dtype))
    return total / mask.sum(axis=1, keepdims=True)


class Attention(nnx.Module):
    """Multi-head scaled dot-product attention."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        keys: Float[Array, "b k d"],
        mask: Bool[Array, "b k"],
    ) -> Float[Array, "b q d"]:
        """Each query's weighted average over the keys that `mask` keeps."""
        q, k, v = (
            linear(x).reshape(*x.shape[:2], self.heads, -1)
            for linear, x in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        logits = jnp.einsum("bqnh,bknh->bnqk", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits, where=mask[:, None, None, :])
        return self.out(jnp.einsum("bnqk,bknh->bqnh", weights, v).reshape(queries.shape))


class AttentionBlock(nnx.Module):
    """Pre-LayerNorm transformer block: queries attend to keys, then a feed-forward network.

    With queries = keys, it is self-attention over a set. One LayerNorm serves both inputs, as they
    come from one siamese encoder. Dropout applies to both residual branches.
    """

    def __init__(
        self, width: int, heads: int, feed_forward: int, dropout: float, *, rngs: nnx.Rngs
    ):
        self.dropout = dropout
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.feed_forward_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, feed_forward, rngs=rngs)
        self.contract = nnx.Linear(feed_forward, width, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        keys: Float[Array, "b k d"],
        mask: Bool[Array, "b k"],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "b q d"]:
        """The queries, each enriched by the keys that `mask` keeps; `key` is dropout's."""
        attention_key, feed_forward_key = (None, None) if key is None else jax.random.split(key)
        normed = self.attention_norm(queries)
        normed_keys = normed if keys is queries else self.attention_norm(keys)
        attended = self.attention(normed, normed_keys, mask)
        x = queries + dropout(attended, self.dropout, attention_key)
        hidden = jax.nn.gelu(self.expand(self.feed_forward_norm(x)))
        return x + dropout(self.contract(hidden), self.dropout, feed_forward_key)
