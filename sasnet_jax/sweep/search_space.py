"""What a sweep searches: `--vary` declarations in, Optuna distributions out.

    learning_rate=1e-4..3e-3:log   a range, here a logarithmic one
    width=64|128|256               one of these values

The field of `TrainConfig` gives the type, and its checks hold for every value declared.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeAlias

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sasnet_jax import cli
from sasnet_jax.cli import UserError
from sasnet_jax.model.config import RESUMABLE, TrainConfig

Distribution: TypeAlias = CategoricalDistribution | FloatDistribution | IntDistribution

# What decides neither the losses of a run nor how they may be compared.
INCIDENTAL = {*RESUMABLE} - {"epochs", "patience"}
_NOT_COMPARABLE = ("target_review", "classes")


def read(declarations: Sequence[str], arguments: Sequence[str]) -> dict[str, Distribution]:
    """The distribution of each declared setting, in the order of TrainConfig.

    Args:
      declarations: NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A|B|C.
      arguments: a command line of train, in which the values are tried.

    Raises:
      UserError: an unknown setting, an invalid value, or a malformed declaration.
    """
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    space: dict[str, Distribution] = {}
    for declaration in declarations:
        name, _, values = declaration.partition("=")
        try:
            if name not in fields:
                raise UserError(f"train has no setting {name!r}")
            if name in space:
                raise UserError("it is declared twice: declare it once")
            if name in INCIDENTAL:
                raise UserError("it does not affect what is learned: take it out")
            if name in _NOT_COMPARABLE:
                raise UserError("losses under different values cannot be compared")
            space[name] = _distribution(name, values, arguments)
        except UserError as error:
            raise UserError(f"--vary={declaration}: {error}") from None
    return {name: space[name] for name in fields if name in space}


def largest(space: dict[str, Distribution], name: str) -> int:
    """The largest value of a whole-numbered setting; 0 if it is not searched."""
    values = space.get(name)
    if isinstance(values, CategoricalDistribution):
        return max(int(choice or 0) for choice in values.choices)
    return int(values.high) if values else 0


def contains(distribution: Distribution, value: Any) -> bool:
    """Whether a trial may have this value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution.low <= value <= distribution.high


def _distribution(name: str, values: str, arguments: Sequence[str]) -> Distribution:
    def parse(text: str) -> Any:
        return getattr(cli.parse(TrainConfig, [*arguments, f"--{name}={text}"], ""), name)

    kind = typing.get_type_hints(TrainConfig)[name]
    if ".." in values and kind in (int, float):
        ends, _, scale = values.partition(":")
        low, high = (parse(text) for text in ends.split("..", 1))
        if scale not in ("", "log"):
            raise UserError(f"a range may end in :log, not in :{scale}")
        if not low < high:
            raise UserError(f"{low} is not below {high}")
        if scale and low <= 0:
            raise UserError("a logarithmic range must begin above 0")
        if kind is int:
            return IntDistribution(low, high, log=bool(scale))
        return FloatDistribution(low, high, log=bool(scale))
    choices = [parse(text) for text in values.split("|")]
    if len(set(choices)) < max(2, len(choices)):
        raise UserError(
            "give different values, as in A|B|C, or a range, LOW..HIGH or LOW..HIGH:log"
        )
    return CategoricalDistribution(choices)
