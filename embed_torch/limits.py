"""Bounds the time and memory that the files of a model can take before its weights are read.

A chat template is a program, and a tokenizer's patterns are nearly one: either could run forever,
or grow a text endlessly.
"""

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import TypeVar

from embed_torch.cli import UserError

_SECONDS = 60.0
_BYTES = 2 << 30  # of growth; a single allocation may be twice as large
_POLL_SECONDS = 0.05
_MAPPED, _HELD = 0, 1  # fields of /proc/self/statm, in pages

T = TypeVar("T")


def within_limits(what: str, work: Callable[[], T]) -> T:
    """Does some work, or abandons it in a thread that ends with the process.

    Raises:
      UserError: the work, named by `what`, takes too long or too much memory.
    """
    result: futures.Future[T] = futures.Future()

    def do() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    deadline, most = time.monotonic() + _SECONDS, _bytes(_HELD) + _BYTES
    with _limited_address_space():
        threading.Thread(target=do, daemon=True).start()
        while not futures.wait([result], _POLL_SECONDS).done:
            if time.monotonic() > deadline:
                raise UserError(f"{what} takes over {_SECONDS:.0f} s: take another --model")
            if _bytes(_HELD) > most:
                raise UserError(f"{what} takes over {_BYTES >> 30} GiB: take another --model")
    try:
        return result.result()
    except MemoryError:
        raise UserError(f"{what} takes over {_BYTES >> 30} GiB: take another --model") from None


@contextlib.contextmanager
def _limited_address_space() -> Iterator[None]:
    """Makes one huge allocation fail, where otherwise the system might kill the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = _bytes(_MAPPED)
    if soft != resource.RLIM_INFINITY or not mapped:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * _BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _bytes(field: int) -> int:
    """Bytes that the process has mapped, or holds in memory; 0 on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
    except OSError:
        return 0
