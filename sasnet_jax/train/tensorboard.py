"""Scalars for TensorBoard, by TensorBoard's own writer.

tensorboardX would do it in fewer lines, but imports torch wherever it finds it, and `sasnet_jax`
must not.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Scalars:
    """The event file of one process of a run."""

    def __init__(self, folder: Path, first: int):
        """Starts a file whose steps from `first` on replace what earlier processes wrote."""
        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each named curve."""
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Puts everything on disk."""
        self._writer.close()
