"""Scalars for TensorBoard, in its own format.

tensorboardX would take fewer lines, but imports torch wherever it is installed, which `sasnet_jax`
must not; TensorBoard's own writer writes in a thread whose errors are lost.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from sasnet_jax import files


class Scalars:
    """The event file of one process of a run."""

    def __init__(self, folder: Path, first: int):
        """Starts a file whose steps, from `first`, replace what earlier processes wrote."""
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._add(file_version="brain.Event:2")
        self._add(step=first, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Adds one point to each named curve."""
        known = {tag: value for tag, value in values.items() if value is not None}
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in known.items()])
        self._add(step=step, summary=summary)

    def _add(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content).SerializeToString()
        with files.naming(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event)
