"""Turns a frozen dataclass into a command: absl flags in, one clear line out for a mistake.

A command declares its settings once, as a dataclass whose fields are made by `setting`; `main`
parses the command line (and any --flagfile) into it and calls `run(config)`.

This file and `files.py` stand, byte for byte, in both packages, because `embed_torch` and
`sasnet_jax` must never import each other; `tests/test_packages.py` keeps the copies equal.
"""

import dataclasses
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

EXIT_MISTAKE = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again.


class UserError(Exception):
    """A mistake that the user can mend: printed as one line, exit status 2."""


class Preempted(BaseException):
    """SIGTERM arrived and everything is saved: exit status 75.

    No `except Exception` may take it for a failure.
    """


def setting(
    default: Any = None, *, help: str, topic: str, required: bool = False, extra: bool = False
):
    """A dataclass field that is also a flag.

    Args:
      default: the flag's default.
      help: what it sets, with its unit, in half a line.
      topic: the heading under which --help lists it.
      required: refuse to start without it.
      extra: listed by --helpfull only.
    """
    metadata = {"help": help, "topic": topic, "required": required, "extra": extra}
    return dataclasses.field(default=default, metadata=metadata)


def main(config_class: type, run: Callable[[Any], None], description: str | None) -> None:
    """Runs one command: sys.argv -> config_class -> run(config) -> exit status."""
    # Unwind, so that nothing half written is left; commands that can save do so themselves.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run(parse(config_class, sys.argv, description))
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        # A missing, unreadable or full place is the user's to mend; the message names it.
        _stop(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Preempted as saved:
        print(f"stopped by SIGTERM: {saved}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse(config_class: type, argv: Sequence[str], description: str | None) -> Any:
    """Parses `argv` (program name first) into a `config_class`.

    Raises:
      UserError: an unknown flag, a bad value, or a required flag left out.
    """
    if any(argument.lstrip("-") in ("help", "helpfull", "h") for argument in argv[1:]):
        print(_help(config_class, description, full="--helpfull" in argv))
        sys.exit(0)
    values = flags.FlagValues()
    fields = dataclasses.fields(config_class)
    kinds = typing.get_type_hints(config_class)
    for field in fields:
        _define(values, field, kinds[field.name])
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: every setting is a --flag (see --help)")
    settings = {field.name: values[field.name].value for field in fields}
    for field in fields:
        value = settings[field.name]
        if field.metadata["required"] and not value:
            raise UserError(f"--{field.name} is required: {field.metadata['help']}")
        if isinstance(value, list):
            settings[field.name] = tuple(value)
    return config_class(**settings)


def _define(values: flags.FlagValues, field: dataclasses.Field, kind: Any) -> None:
    common = {"name": field.name, "default": field.default, "help": field.metadata["help"]}
    common["flag_values"] = values
    if isinstance(kind, types.UnionType):  # a setting that may be left out: None, or of this type
        (kind,) = set(typing.get_args(kind)) - {types.NoneType}
    if typing.get_origin(kind) is typing.Literal:
        flags.DEFINE_enum(enum_values=list(typing.get_args(kind)), **common)
    elif typing.get_origin(kind) is tuple:
        flags.DEFINE_multi_string(**common)
    else:
        define: Any = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }[kind]
        define(**common)


def _help(config_class: type, description: str | None, full: bool) -> str:
    kinds = typing.get_type_hints(config_class)
    topics: dict[str, list[str]] = {}
    for field in dataclasses.fields(config_class):
        if field.metadata["extra"] and not full:
            continue
        text = field.metadata["help"]
        if typing.get_origin(kinds[field.name]) is typing.Literal:
            text = f"{' | '.join(typing.get_args(kinds[field.name]))}: {text}"
        if field.metadata["required"]:
            text += " (required)"
        elif field.default not in (None, "", ()):
            text += f" [{field.default}]"
        line = f"  --{field.name:<20} {text}"
        topics.setdefault(field.metadata["topic"], []).append(line)
    lines = [description or ""]
    for topic, rows in topics.items():
        lines += [f"{topic}:", *rows]
    lines.append(
        "Any of these may stand in a file: --flagfile=FILE."
        + ("" if full else " More: --helpfull.")
    )
    return "\n".join(lines)


def _stop(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)
