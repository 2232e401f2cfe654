"""The network that a run's settings describe."""

from typing import Any

import jax
import numpy as np
from flax import nnx

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
        match=config.match,
        rate_reviews=config.review_loss > 0,
        rngs=nnx.Rngs(params=sampling.stream(config.seed, "init")),
    )


def definition(config: TrainConfig, embedding_dim: int) -> tuple[nnx.GraphDef, Any]:
    """The network's structure, and its parameters as host arrays of zeros."""
    network = nnx.eval_shape(lambda: build(config, embedding_dim))
    graphdef, params = nnx.split(network, nnx.Param)
    return graphdef, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
