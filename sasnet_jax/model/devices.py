"""Where arrays live: one mesh over all devices of all processes (docs/design.md 4.5).

Batches are split over the mesh, everything else is on every device; a table may be split by rows.
One process drives its local devices; several join through `jax.distributed`, and process 0 writes
the run. A decision that depends on a clock or on a signal is shared with all processes first.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sasnet_jax.cli import UserError

AXIS = "data"
EVERYWHERE = PartitionSpec()
BY_ROWS = PartitionSpec(AXIS)
_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}  # as XLA counts bytes


class TooLittleMemory(UserError):
    """What was asked for does not fit the device."""


def join(coordinator: str, processes: int, process: int) -> None:
    """Joins the other processes of this run; a single process does nothing.

    Raises:
      UserError: they cannot be reached.
    """
    if processes == 1 or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--coordinator={coordinator} cannot be joined ({reason})") from None
    # On CPUs, no process may reach the first barrier half a minute after another.
    wait_for_all("joined")


def is_writer() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def mesh_of_all() -> Mesh:
    """All devices of all processes."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def mesh_for(batch_size: int) -> Mesh:
    """The mesh to train on: all devices of all processes.

    Raises:
      UserError: a batch cannot be split over them evenly.
    """
    mesh = mesh_of_all()
    if batch_size % mesh.size:
        raise UserError(f"--batch_size={batch_size} is not a multiple of the {mesh.size} devices")
    return mesh


def place(mesh: Mesh, tree: Any) -> Any:
    """Puts host arrays, the same in every process, onto every device of the mesh."""
    sharding = NamedSharding(mesh, EVERYWHERE)

    def place_one(array: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return _assemble(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(place_one, tree)


def place_table(mesh: Mesh, table: np.ndarray) -> jax.Array:
    """Splits a table by rows over the mesh, padded to a multiple; reads one device's at a time."""
    devices = mesh.size
    rows = -(-len(table) // devices) * devices
    shape = (rows, *table.shape[1:])

    def part(index: Any) -> np.ndarray:
        first, last = index[0].start or 0, index[0].stop or rows
        block = np.zeros((last - first, *shape[1:]), table.dtype)
        real = table[first:last]
        block[: len(real)] = real
        return block

    return _assemble(shape, NamedSharding(mesh, BY_ROWS), part)


def place_gathered(mesh: Mesh, table: np.ndarray, rows: np.ndarray) -> jax.Array:
    """Reads `table[rows]` [2, b, s, e] on the host, each device's part of the batch by itself."""
    shape = (*rows.shape, *table.shape[1:])
    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def part(index: Any) -> np.ndarray:
        return table[rows[index[:-1]]]

    return _assemble(shape, sharding, part)


def _assemble(shape: tuple[int, ...], sharding: NamedSharding, part: Callable) -> jax.Array:
    with jax.transfer_guard("allow"):  # an explicit transfer that JAX does not count as one
        return jax.make_array_from_callback(shape, sharding, part)


@contextlib.contextmanager
def enough_memory(tables: Sequence[Any], remedy: str) -> Iterator[None]:
    """Turns the device's "out of memory" into a line that ends with a remedy.

    Raises:
      TooLittleMemory: the device has too little for `tables` and the work on them.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = re.search(r"([\d.]+) ?([KMGT]?)(?:iB|B| ?bytes)", str(error))
        number = f"{float(asked[1]) * _BINARY[asked[2]] / 1e9:,.1f} GB " if asked else ""
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        has = f"it has {limit / 1e9:.1f} GB, " if limit else ""
        size = sum(table.nbytes for table in tables) / 1e9
        raise TooLittleMemory(
            f"the device has too little memory ({has}{number}more were "
            f"requested; the tables take {size:.1f} GB): {remedy}"
        ) from None


def constrain(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """Inside jit: lays arrays out over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def from_every_process(*mine: int) -> np.ndarray:
    """These numbers of every process, the writer's first: [processes, n]."""
    if jax.process_count() == 1:
        return np.array([mine])
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(np.array(mine))


def from_writer(tree: Any) -> Any:
    """The writer's host arrays, in every process."""
    if jax.process_count() == 1:
        return tree
    with jax.transfer_guard("allow"):
        return multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def stop_together() -> Iterator[None]:
    """Stops every process when one raises inside, instead of leaving the others waiting.

    The code inside must not itself wait for other processes.

    Raises:
      UserError: this process failed, or another one, whose output says why.
    """
    mistake: UserError | OSError | None = None
    try:
        yield
    except (UserError, OSError) as error:
        mistake = error
    stopped = from_every_process(mistake is not None)[:, 0]
    if mistake is not None:
        raise mistake
    if stopped.any():
        raise UserError(f"process {stopped.argmax()} of this run has stopped: its output says why")


def wait_for_all(name: str) -> None:
    """Returns once every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
