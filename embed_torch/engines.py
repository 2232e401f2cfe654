"""Where batches are embedded: in this process, in one process a GPU, or by Ray Data.

In: tasks, submitted as long as `capacity` allows. Out: their results in any order, None where the
memory did not hold a batch. One process alone, the caller's, writes the store.
"""

import abc
import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from embed_torch.backbone import Backbone, Batch, Loading
from embed_torch.cli import UserError

Result = dict[str, np.ndarray] | None
_STOP_SECONDS = 5.0
_RAY_STOP_SECONDS = 60.0  # Ray ends late while its actors start
_MOST_DEATHS = 2  # of workers over one task, before the task is to blame


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A batch, its name in its window, and where its embeddings belong."""

    window: int
    name: str
    arrays: tuple[str, ...]  # of the store, one a pooling of the batch
    rows: list[int]
    batch: Batch

    def part(self, name: str, members: list[int]) -> "Task":
        """Some of its texts as a task."""
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
        """Waits for some task that was submitted."""


@contextlib.contextmanager
def open_engine(kind: str, loading: Loading, workers: int) -> Iterator[Engine]:
    """Yields the engine named by --engine; its processes end with the context."""
    if kind == "inline":
        yield Inline(Backbone(loading))
        return
    workers = workers or torch.cuda.device_count() or 1
    engine = RayData(loading, workers) if kind == "ray" else Local(loading, workers)
    try:
        yield engine
    finally:
        engine.stop()


class Inline(Engine):
    """This process. On a GPU the next batch is begun before the last one's result is fetched."""

    def __init__(self, encoder: Backbone):
        self.capacity = 2 if encoder.device.type == "cuda" else 1
        self._encoder = encoder
        self._begun: deque[tuple[Task, Callable[[], Result] | None]] = deque()

    def submit(self, task: Task) -> None:
        """Begins a task."""
        self._begun.append((task, _or_none(lambda: self._encoder.start(task.batch))))

    def next_finished(self) -> tuple[Task, Result]:
        """The task that was begun first."""
        task, finish = self._begun.popleft()
        return task, finish and _or_none(finish)


class Local(Engine):
    """Processes of this machine, worker i on GPU i; what one was at when it died is redone."""

    def __init__(self, loading: Loading, workers: int):
        self.capacity = 2 * workers  # one at work, one waiting, each
        self._context = multiprocessing.get_context("spawn")
        self._loading = loading
        self._threads = max(1, len(os.sched_getaffinity(0)) // workers)
        self._workers = [self._start(index) for index in range(workers)]
        self._deaths: dict[tuple[int, str], int] = {}

    def submit(self, task: Task) -> None:
        """Gives a task to the worker that has the fewest."""
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        worker.tasks.append(task)
        _send(worker, task)

    def next_finished(self) -> tuple[Task, Result]:
        """The next result of any worker.

        Raises:
          UserError: a worker could not load the model, or one task kills every worker.
        """
        while True:
            pipes = {worker.pipe: worker for worker in self._workers if worker.tasks}
            for pipe in multiprocessing.connection.wait(list(pipes)):
                worker = pipes[pipe]  # type: ignore[index]
                try:
                    found = worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace(worker)
                    break
                if isinstance(found, UserError):
                    raise found
                return worker.tasks.popleft(), found

    def stop(self) -> None:
        """Ends the workers, those still at work by force."""
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            worker.process.join(0 if worker.tasks else max(0, deadline - time.monotonic()))
            worker.process.terminate()
            worker.process.join()

    def _start(self, index: int) -> "_Worker":
        device = f"cuda:{index}" if _on_every_gpu(self._loading) else self._loading.device
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, dataclasses.replace(self._loading, device=device), self._threads),
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Worker(index, process, ours, deque())

    def _replace(self, dead: "_Worker") -> None:
        dead.process.join()
        dead.pipe.close()
        first = dead.tasks[0]
        key = (first.window, first.name)
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if self._deaths[key] > _MOST_DEATHS:
            raise UserError(
                f"{self._deaths[key]} workers died over the batch of review {first.rows[0]} "
                f"(exit status {dead.process.exitcode}): out of memory? --batch_tokens, --workers"
            )
        print(
            f"worker {dead.index} died (exit status {dead.process.exitcode}); "
            f"its {len(dead.tasks)} batches are done again",
            file=sys.stderr,
        )
        fresh = self._start(dead.index)
        self._workers[dead.index] = fresh
        for task in dead.tasks:
            fresh.tasks.append(task)
            _send(fresh, task)


class RayData(Engine):
    """Ray Data actors, one a GPU, on this machine or a cluster; Ray starts dead ones again.

    All tasks are taken before the first is begun, and are one dataset.
    """

    def __init__(self, loading: Loading, workers: int):
        try:
            import ray.data
        except ImportError:
            raise UserError("--engine=ray needs: pip install 'ray[data]'") from None
        self.capacity = sys.maxsize
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(ignore_reinit_error=True)
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process
        self._ray = ray
        self._loading = loading
        self._workers = workers
        self._tasks: dict[tuple[int, str], Task] = {}
        self._results: Iterator[tuple[Task, Result]] = iter(())

    def submit(self, task: Task) -> None:
        """Takes a task for the next dataset."""
        self._tasks[task.window, task.name] = task

    def next_finished(self) -> tuple[Task, Result]:
        """The next result of the dataset; begins one where there is none."""
        for found in self._results:
            return found
        self._results = self._run(self._tasks)
        self._tasks = {}
        return next(self._results)

    def _run(self, tasks: dict[tuple[int, str], Task]) -> Iterator[tuple[Task, Result]]:
        data = self._ray.data
        data.DataContext.get_current().enable_progress_bars = False
        gpus = 1 if _on_every_gpu(self._loading) else 0
        results = data.from_items([{"task": task} for task in tasks.values()]).map(
            _RayWorker,
            fn_constructor_args=(self._loading,),
            compute=data.ActorPoolStrategy(size=self._workers),
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=-1,
        )
        for row in results.iter_rows():
            if isinstance(row["result"], UserError):
                raise row["result"]
            yield tasks[row["window"], row["name"]], row["result"]

    def stop(self) -> None:
        """Ends the actors and Ray."""
        self._results = iter(())
        for thread in threading.enumerate():
            if thread.name.startswith("StreamingExecutor"):
                # Of an unfinished dataset. Were Ray gone before it, it would end this process.
                thread.join(_RAY_STOP_SECONDS)
        self._ray.shutdown()


class _RayWorker:
    """An encoder in an actor."""

    def __init__(self, loading: Loading):
        self._loading = loading

    @functools.cached_property
    def _encoder(self) -> Backbone:
        return Backbone(self._loading)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        task = row["task"]
        try:
            result = _or_none(lambda: self._encoder.embed(task.batch))
        except UserError as error:
            result = error
        return {"window": task.window, "name": task.name, "result": result}


@dataclasses.dataclass(frozen=True, slots=True)
class _Worker:
    index: int
    process: Any
    pipe: multiprocessing.connection.Connection
    tasks: deque[Task]  # sent and not yet answered, oldest first


def _send(worker: _Worker, task: Task) -> None:
    with contextlib.suppress(OSError):  # it has died: found out when its result is awaited
        worker.pipe.send(task)


def _work(pipe: multiprocessing.connection.Connection, loading: Loading, threads: int) -> None:
    """A worker's life: ends when its parent does."""
    torch.set_num_threads(threads)
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()

    def receive() -> None:
        """Always reads, so that the parent never waits to send while this side waits to answer."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                tasks.put(pipe.recv())
        tasks.put(None)

    threading.Thread(target=receive, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        try:
            encoder = Backbone(loading)
            while task := tasks.get():
                pipe.send(_or_none(functools.partial(encoder.embed, task.batch)))
        except UserError as error:
            pipe.send(error)


def _on_every_gpu(loading: Loading) -> bool:
    """Whether each worker has a GPU of its own: there are some, and --device names no other."""
    return torch.cuda.is_available() and loading.device in ("", "cuda")


def _or_none(function: Callable[[], Any]) -> Any:
    """What a function returns, or None where the memory did not suffice."""
    try:
        return function()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:  # so torch says it of the CPU
        if "can't allocate memory" not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
