"""How much memory the settings need, and what to change when a machine has too little."""

import os

import jax

from sasnet_jax.model import devices, step
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.draws import Data


def with_less(config: TrainConfig, data: Data) -> str:
    """What to change, first for the larger of the tables and a batch's embeddings."""
    table = {"device": "--table=sharded or host", "sharded": "--table=host"}.get(config.table)
    size, sets = config.batch_size, config.set_size
    batch = f"a smaller --batch_size than {size} or --set_size than {sets}"
    batch_bytes = 2 * size * sets * data.embedding_dim * 4
    table_bytes = sum(table_of_store.nbytes for table_of_store in data.tables)
    helps = (batch, table) if batch_bytes > table_bytes else (table, batch)
    return f"use {', or '.join(filter(None, helps))}"


def refuse_too_large(config: TrainConfig, width: int) -> None:
    """Refuses settings that do not fit this machine's memory, before any is allocated.

    The count is a lower bound: inputs of one batch, parameters, predictions.

    Args:
      config: the settings.
      width: the width of what is read per review.

    Raises:
      TooLittleMemory: the settings do not fit; the message names them.
    """
    batch, targets = config.batch_size // config.processes, step.PREDICT_BATCH
    set_size = config.eval_set_size or config.set_size
    block = 4 * config.width + 2 * config.feed_forward
    needed = {
        "batch_size, set_size, width": 2 * batch * config.set_size * (width + config.width),
        "set_size, eval_set_size": 2 * targets * set_size * (width + config.width),
        "eval_sets": config.eval_sets * targets * config.classes,
        # Parameters, and the two moments of each.
        "width, depth, feed_forward": 3 * config.width * (width + config.depth * block),
    }
    names, numbers = max(needed.items(), key=lambda one: one[1])
    of_devices = sum(
        (device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()
    )
    memory = max(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), of_devices)
    if 4 * numbers > memory:
        flags = ", ".join(f"--{name}={getattr(config, name)}" for name in names.split(", "))
        raise devices.TooLittleMemory(
            f"{flags}: needs {4 * numbers / 1e9:,.0f} GB at least, but this machine has "
            f"{memory / 1e9:,.0f} GB: use smaller values"
        )
