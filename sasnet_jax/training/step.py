"""The jitted functions: a chunk of training steps, and prediction (DESIGN section 4).

The data are arguments, never closures, so that no table becomes a compiled constant. Sets are
sampled and gathered on the device. Letters: b batch, s set, e embedding width, c classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int8, Int32, Key

from sasnet_jax.data.corpus import CLASSES
from sasnet_jax.data.interactions import Context, Contexts, HostOrDevice
from sasnet_jax.models.sasnet import ReviewSet, SASNet
from sasnet_jax.training import sampling
from sasnet_jax.training.config import TrainConfig


class Data(NamedTuple):
    """What a step reads of corpus and store."""

    table: Float[HostOrDevice, "reviews e"]
    mean: Float[HostOrDevice, "e"]
    scale: Float[HostOrDevice, "e"]
    stars: Float[HostOrDevice, "reviews"]
    label: Int8[HostOrDevice, "reviews"]
    contexts: Contexts


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: Int32[HostOrDevice, ""]
    params: Any
    opt_state: Any
    epoch_loss: Float[HostOrDevice, ""]  # summed over the targets of the epoch so far


class Epoch(NamedTuple):
    """The targets of an epoch in batches, and which of them are not padding."""

    targets: Int32[Array, "steps b"]
    real: Bool[Array, "steps b"]


class Functions(NamedTuple):
    """The compiled side of a run; see `build`."""

    init: Callable[[], TrainState]
    train_chunk: Callable[..., tuple[TrainState, Int32[Array, ""]]]
    predict: Callable[..., Float[Array, "b c"]]


def build(config: TrainConfig, embedding_dim: int) -> Functions:
    """Makes the functions of one network and one set of settings.

    `init()` -> state.
    `train_chunk(state, data, epoch, first, last)` runs the batches [first, last) of the epoch and
    returns the state and the first step whose loss was not finite, or -1. Its trip count is traced:
    a chunk of any length is one compilation, and the same bits (a `lax.scan` is compiled for one
    length, and a short one to other bits).
    `predict(params, data, targets)` -> probabilities, averaged over `eval_sets` draws that depend
    on seed, review and draw only.
    """
    graphdef, _ = nnx.split(_network(config, embedding_dim), nnx.Param)
    optimizer = _optimizer(config)

    def loss_of(params, data, targets, real, step):
        sides = _training_sets(config, data, targets, step)
        dropout_key = jax.random.fold_in(sampling.stream(config.seed, "dropout", "rbg"), step)
        logits = nnx.merge(graphdef, params)(*sides, dropout_key)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, data.label[targets].astype(jnp.int32)
        )
        total = (losses * real).sum()
        return total / real.sum(), total

    def one_step(state, data, epoch, index):
        targets, real = epoch.targets[index], epoch.real[index]
        gradients, total = jax.grad(loss_of, has_aux=True)(
            state.params, data, targets, real, state.step
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        epoch_loss = jnp.where(index == 0, 0.0, state.epoch_loss) + total
        return TrainState(state.step + 1, params, opt_state, epoch_loss), jnp.isfinite(total)

    @jax.jit(donate_argnums=0)
    def train_chunk(state, data, epoch, first, last):
        def body(index, carry):
            state, bad_step = carry
            new, finite = one_step(state, data, epoch, index)
            return new, jnp.where(finite | (bad_step >= 0), bad_step, state.step)

        return jax.lax.fori_loop(first, last, body, (state, jnp.int32(-1)))

    @jax.jit
    def init():
        network = _network(config, embedding_dim)
        params = nnx.state(network, nnx.Param)
        return TrainState(jnp.int32(0), params, optimizer.init(params), jnp.float32(0))

    @jax.jit
    def predict(params, data, targets):
        def one_draw(draw):
            sides = _evaluation_sets(config, data, targets, draw)
            return jax.nn.softmax(nnx.merge(graphdef, params)(*sides))

        return jax.lax.map(one_draw, jnp.arange(config.eval_sets)).mean(axis=0)

    return Functions(init, train_chunk, predict)


def _network(config: TrainConfig, embedding_dim: int) -> SASNet:
    return SASNet(
        embedding_dim,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        feed_forward=config.feed_forward,
        classes=len(CLASSES),
        dropout=config.dropout,
        cross_attention=config.cross_attention,
        review_features=config.review_features,
        rngs=nnx.Rngs(params=sampling.stream(config.seed, "init")),
    )


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        # The count starts at 0, where a warm-up from zero would waste the first step.
        optax.adamw(lambda count: warmup(count + 1), weight_decay=config.weight_decay),
    )


@jax.jit(static_argnames=("batch_size", "seed"))
def shuffle(rows: Int32[Array, "n"], number: Int32[Array, ""], batch_size: int, seed: int) -> Epoch:
    """Epoch `number`: each of `rows` once, in an order of its own; the last batch is padded."""
    key = jax.random.fold_in(sampling.stream(seed, "order"), number)
    steps = -(-rows.size // batch_size)
    shuffled = jax.random.permutation(key, rows)
    padded = jnp.pad(shuffled, (0, steps * batch_size - rows.size), mode="edge")
    real = jnp.arange(padded.size) < rows.size
    return Epoch(padded.reshape(steps, batch_size), real.reshape(steps, batch_size))


def _training_sets(
    config: TrainConfig, data: Data, targets: Int32[Array, "b"], step: Int32[Array, ""]
) -> tuple[ReviewSet, ReviewSet]:
    """Both sides' sets, drawn for this step; now and then a side is emptied."""
    key = jax.random.fold_in(sampling.stream(config.seed, "sets"), step)
    sides = _gather_both(config, data, targets, jax.random.split(key, (2, targets.size)))
    empty_key = jax.random.fold_in(sampling.stream(config.seed, "empty"), step)
    emptied = jax.random.bernoulli(empty_key, config.empty_side, (2, targets.size, 1))
    user, business = (
        side._replace(mask=side.mask & ~empty) for side, empty in zip(sides, emptied, strict=True)
    )
    return user, business


def _evaluation_sets(
    config: TrainConfig, data: Data, targets: Int32[Array, "b"], draw: Int32[Array, ""]
) -> tuple[ReviewSet, ReviewSet]:
    """Both sides' sets, which depend on seed, review and draw only."""
    key = sampling.stream(config.seed, "eval")

    def keys_of(target):
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, target), draw))

    keys = jnp.swapaxes(jax.vmap(keys_of)(targets), 0, 1)
    return _gather_both(config, data, targets, keys)


def _gather_both(
    config: TrainConfig, data: Data, targets: Int32[Array, "b"], keys: Key[Array, "2 b"]
) -> tuple[ReviewSet, ReviewSet]:
    user, business = (
        _gather(data, context, targets, side_keys, config.set_size)
        for context, side_keys in zip(data.contexts, keys, strict=True)
    )
    return user, business


def _gather(
    data: Data, context: Context, targets: Int32[Array, "b"], keys: Key[Array, "b"], size: int
) -> ReviewSet:
    """Samples each target's set and reads its reviews, standardised."""
    draw = jax.vmap(sampling.sample_set, in_axes=(0, None, 0, None))
    rows, mask = draw(keys, context, targets, size)
    embeddings = (data.table[rows].astype(jnp.float32) - data.mean[None, None]) / data.scale[
        None, None
    ]
    return ReviewSet(embeddings, data.stars[rows], mask)
