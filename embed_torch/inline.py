"""Defines tasks, and the engine that embeds them in this process (each worker runs one too).

In: tasks. Out: their results; None if a batch did not fit into memory.
"""

import abc
import dataclasses
import queue
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from embed_torch.backbone import Backbone, Batch

Result = dict[str, np.ndarray] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A batch, its name in its window, and where its embeddings belong."""

    window: int
    name: str
    arrays: tuple[str, ...]  # of the store, one per pooling of the batch
    rows: list[int]
    batch: Batch

    def part(self, name: str, members: list[int]) -> "Task":
        """A task of some of its texts."""
        rows = [self.rows[member] for member in members]
        return dataclasses.replace(self, name=name, rows=rows, batch=self.batch.part(members))


class Engine(abc.ABC):
    """Embeds tasks."""

    capacity: int  # tasks to submit before asking for a result

    @abc.abstractmethod
    def submit(self, task: Task) -> None:
        """Takes a task."""

    @abc.abstractmethod
    def next_finished(self) -> tuple[Task, Result]:
        """Waits until one of the submitted tasks is finished."""


class Inline(Engine):
    """Embeds in this process; on a GPU, begins a batch before fetching the last one's result."""

    def __init__(self, backbone: Backbone, overlap: bool = True):
        self.capacity = 2 if overlap and backbone.device.type == "cuda" else 1
        self._backbone = backbone
        self._begun: deque[tuple[Task, Callable[[], Result] | None]] = deque()

    def submit(self, task: Task) -> None:
        """Begins a task."""
        self._begun.append((task, _or_none(lambda: self._backbone.start(task.batch))))

    def next_finished(self) -> tuple[Task, Result]:
        """Finishes the task that was begun first."""
        task, finish = self._begun.popleft()
        return task, finish and _or_none(finish)


def in_turn(engine: Engine, tasks: queue.SimpleQueue[Task | None]) -> Iterator[Result]:
    """Yields results of tasks in order, until None comes; begins tasks early if possible."""
    in_flight = 0
    while True:
        while in_flight < engine.capacity and not (in_flight and tasks.empty()):
            task = tasks.get()
            if task is None:
                return
            engine.submit(task)
            in_flight += 1
        yield engine.next_finished()[1]
        in_flight -= 1


def _or_none(function: Callable[[], Any]) -> Any:
    """Returns what a function returns, or None if memory ran out."""
    try:
        return function()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:  # torch's error for a CPU
        if "can't allocate memory" not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
