"""Embeds batches in this process, in one process per GPU, or in Ray actors.

In: tasks, submitted as long as `capacity` allows. Out: their results in any order; None if a batch
did not fit into memory. Only the caller's process writes the store.
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
from collections import Counter, deque
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Generic, TypeVar

import torch

from embed_torch.backbone import Backbone, Loading, device_named
from embed_torch.cli import UserError
from embed_torch.inline import Engine, Inline, Result, Task, in_turn

_STOP_SECONDS = 5.0
_IN_FLIGHT = 3  # tasks per worker: one being fetched, one being embedded, one waiting
_MOST_DEATHS = 2  # of workers over one task, before the task is blamed


@contextlib.contextmanager
def open_engine(kind: str, loading: Loading, workers: int) -> Iterator[Engine]:
    """Yields the engine named by --engine; its processes end with the context."""
    if kind == "inline":
        yield Inline(Backbone(loading))
        return
    workers = workers or torch.cuda.device_count() or 1
    engine: _Workers = Ray(loading, workers) if kind == "ray" else Local(loading, workers)
    try:
        yield engine
    finally:
        engine.stop()


class _Died(Exception):
    """A worker has died; the message says what is known of its death."""


class _Worker(abc.ABC):
    """A process that embeds tasks in the order in which they are sent."""

    def __init__(self) -> None:
        self.tasks: deque[Task] = deque()  # sent and not yet answered, oldest first

    @abc.abstractmethod
    def send(self, task: Task) -> None:
        """Sends a task; `receive` reports a worker that has died."""

    @abc.abstractmethod
    def receive(self) -> Result | UserError:
        """Waits for the answer to the oldest task; raises _Died."""


W = TypeVar("W", bound=_Worker)


class _Workers(Engine, Generic[W]):
    """Workers, one per GPU; when one dies, a new one repeats its tasks."""

    def __init__(self, workers: int):
        self.capacity = _IN_FLIGHT * workers
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._workers = [self._start(index, overlap=True) for index in range(workers)]

    @abc.abstractmethod
    def _start(self, index: int, overlap: bool) -> W:
        """Starts a worker; with `overlap` it begins the next task before it finishes the last."""

    @abc.abstractmethod
    def _wait(self, workers: list[W]) -> W:
        """Waits until one of the workers has answered or died, and returns it."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ends the workers, by force those that still have tasks."""

    def submit(self, task: Task) -> None:
        """Gives a task to the worker that has the fewest."""
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        worker.tasks.append(task)
        worker.send(task)

    def next_finished(self) -> tuple[Task, Result]:
        """Waits for the next result of any worker.

        Raises:
          UserError: a worker could not load the model, or one task kills every worker.
        """
        while True:
            worker = self._wait([worker for worker in self._workers if worker.tasks])
            try:
                answer = worker.receive()
            except _Died as death:
                self._replace(worker, death)
                continue
            if isinstance(answer, UserError):
                raise answer
            return worker.tasks.popleft(), answer

    def _replace(self, dead: W, death: _Died) -> None:
        index, first = self._workers.index(dead), dead.tasks[0]
        key = (first.window, first.name)
        self._deaths[key] += 1
        if self._deaths[key] > _MOST_DEATHS:
            raise UserError(
                f"{self._deaths[key]} workers died over the batch of review {first.rows[0]} "
                f"({death}): if memory ran out, give fewer --batch_tokens or --workers"
            )
        print(
            f"worker {index} died ({death}); a new worker repeats its {len(dead.tasks)} batches",
            file=sys.stderr,
        )
        # Without overlap, so that if the new worker dies too, its oldest task is to blame.
        fresh = self._workers[index] = self._start(index, overlap=False)
        for task in dead.tasks:
            fresh.tasks.append(task)
            fresh.send(task)


class _Process(_Worker):
    def __init__(self, process: Any, pipe: multiprocessing.connection.Connection):
        super().__init__()
        self.process = process
        self.pipe = pipe

    def send(self, task: Task) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(task)

    def receive(self) -> Result | UserError:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.pipe.close()
            raise _Died(f"exit status {self.process.exitcode}") from None


class Local(_Workers[_Process]):
    """Runs workers as processes of this machine, worker i on GPU i."""

    def __init__(self, loading: Loading, workers: int):
        self._context = multiprocessing.get_context("spawn")
        self._loading = loading
        has_affinity = hasattr(os, "sched_getaffinity")  # macOS has not
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        self._threads = max(1, cores // workers)
        super().__init__(workers)

    def stop(self) -> None:
        """Ends the workers, by force those that still have tasks."""
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            worker.process.join(0 if worker.tasks else max(0, deadline - time.monotonic()))
            worker.process.terminate()
            worker.process.join()

    def _start(self, index: int, overlap: bool) -> _Process:
        device = f"cuda:{index}" if _on_every_gpu(self._loading) else self._loading.device
        loading = dataclasses.replace(self._loading, device=device)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, loading, self._threads, overlap), daemon=True
        )
        process.start()
        theirs.close()
        return _Process(process, ours)

    def _wait(self, workers: list[_Process]) -> _Process:
        pipes = {worker.pipe: worker for worker in workers}
        return pipes[multiprocessing.connection.wait(list(pipes))[0]]  # type: ignore[index]


def _work(
    pipe: multiprocessing.connection.Connection, loading: Loading, threads: int, overlap: bool
) -> None:
    """Runs a worker, until its parent ends."""
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
            for result in in_turn(Inline(Backbone(loading), overlap), tasks):
                pipe.send(result)
        except UserError as error:
            pipe.send(error)


class _Actor(_Worker):
    """Runs its calls in order: the result of a task is asked for `ahead` tasks later."""

    def __init__(self, ray: Any, actor: Any, ahead: int):
        super().__init__()
        self._ray = ray
        self._actor = actor
        self._ahead = ahead
        self._begun: deque[Any] = deque()
        self._answers: deque[futures.Future] = deque()

    def send(self, task: Task) -> None:
        self._begun.append(self._actor.begin.remote(task))
        while len(self._begun) > self._ahead:
            self._ask()

    @property
    def answer(self) -> futures.Future:
        """The answer to the oldest task, to wait for."""
        if not self._answers:
            self._ask()
        return self._answers[0]

    def receive(self) -> Result | UserError:
        try:
            answer = self.answer.result()
        except self._ray.exceptions.RayError as error:
            self._ray.kill(self._actor)
            cause = getattr(error, "cause", None) or error
            raise _Died(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}") from None
        self._answers.popleft()
        return answer

    def _ask(self) -> None:
        # `finish` takes what `begin` returned, and so passes on its failure.
        self._answers.append(self._actor.finish.remote(self._begun.popleft()).future())


class _Embedder:
    """Embeds in an actor."""

    def __init__(self, loading: Loading):
        self._loading = loading

    @functools.cached_property
    def _engine(self) -> Inline:
        return Inline(Backbone(self._loading))

    def begin(self, task: Task) -> UserError | None:
        try:
            self._engine.submit(task)
        except UserError as error:
            return error
        return None

    def finish(self, failure: UserError | None) -> Result | UserError:
        return failure or self._engine.next_finished()[1]


class Ray(_Workers[_Actor]):
    """Runs workers as Ray actors, one per GPU, on this machine or a cluster."""

    def __init__(self, loading: Loading, workers: int):
        try:
            import ray
        except ImportError:
            raise UserError("--engine=ray needs: pip install ray") from None
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(ignore_reinit_error=True)
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process
        self._ray = ray
        self._loading = loading
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if _on_every_gpu(loading) and gpus < workers:
            ray.shutdown()
            raise UserError(
                f"--workers={workers} need a GPU each, and Ray has {gpus}: give "
                "fewer, or --device=cpu"
            )
        # An actor that asks for more than there is would wait forever, and so would its tasks.
        self._class = ray.remote(_Embedder).options(
            num_cpus=0, num_gpus=1 if _on_every_gpu(loading) else 0
        )
        super().__init__(workers)

    def stop(self) -> None:
        """Ends the actors and Ray."""
        self._ray.shutdown()

    def _start(self, index: int, overlap: bool) -> _Actor:
        ahead = int(overlap and device_named(self._loading.device).type == "cuda")
        return _Actor(self._ray, self._class.remote(self._loading), ahead)

    def _wait(self, workers: list[_Actor]) -> _Actor:
        answers = {worker.answer: worker for worker in workers}
        # Ray's own wait turns what a signal handler raises into a SystemError.
        done, _ = futures.wait(answers, return_when=futures.FIRST_COMPLETED)
        return answers[done.pop()]


def _on_every_gpu(loading: Loading) -> bool:
    """Whether each worker has its own GPU: there are GPUs, and --device names no single device."""
    return torch.cuda.is_available() and loading.device in ("", "cuda")
