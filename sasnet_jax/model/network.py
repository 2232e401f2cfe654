"""The network that a run's settings describe."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sasnet_jax.model import sampling
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.sasnet import SASNet


def build(config: TrainConfig, embedding_dim: int) -> SASNet:
    """Builds a new network over the embeddings that the run reads from all its stores."""
    return SASNet(
        embedding_dim,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        feed_forward=config.feed_forward,
        classes=config.classes,
        dropout=config.dropout,
        encoder=config.encoder,
        cross_attention=config.cross_attention,
        review_features=config.review_features,
        bias_term=config.bias_term,
        crossed_bias=config.crossed_bias,
        match=config.match,
        votes=config.votes,
        discriminants=config.discriminants,
        offset=config.offset,
        rate_reviews=config.review_loss > 0,
        rngs=nnx.Rngs(params=sampling.stream(config.seed, "init")),
    )


def factors(offset: bool) -> tuple[float, ...]:
    """By which a network may be multiplied before it is added to its offset."""
    return (0.0, 0.25, 0.5, 1.0) if offset else (1.0,)


def probability(
    logits: Float[Array, "b c"], offset: Float[Array, "b c"] | None
) -> Float[Array, "b factors c"]:
    """The class probabilities with each of the `factors`."""
    if offset is None:
        return jax.nn.softmax(logits)[:, None]
    factor = jnp.array(factors(offset=True))[None, :, None]
    return jax.nn.softmax(offset[:, None] + factor * logits[:, None])


def definition(config: TrainConfig, embedding_dim: int) -> tuple[nnx.GraphDef, Any]:
    """The network's structure, and its parameters as host arrays of zeros."""
    network = nnx.eval_shape(lambda: build(config, embedding_dim))
    graphdef, params = nnx.split(network, nnx.Param)
    return graphdef, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
