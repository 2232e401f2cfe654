"""The compiled functions of a run: start, a chunk of training steps, prediction (docs/design.md 4).

The data are arguments, never closures, so that no table becomes a compiled constant. Where the
table lies changes how a batch gets its embeddings (`draws.gather`, or a thread of the host), and
nothing else. Letters: b batch, s set, e embedding width, c classes.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from sasnet_jax.cli import ProgressBar
from sasnet_jax.corpus.contexts import HostOrDevice
from sasnet_jax.model import devices, draws, network, sampling
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.draws import Data, Draw, Epoch
from sasnet_jax.model.sasnet import SASNet

PREDICT_BATCH = 512
_BATCHES_AHEAD = 2  # gathered on the host while the devices work
Made = TypeVar("Made")
Values = tuple[Float[Array, "2 b s _"], ...]  # one per store, each of its own width


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: Int32[HostOrDevice, ""]
    params: Any
    opt_state: Any
    average: Any  # of the parameters, for evaluation; None without --average_decay
    epoch_loss: Float[HostOrDevice, ""]  # summed over the targets of the epoch so far

    @property
    def evaluated(self) -> Any:
        """The parameters that predict."""
        return self.params if self.average is None else self.average


class Functions(NamedTuple):
    """The compiled side of a run; see `build`."""

    init: Callable[[], TrainState]
    train_chunk: Callable[..., tuple[TrainState, Int32[Array, ""]]]
    predict: Callable[..., Float[Array, "b c"]]


def build(config: TrainConfig, mesh: Mesh, embedding_dim: int, total_steps: int) -> Functions:
    """Makes the functions of one network and one set of settings.

    `init()` -> state.
    `train_chunk(state, data, epoch, first, last)` runs the batches [first, last) of the epoch and
    returns the state and the first step whose loss was not finite, or -1. Its trip count is traced,
    so chunks of every length share one compilation and compute the same bits (a `lax.scan` is
    compiled for one length, and a short one computes other bits).
    `predict(params, data, targets)` -> probabilities, averaged over `eval_sets` draws that depend
    only on the seed, the review and the draw.

    Args:
      config: the settings.
      mesh: of all devices.
      embedding_dim: of all stores together.
      total_steps: steps of the whole run, for a learning rate that falls.
    """
    steps = _Steps(config, mesh, embedding_dim, total_steps)
    if config.table == "host":
        return _with_table_on_host(config, mesh, steps)
    return _with_table_on_devices(config, mesh, steps)


class _Steps:
    """The mathematics of one step, whatever holds the table; everything here is traced."""

    def __init__(self, config: TrainConfig, mesh: Mesh, embedding_dim: int, total_steps: int):
        self.config, self.mesh, self.embedding_dim = config, mesh, embedding_dim
        self.graphdef, _ = network.definition(config, embedding_dim)
        self.optimizer = _optimizer(config, total_steps)

    def init(self) -> TrainState:
        """The state before the first step."""
        params = nnx.state(network.build(self.config, self.embedding_dim), nnx.Param)
        average = params if self.config.average_decay else None
        opt_state = self.optimizer.init(params)
        return TrainState(jnp.int32(0), params, opt_state, average, jnp.float32(0))

    def update(
        self, state: TrainState, data: Data, draw: Draw, values: Values, epoch: Epoch, index: Any
    ) -> tuple[TrainState, Bool[Array, ""]]:
        """One step of the optimizer; and whether its loss was finite."""
        targets, real = epoch.targets[index], epoch.real[index]
        sides = draws.sides_of(data, draw, values)
        key = jax.random.fold_in(sampling.stream(self.config.seed, "dropout"), state.step)

        def loss_of(params):
            merged = nnx.merge(self.graphdef, params)
            logits = merged(*sides, draw.bias, key)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, data.label[targets].astype(jnp.int32)
            )
            total = (losses * real).sum()
            loss = total / real.sum()
            if self.config.review_loss:
                read = self._review_loss(merged, sides, data, draw, real)
                loss += self.config.review_loss * read
            return loss, total

        (loss, total), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            # A low decay at first, so that the average forgets where it began.
            decay = jnp.minimum(self.config.average_decay, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(params, average, 1 - decay)
        epoch_loss = jnp.where(index == 0, 0.0, state.epoch_loss) + total
        after = TrainState(state.step + 1, params, opt_state, average, epoch_loss)
        return after, jnp.isfinite(loss)

    def _review_loss(
        self, merged: SASNet, sides: Any, data: Data, draw: Draw, real: Array
    ) -> Array:
        """Cross-entropy of each sampled review's own rating, read from its embedding."""
        logits = jnp.stack([merged.ratings(side) for side in sides])
        label = data.label[draw.rows].astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        counted = draw.mask & real[None, :, None]
        return (losses * counted).sum() / jnp.maximum(counted.sum(), 1)

    def probability(self, params: Any, data: Data, draw: Draw, values: Values) -> Array:
        """The network's probabilities for one draw: [b, c]."""
        sides = draws.sides_of(data, draw, values)
        return jax.nn.softmax(nnx.merge(self.graphdef, params)(*sides, draw.bias))


def _optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    warmup = max(config.warmup_steps, 1)
    rate = optax.linear_schedule(0.0, config.learning_rate, warmup)
    if config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, warmup, max(total_steps, warmup + 1)
        )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        # The count starts at 0, where a warm-up from zero would waste the first step.
        optax.adamw(lambda count: rate(count + 1), weight_decay=config.weight_decay),
    )


def _with_table_on_devices(config: TrainConfig, mesh: Mesh, steps: _Steps) -> Functions:
    def read(data: Data, draw: Draw) -> Values:
        return draws.gather(mesh, config.table, data.tables, draw.rows)

    @jax.jit(donate_argnums=0)
    def train_chunk(state, data, epoch, first, last):
        def body(index, carry):
            state, bad_step = carry
            targets = devices.constrain(mesh, epoch.targets[index], devices.BY_ROWS)
            draw = draws.draw_training(config, data, targets, state.step)
            after, finite = steps.update(state, data, draw, read(data, draw), epoch, index)
            return after, _first_bad(bad_step, finite, state.step)

        return jax.lax.fori_loop(first, last, body, (state, jnp.int32(-1)))

    @jax.jit
    def predict(params, data, targets):
        def one_draw(number):
            draw = draws.draw_evaluation(
                config, data, devices.constrain(mesh, targets, devices.BY_ROWS), number
            )
            return steps.probability(params, data, draw, read(data, draw))

        every = jax.lax.map(one_draw, jnp.arange(config.eval_sets))
        return devices.constrain(mesh, every.mean(axis=0), devices.EVERYWHERE)

    return Functions(_init(mesh, steps), train_chunk, predict)


def _with_table_on_host(config: TrainConfig, mesh: Mesh, steps: _Steps) -> Functions:
    """Draws the same sets ahead of time, and gathers them from the memory map in a thread.

    Each device draws the whole batch: draws split over devices would have to be exchanged, and a
    thread that communicates during training does so in no fixed order.
    """

    @jax.jit
    def draw_training(data, epoch, index, step):
        return draws.draw_training(config, data, epoch.targets[index], step)

    @jax.jit
    def draw_evaluation(data, targets, number):
        return draws.draw_evaluation(config, data, targets, number)

    @jax.jit(donate_argnums=0)
    def update(carry, data, draw, values, epoch, index):
        state, bad_step = carry
        after, finite = steps.update(state, data, draw, values, epoch, index)
        return after, _first_bad(bad_step, finite, state.step)

    @jax.jit
    def probability(params, data, draw, values):
        drawn = steps.probability(params, data, draw, values)
        return devices.constrain(mesh, drawn, devices.EVERYWHERE)

    def read(tables: tuple[np.ndarray, ...], draw: Draw) -> Values:
        rows = jax.device_get(draw.rows)
        return tuple(devices.place_gathered(mesh, table, rows) for table in tables)

    def train_chunk(state, data, epoch, first, last):
        on_device = data._replace(tables=())
        first, last, step_of_first = jax.device_get((first, last, state.step))

        def prepare(index: int) -> tuple[Any, Draw, Values]:
            step = np.int32(step_of_first + index - first)
            placed, step = devices.place(mesh, (np.int32(index), step))
            draw = draw_training(on_device, epoch, placed, step)
            return placed, draw, read(data.tables, draw)

        carry = state, devices.place(mesh, np.int32(-1))
        for placed, draw, values in _ahead(prepare, range(first, last)):
            carry = update(carry, on_device, draw, values, epoch, placed)
        return carry

    def predict(params, data, targets):
        on_device = data._replace(tables=())

        def prepare(number: int) -> tuple[Draw, Values]:
            draw = draw_evaluation(on_device, targets, devices.place(mesh, np.int32(number)))
            return draw, read(data.tables, draw)

        by_draw = [
            jax.device_get(probability(params, on_device, draw, values))
            for draw, values in _ahead(prepare, range(config.eval_sets))
        ]
        return np.mean(by_draw, axis=0)

    return Functions(_init(mesh, steps), train_chunk, predict)


def _init(mesh: Mesh, steps: _Steps) -> Callable[[], TrainState]:
    return jax.jit(lambda: devices.constrain(mesh, steps.init(), devices.EVERYWHERE))


def _first_bad(bad_step: Any, finite: Any, step: Any) -> Array:
    return jnp.where(finite | (bad_step >= 0), bad_step, step)


def _ahead(make: Callable[[int], Made], numbers: Iterable[int]) -> Iterator[Made]:
    """Yields `make(number)` in order, computed by a thread that stays two ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending: collections.deque = collections.deque()
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > _BATCHES_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def predict(
    functions: Functions,
    mesh: Mesh,
    params: Any,
    data: Data,
    rows: Int32[np.ndarray, "n"],
    between_batches: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "n c"]:
    """Predicts `rows` a batch at a time, with a progress bar if it takes long."""
    probabilities = []
    size = -(-PREDICT_BATCH // mesh.size) * mesh.size
    with ProgressBar(
        total=rows.size, desc="predicting", unit="review", delay=5, leave=False
    ) as bar:
        for first in range(0, rows.size, size):
            batch = rows[first : first + size]
            padded = np.pad(batch, (0, size - batch.size), mode="edge")
            found = functions.predict(params, data, devices.place(mesh, padded))
            probabilities.append(jax.device_get(found)[: batch.size])
            bar.update(batch.size)
            between_batches()
    return np.concatenate(probabilities)
