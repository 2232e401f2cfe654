"""Turns a frozen dataclass into a command: absl flags in, one clear line out for a mistake.

A command declares its settings once, as a dataclass whose fields are made by `setting` and whose
`__post_init__` calls `check`; `main` parses the command line (and any --flagfile) into it and calls
`run(config)`.

This file and `files.py` are byte for byte the same in both packages, because `embed_torch` and
`sasnet_jax` must never import each other; `tests/test_packages.py` keeps the copies equal.
"""

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

EXIT_MISTAKE = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: saved, run the same command again.
_FLAGFILE_BYTES = 1 << 20  # no flagfile that a person wrote is longer
_SECONDS_PER_LINE = 10.0  # between lines of progress, where no terminal shows a bar


class UserError(Exception):
    """A mistake that the user can correct: printed as one line, exit status 2."""


class Preempted(BaseException):
    """SIGTERM arrived and everything is saved: exit status 75.

    No `except Exception` may take it for a failure.
    """


class ProgressBar(tqdm):
    """A progress bar; in a file or a pipe, a plain line every ten seconds."""

    leave: bool

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes what tqdm takes."""
        self._next_line = time.monotonic() + _SECONDS_PER_LINE
        self._terminal = sys.stderr.isatty()
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draws the bar, or writes a line when one is due."""
        if self._terminal:
            super().display(msg, pos)
        elif msg is None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_PER_LINE
            self.fp.write(tqdm.format_meter(**self.format_dict | {"ncols": 0}).strip() + "\n")
            self.fp.flush()

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Makes room for other output, where a bar is in its way."""
        if self._terminal:
            super().clear(*args, **kwargs)

    def close(self) -> None:
        """Leaves the bar, or removes it (`leave=False`); lines stay."""
        self.leave = self.leave and self._terminal
        super().close()


def setting(
    default: Any = None,
    *,
    help: str,
    topic: str,
    required: bool = False,
    extra: bool = False,
    minimum: int | float | None = None,
    maximum: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
):
    """A dataclass field that is also a flag.

    Args:
      default: the flag's default.
      help: what the flag sets, with its unit, in half a line.
      topic: the heading under which --help lists it.
      required: whether the command refuses to start without it.
      extra: whether only --helpfull lists it.
      minimum: the smallest value allowed.
      maximum: the largest value allowed.
      above: a value that it must exceed.
      below: a value that it must stay under.
    """
    bounds = {"at least": minimum, "above": above, "at most": maximum, "below": below}
    metadata = {"help": help, "topic": topic, "required": required, "extra": extra}
    metadata["bounds"] = {words: bound for words, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Refuses a setting that is not of its field's type, or is outside its bounds.

    Flags are parsed to their types, but a program or a file may give a value of any type. None
    passes where the field may be None, and an integer where the field is a float.

    Raises:
      UserError: a value is not allowed; the message names the flag, the value and what is.
    """
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if problem := _type_problem(value, kind) or _bound_problem(value, field.metadata["bounds"]):
            raise UserError(f"--{field.name}={value!r} must be {problem}")


def _type_problem(value: Any, kind: Any) -> str:
    """What `value` must be, in words, if it is not of type `kind`; else an empty string."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        known = isinstance(value, str) and value in options
        return "" if known else f"one of {', '.join(options)}"
    if typing.get_origin(kind) is tuple:
        texts = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
        return "" if texts else "a tuple of texts"
    allowed = options if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in allowed or (float in allowed and type(value) is int):
        return ""
    return " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in allowed)


def _bound_problem(value: Any, bounds: dict[str, Any]) -> str:
    """All bounds, in words, if `value` is outside any of them; else an empty string."""
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    holds = {
        "at least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "at most": lambda bound: value <= bound,
        "below": lambda bound: value < bound,
    }
    if value is None or all(holds[words](bound) for words, bound in bounds.items()):
        return ""
    return " and ".join(f"{words} {bound:,}" for words, bound in bounds.items())


def main(config_class: type, run: Callable[[Any], None], description: str | None) -> None:
    """Runs one command: sys.argv -> config_class -> run(config) -> exit status."""
    # Unwind, so that nothing half-written is left behind; commands that can save do so themselves.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run(parse(config_class, sys.argv, description))
    except UserError as error:
        _stop(str(error))
    except OSError as error:
        # The user can correct a missing or unreadable file, or a full disk; the message names it.
        _stop(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Preempted as saved:
        print(f"stopped by SIGTERM: {saved}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """Calls `handler` when SIGTERM arrives in the block."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    _check_flagfiles(argv[1:])
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


def _check_flagfiles(arguments: Sequence[str], above: tuple[Path, ...] = ()) -> None:
    """Refuses flagfiles among `arguments`, or included by them, on which absl itself would fail.

    Raises:
      UserError: one is absent, not a regular file, too long or not UTF-8, or includes itself.
    """
    for argument, value in itertools.pairwise([*arguments, ""]):
        name, equals, given = argument.strip().lstrip("-").partition("=")
        if name != "flagfile" or not argument.strip().startswith("-"):
            continue
        path = Path(given if equals else value.strip()).expanduser()
        if not path.is_file():
            raise UserError(f"--flagfile={path} does not exist, or is not a file")
        if path.stat().st_size > _FLAGFILE_BYTES:
            raise UserError(f"--flagfile={path} is no flagfile: over {_FLAGFILE_BYTES:,} bytes")
        if path.resolve() in above:
            raise UserError(f"--flagfile={path} includes itself: remove its --flagfile line")
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"--flagfile={path} is not UTF-8: save it as UTF-8") from None
        _check_flagfiles(lines, (*above, path.resolve()))


def _define(values: flags.FlagValues, field: dataclasses.Field, kind: Any) -> None:
    common = {"name": field.name, "default": field.default, "help": field.metadata["help"]}
    common["flag_values"] = values
    if isinstance(kind, types.UnionType):  # None, where the setting is left out, or a value
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
        "Any of these flags can be put into a file: --flagfile=FILE."
        + ("" if full else " More: --helpfull.")
    )
    return "\n".join(lines)


def _stop(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)
