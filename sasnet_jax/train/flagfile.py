"""A flagfile of `train` that another command trains with, on data of its own (`--base`)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sasnet_jax import cli
from sasnet_jax.cli import UserError
from sasnet_jax.model.config import RESUMABLE, TrainConfig

# What decides neither the losses of a run nor how they may be compared.
INCIDENTAL = {*RESUMABLE} - {"epochs", "patience"}


def arguments(base: str, corpus: str, store: Sequence[str], output: str) -> list[str]:
    """The command line of a training with the settings of flagfile `base`."""
    stores = [f"--store={name}" for name in store]
    return ["train", f"--corpus={corpus}", *stores, f"--output={output}", f"--flagfile={base}"]


def read(base: str, corpus: str, store: tuple[str, ...], output: str) -> TrainConfig:
    """The settings of flagfile `base`, with this data.

    Raises:
      UserError: a setting is invalid, or the flagfile names data or processes of its own.
    """
    try:
        config: TrainConfig = cli.parse(TrainConfig, arguments(base, corpus, store, output), "")
    except UserError as error:
        raise UserError(f"--base={base}: {error}") from None
    for name, given in (("corpus", corpus), ("store", store), ("output", output)):
        if getattr(config, name) != given:
            raise UserError(f"--base={base} names its own --{name}: take it out")
    if config.processes > 1:
        raise UserError(f"--base={base}: trainings here have one process: take --processes out")
    return config


def decisive(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what is learned."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in INCIDENTAL}
