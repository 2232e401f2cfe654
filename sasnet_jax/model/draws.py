"""What a step reads: an epoch's order, the sets drawn for its targets, and their embeddings.

A `Draw` names reviews by their rows and depends on seed, stream and step alone, so it is the same
wherever the embedding table lies: on every device, split by rows over the devices, or on the host.
Letters: b batch, s set, e embedding width, c classes; the axis of 2 is (user, business).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int8, Int32, Key

from sasnet_jax.corpus import transform
from sasnet_jax.corpus.contexts import Contexts, HostOrDevice
from sasnet_jax.corpus.counts import bias_features
from sasnet_jax.corpus.store import ZScore
from sasnet_jax.model import devices, sampling
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.sasnet import ReviewSet


class Data(NamedTuple):
    """Corpus and stores, as a step reads them; on the host, or on the devices."""

    tables: tuple[Float[HostOrDevice, "reviews e"], ...]  # one per store, as stored
    scalings: tuple[ZScore, ...]  # one per store, still to be applied
    stars: Float[HostOrDevice, "reviews"]
    label: Int8[HostOrDevice, "reviews"]
    contexts: Contexts
    counts: Int32[HostOrDevice, "reviews 2 c"] | None  # classes in the contexts; for the bias term
    shares: Float[HostOrDevice, "c"]  # of the classes in training

    @property
    def embedding_dim(self) -> int:
        """The width of all stores side by side."""
        return sum(table.shape[1] for table in self.tables)


class Epoch(NamedTuple):
    """The targets of an epoch in batches, and a mask that is False on padding."""

    targets: Int32[HostOrDevice, "steps b"]
    real: Bool[HostOrDevice, "steps b"]


class Draw(NamedTuple):
    """The sets of a batch: all that a step sees but embeddings."""

    rows: Int32[Array, "2 b s"]
    mask: Bool[Array, "2 b s"]
    bias: Float[Array, "b f"] | None  # features of the bias term


@jax.jit(static_argnames=("batch_size", "seed"))
def shuffle(rows: Int32[Array, "n"], number: Int32[Array, ""], batch_size: int, seed: int) -> Epoch:
    """Epoch `number`: each of `rows` once, in an order of its own; the last batch is padded."""
    key = jax.random.fold_in(sampling.stream(seed, "order"), number)
    steps = -(-rows.size // batch_size)
    shuffled = jax.random.permutation(key, rows)
    padded = jnp.pad(shuffled, (0, steps * batch_size - rows.size), mode="edge")
    real = jnp.arange(padded.size) < rows.size
    return Epoch(padded.reshape(steps, batch_size), real.reshape(steps, batch_size))


def draw_training(
    config: TrainConfig, data: Data, targets: Int32[Array, "b"], step: Int32[Array, ""]
) -> Draw:
    """Both sides' sets for this step; occasionally a side is emptied, and its counts too.

    The counts are over a random part of the context: each review of it is kept with a probability
    that is itself uniform. Counts over the whole context would leak: a network that recognizes an
    entity by its texts knows its totals, and what is missing from them is the target's label.
    """

    def key_of(name: str) -> Key[Array, ""]:
        return jax.random.fold_in(sampling.stream(config.seed, name), step)

    keys = jax.random.split(key_of("sets"), (2, targets.size))
    rows, mask = _draw_both(data.contexts, targets, keys, config.set_size)
    emptied = jax.random.bernoulli(key_of("empty"), config.empty_side, (2, targets.size, 1))
    if data.counts is None:
        return Draw(rows, mask & ~emptied, None)
    part_key, kept_key = jax.random.split(key_of("counts"))
    part = jax.random.uniform(part_key, (targets.size, 2, 1))
    every = data.counts[targets].astype(jnp.float32)
    kept = jax.random.binomial(kept_key, every, part)
    kept = jnp.where(jnp.swapaxes(emptied, 0, 1), 0, kept)
    return Draw(rows, mask & ~emptied, bias_features(kept, data.shares))


def draw_evaluation(
    config: TrainConfig, data: Data, targets: Int32[Array, "b"], number: Int32[Array, ""]
) -> Draw:
    """Both sides' sets, which depend only on the seed, the review and the number of the draw."""
    key = sampling.stream(config.seed, "eval")

    def keys_of(target):
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, target), number))

    keys = jnp.swapaxes(jax.vmap(keys_of)(targets), 0, 1)
    rows, mask = _draw_both(data.contexts, targets, keys, config.eval_set_size or config.set_size)
    if data.counts is None:
        return Draw(rows, mask, None)
    return Draw(rows, mask, bias_features(data.counts[targets], data.shares))


def _draw_both(
    contexts: Contexts, targets: Int32[Array, "b"], keys: Key[Array, "2 b"], size: int
) -> tuple[Int32[Array, "2 b s"], Bool[Array, "2 b s"]]:
    draw = jax.vmap(sampling.sample_set, in_axes=(0, None, 0, None))
    sides = [
        draw(side_keys, context, targets, size)
        for context, side_keys in zip(contexts, keys, strict=True)
    ]
    (user_rows, user_mask), (business_rows, business_mask) = sides
    return jnp.stack([user_rows, business_rows]), jnp.stack([user_mask, business_mask])


def gather(
    mesh: Mesh,
    placing: str,
    tables: tuple[Any, ...],
    rows: Int32[Array, "2 b s"],
) -> tuple[Float[Array, "2 b s _"], ...]:
    """Reads reviews from tables on the devices."""
    if placing == "device":
        return tuple(table[rows] for table in tables)
    return tuple(_gather_split(mesh, table, rows) for table in tables)


def _gather_split(
    mesh: Mesh, table: Float[Array, "reviews e"], rows: Int32[Array, "2 b s"]
) -> Float[Array, "2 b s e"]:
    """Each device reads its rows of the whole batch and zeros elsewhere; the sum is scattered.

    At most one summand of each value is nonzero, so the sum is exact in the table's own type.
    """

    def read(part, rows):
        local = rows - jax.lax.axis_index(devices.AXIS) * part.shape[0]
        here = (local >= 0) & (local < part.shape[0])
        values = part.at[local].get(mode="clip")
        values = jnp.where(here[..., None], values, 0)
        return jax.lax.psum_scatter(values, devices.AXIS, scatter_dimension=1, tiled=True)

    split_batch = PartitionSpec(None, devices.AXIS)
    specs = (devices.BY_ROWS, devices.EVERYWHERE)
    return jax.shard_map(read, mesh=mesh, in_specs=specs, out_specs=split_batch)(table, rows)


def sides_of(
    data: Data, draw: Draw, values: tuple[Float[Array, "2 b s _"], ...]
) -> tuple[ReviewSet, ReviewSet]:
    """The two sets of every target: embeddings as stored, standardized, side by side."""
    standardized = [
        transform.standardize(value.astype(jnp.float32), scaling)
        for value, scaling in zip(values, data.scalings, strict=True)
    ]
    embeddings = jnp.concatenate(standardized, axis=-1)
    stars = data.stars[draw.rows]
    user, business = (ReviewSet(embeddings[i], stars[i], draw.mask[i]) for i in range(2))
    return user, business
