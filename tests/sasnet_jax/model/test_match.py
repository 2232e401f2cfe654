"""A task that only the match between a user and a business decides."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from sasnet_jax.model.sasnet import ReviewSet, SASNet

ASPECTS = 8  # what a review may speak of; a business has 8 reviews, one of each
WIDTH = 16
EMBEDDING = 32
CODES = jax.random.normal(jax.random.key(9), (3 * ASPECTS, EMBEDDING))


def _draw(key: Key[Array, ""], batch: int) -> tuple[ReviewSet, ReviewSet, Int[Array, "b"]]:
    """Users who care about one aspect, and businesses that are good or bad at each.

    The label is whether the business is good at what the user cares for. Neither side alone tells
    anything of it, nor does the mean of all qualities tell more than one eighth.
    """
    keys = jax.random.split(key, 4)
    taste = jax.random.randint(keys[0], (batch, 1), 0, ASPECTS)
    quality = jax.random.randint(keys[1], (batch, ASPECTS), 0, 2)
    noise = 0.3 * jax.random.normal(keys[2], (2, batch, ASPECTS, EMBEDDING))
    users = CODES[jnp.broadcast_to(taste, (batch, ASPECTS))] + noise[0]
    businesses = CODES[ASPECTS + 2 * jnp.arange(ASPECTS)[None] + quality] + noise[1]
    label = jnp.take_along_axis(quality, taste, axis=1)[:, 0]
    everything = jnp.ones((batch, ASPECTS), bool), jnp.ones((batch, ASPECTS))
    mask, stars = everything
    return ReviewSet(users, stars, mask), ReviewSet(businesses, stars, mask), label


def _accuracy(**options) -> float:
    """The accuracy of a network trained for 150 steps, on 2,000 new pairs."""
    small = {"width": WIDTH, "depth": 1, "heads": 4, "feed_forward": 32, "classes": 2}
    plain = {"dropout": 0.0, "encoder": True, "bias_term": False, "review_features": "text"}
    settings = small | plain | {"cross_attention": "set"} | options
    network = SASNet(EMBEDDING, **settings, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(network, nnx.Param)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            user, business, label = _draw(key, 64)

            def loss(params):
                logits = nnx.merge(graphdef, params)(user, business)
                return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 150))
        user, business, label = _draw(jax.random.key(1), 2000)
        return (nnx.merge(graphdef, params)(user, business).argmax(axis=1) == label).mean()

    return float(train(params))


def test_attention_between_the_sets_learns_what_pooled_sets_and_means_learn_less_well():
    accuracy = {
        "set": _accuracy(cross_attention="set"),
        "pooled": _accuracy(cross_attention="pooled"),
        "DeepSets": _accuracy(encoder=False),
    }
    assert accuracy["set"] > 0.85, accuracy
    assert accuracy["set"] > accuracy["pooled"] + 0.1, accuracy
    assert accuracy["set"] > accuracy["DeepSets"] + 0.2, accuracy
