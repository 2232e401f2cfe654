"""Workers: the same bytes whatever the engine, and nothing lost when one is killed."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import torch
import written_checkpoints
import written_tokenizers
from conftest import PATIENCE_SECONDS, ROOT, assert_one_line_mistake, run_command

from embed_torch import backbone, embed, engines, inline
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig
from sasnet_jax.prepare import command as prepare

# Other tests of this process may have used JAX, which warns whenever Ray starts its own processes.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
BYTES = ("mean.npy", "attentional.npy", "categories.npy", "tokens.npy", "truncated.parquet")
CONFIG = {"batch_tokens": 2048, "max_tokens": 150}


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, str]:
    """A corpus, and a small Phi-3 to embed it."""
    folder = tmp_path_factory.mktemp("engines")
    prepare.run(prepare.PrepareConfig(synthetic=400, output=str(folder / "corpus")))
    written_checkpoints.write_phi3(folder / "phi3", num_hidden_layers=2)
    written_tokenizers.write_phi3_tokenizer(folder / "phi3")
    return {
        "corpus": str(folder / "corpus"),
        "model": str(folder / "phi3"),
        "instruction": "Analyze the review.",
        "poolings": "mean,attentional",
        "device": "cpu",
    }


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads here as in each worker and command that is started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory) -> dict[str, bytes]:
    """The files of a store that one process wrote in one go."""
    output = tmp_path_factory.mktemp("reference") / "store"
    embed.run(EmbedConfig(**flags, **CONFIG, output=str(output)))
    return _bytes(output)


@pytest.fixture(scope="module")
def cluster():
    """Ray, with fewer CPUs than the engines have workers."""
    ray = pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    ray.init(num_cpus=1, include_dashboard=False)
    yield ray
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def kind(request, monkeypatch) -> str:
    """An engine whose workers are processes; every one of Ray uses the same cluster."""
    if request.param == "ray":
        monkeypatch.setattr(request.getfixturevalue("cluster"), "shutdown", lambda: None)
    return request.param


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Raises in what would otherwise wait forever."""

    def give_up(*_):
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def _bytes(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in BYTES}


def _arguments(flags: dict, output: Path, **more) -> list[str]:
    settings = {**flags, **CONFIG, "output": output, **more}
    return [f"--{name}={value}" for name, value in settings.items()]


def _start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _journaled(output: Path) -> int:
    """The number of lines of the journal, including the header."""
    path = output / "journal.ndjson"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _cpu_seconds(pid: int) -> float:
    """The CPU seconds of a process: a clock that stands still while others have the CPU."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _pid(worker: engines._Worker) -> int:
    if isinstance(worker, engines._Process):
        return worker.process.pid
    return worker._ray.get(worker.pid)


def test_two_workers_write_the_same_bytes_though_one_is_killed(
    flags, uninterrupted, tmp_path, kind, monkeypatch, capsys
):
    engine = {"local": engines.Local, "ray": engines.Ray}[kind]
    start, next_finished, killed = engine._start, engine.next_finished, []

    def start_and_ask(self, index, overlap):
        worker = start(self, index, overlap)
        if kind == "ray":
            worker.pid = worker._actor.__ray_call__.remote(lambda _: os.getpid())
        return worker

    def next_finished_and_kill(self):
        finished = next_finished(self)
        if not killed:
            killed.append(_pid(self._workers[0]))
            os.kill(killed[0], signal.SIGKILL)
        return finished

    monkeypatch.setattr(engine, "_start", start_and_ask)
    monkeypatch.setattr(engine, "next_finished", next_finished_and_kill)
    with _patience():
        embed.run(
            EmbedConfig(**flags, **CONFIG, engine=kind, workers=2, output=str(tmp_path / "s"))
        )
    assert "worker 0 died" in capsys.readouterr().err
    assert _bytes(tmp_path / "s") == uninterrupted


def _task(name: str, row: int, ids: list[int]) -> engines.Task:
    return engines.Task(0, name, ("mean",), [row], backbone.Batch([ids], (0, 0), ("mean",)))


def _loading(folder: Path | str) -> backbone.Loading:
    return backbone.Loading("m", Path(folder), "float32", "cpu", "dequantize")


def test_tasks_and_results_larger_than_a_pipe_do_not_wait_for_each_other(flags):
    ids = np.random.default_rng(0).integers(3, 300, (2000, 25)).tolist()
    batch = backbone.Batch(ids, (0, 0), ("mean", "max"))
    with engines.open_engine("local", _loading(flags["model"]), 1) as engine, _patience():
        for name in "012":
            engine.submit(engines.Task(0, name, batch.poolings, list(range(2000)), batch))
        assert [engine.next_finished()[0].name for _ in range(3)] == ["0", "1", "2"]


def test_a_task_that_kills_every_worker_is_named(flags, kind, monkeypatch):
    """Here the first death is one too many; how deaths are counted is tested below."""
    monkeypatch.setattr(engines, "_MOST_DEATHS", 0)
    with engines.open_engine(kind, _loading(flags["model"]), 1) as engine, _patience():
        assert engine.capacity == 3  # a worker's, however large the corpus
        engine.submit(_task("0", 76, [5]))
        engine.submit(_task("1", 77, [10**9]))  # an id that no vocabulary has
        assert engine.next_finished()[0].rows == [76]
        with pytest.raises(UserError, match="1 workers died over the batch of review 77.*--batch"):
            engine.next_finished()


def test_a_worker_that_cannot_load_says_why(tmp_path, kind):
    (tmp_path / "config.json").write_text("{}")
    with engines.open_engine(kind, _loading(tmp_path), 1) as engine, _patience():
        engine.submit(_task("0", 0, [1]))
        with pytest.raises(UserError, match="safetensors"):
            engine.next_finished()


@pytest.mark.parametrize("kind", ["ray"], indirect=True)
def test_more_ray_workers_than_gpus_are_refused(flags, kind, monkeypatch):
    monkeypatch.setattr(engines, "_on_every_gpu", lambda _: True)
    with (
        pytest.raises(UserError, match="--workers=2 need a GPU each, and Ray has 0"),
        engines.open_engine(kind, _loading(flags["model"]), 2),
    ):
        pass


class _Fragile(engines._Worker):
    """Dies of a task named "bad"; with overlap, already while that task waits."""

    def __init__(self, overlap):
        super().__init__()
        self.overlap = overlap

    def send(self, task):
        pass

    def receive(self):
        begun = list(self.tasks)[: 2 if self.overlap else 1]
        if any(task.name == "bad" for task in begun):
            raise engines._Died("exit status 1")
        return {}


class _FragileWorkers(engines._Workers):
    def _start(self, index, overlap):
        return _Fragile(overlap)

    def _wait(self, workers):
        return workers[0]

    def stop(self):
        pass


def test_a_task_begun_together_with_one_that_kills_is_not_to_blame():
    engine = _FragileWorkers(1)
    finished = []
    for row, name in enumerate(("a", "b", "bad")):
        engine.submit(_task(name, row, [1]))
    with pytest.raises(UserError, match="3 workers died over the batch of review 2 "):
        finished.extend(engine.next_finished()[0].name for _ in range(3))
    assert engine._deaths == {(0, "b"): 1, (0, "bad"): 3}


class _RecordedBackbone(backbone.Backbone):
    """Claims to be on a GPU, and records what was asked of it."""

    device = torch.device("cuda")

    def __init__(self):
        self.calls = []

    def start(self, batch):
        (ids,) = batch.ids
        self.calls.append(f"start {ids}")

        def finish():
            self.calls.append(f"finish {ids}")
            return {"mean": np.array([ids])}

        return finish


class _RecordedMethod:
    """Of an actor; its references are their own results."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def remote(self, argument):
        ids = argument.batch.ids[0] if isinstance(argument, engines.Task) else argument.result()
        self.calls.append(f"{self.name} {ids}")
        reference = futures.Future()
        reference.set_result(ids)
        reference.future = lambda: reference
        return reference


OVERLAPPED = ["start [1]", "start [2]", "finish [1]", "start [3]", "finish [2]", "finish [3]"]
IN_TURN = ["start [1]", "finish [1]", "start [2]", "finish [2]", "start [3]", "finish [3]"]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_worker_begins_the_next_task_before_it_finishes_the_last(overlap):
    recorded, tasks, results = _RecordedBackbone(), queue.SimpleQueue(), []
    for number in (1, 2, 3):
        tasks.put(_task(str(number), number, [number]))
    for result in inline.in_turn(inline.Inline(recorded, overlap), tasks):
        results.append(result["mean"].item())
        if len(results) == 3:
            tasks.put(None)
    assert results == [1, 2, 3]
    assert recorded.calls == (OVERLAPPED if overlap else IN_TURN)


@pytest.mark.parametrize("overlap", [True, False])
def test_an_actor_begins_the_next_task_before_it_finishes_the_last(overlap):
    calls, finished = [], []
    methods = {name: _RecordedMethod(name, calls) for name in ("start", "finish")}
    actor = types.SimpleNamespace(begin=methods["start"], finish=methods["finish"])
    worker = engines._Actor(None, actor, ahead=int(overlap))
    for number in (1, 2, 3):
        worker.send(_task(str(number), number, [number]))
    for _ in range(3):
        finished.append(worker.answer.result())
        worker._answers.popleft()
    assert finished == [[1], [2], [3]]
    assert calls == (OVERLAPPED if overlap else IN_TURN)


STOPPING = """
import os, signal, sys
from embed_torch import cli, embed
from embed_torch.config import EmbedConfig

embed._FLUSH_SECONDS, left = float(sys.argv.pop(1)), int(sys.argv.pop(1))
write = embed.StoreWriter.write

def write_or_stop(*arguments):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGSTOP)
    write(*arguments)
    left -= 1

embed.StoreWriter.write = write_or_stop
cli.main(EmbedConfig, embed.run, "")
"""
FOREVER = "1e9"


def _start_and_stop(flush_seconds: str, arguments: list[str]) -> subprocess.Popen:
    """A command that has stopped (SIGSTOP) when it had three results."""
    process = _start("-c", STOPPING, flush_seconds, "3", *arguments)
    status = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert status.si_code == os.CLD_STOPPED, process.communicate()
    return process


def test_a_writer_keeps_others_out_and_killed_and_resumed_gives_the_same_bytes(
    flags, uninterrupted, tmp_path, capsys
):
    output = tmp_path / "s"
    arguments = _arguments(flags, output)
    process = _start_and_stop("0", arguments)
    second = run_command("embed_torch", *arguments)
    assert_one_line_mistake(second, f"process {process.pid}")
    process.kill()
    process.communicate()
    assert _journaled(output) == 4
    embed.run(EmbedConfig(**flags, **CONFIG, output=str(output)))
    printed = re.findall(r"([\d,]+) tokens(?: embedded)?,", capsys.readouterr().out)
    total, embedded = (int(tokens.replace(",", "")) for tokens in printed)
    assert embedded < total - 3000  # without the first three batches
    assert _bytes(output) == uninterrupted
    assert not (output / "journal.ndjson").exists()


@pytest.mark.stress
def test_killed_anywhere_and_resumed_gives_the_same_bytes(flags, uninterrupted, tmp_path):
    output, rng = tmp_path / "s", np.random.default_rng(20)
    arguments = ("-c", STOPPING, "0", "-1", *_arguments(flags, output))
    for _ in range(20):
        process = _start(*arguments)
        before = _journaled(output)
        while process.poll() is None and _journaled(output) <= before:
            time.sleep(0.001)
        threading.Event().wait(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
    process = _start(*arguments)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert _bytes(output) == uninterrupted


def test_sigterm_saves_what_is_finished_and_exits_75(flags, tmp_path):
    process = _start_and_stop(FOREVER, _arguments(flags, tmp_path / "s"))
    assert _journaled(tmp_path / "s") == 1  # some batches, none of them in the journal yet
    before = _cpu_seconds(process.pid)
    process.terminate()
    process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _cpu_seconds(process.pid) - before < 5
    _, stderr = process.communicate()
    assert process.returncode == 75, stderr
    assert stderr.splitlines()[-1].startswith("stopped by SIGTERM")
    lines = (tmp_path / "s" / "journal.ndjson").read_text().splitlines()
    assert [len(json.loads(line)["done"]) for line in lines[1:]] == [3]
    other = run_command("embed_torch", *_arguments(flags, tmp_path / "s", batch_tokens=400))
    assert_one_line_mistake(other, "batch_tokens")


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.stress)])
def test_sigterm_ends_the_workers_too(flags, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    arguments = _arguments(flags, tmp_path / "s", engine=engine, workers=2)
    process = _start("-m", "embed_torch", *arguments)
    while _journaled(tmp_path / "s") < 1:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()  # the workers are starting
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, stderr
    assert "stopped by SIGTERM" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr and "leaked" not in stderr


def test_a_batch_that_the_memory_does_not_hold_is_halved(flags, tmp_path, monkeypatch):
    """The device seems to hold 500 tokens; a run resumed in the middle writes the same bytes."""

    def start(self, batch):
        if sum(map(len, batch.ids)) > 500:
            raise torch.OutOfMemoryError
        return whole(self, batch)

    whole = backbone.Backbone.start
    monkeypatch.setattr(backbone.Backbone, "start", start)
    monkeypatch.setattr(embed, "_WINDOW_ROWS", 100)
    config = EmbedConfig(**flags, **CONFIG, output=str(tmp_path / "s"))
    embed.run(config)

    class Stop(Exception):
        pass

    def stop(self, window, batch, rows, found):
        if window == 2:
            raise Stop
        write(self, window, batch, rows, found)

    write = embed.StoreWriter.write
    monkeypatch.setattr(embed.StoreWriter, "write", stop)
    with pytest.raises(Stop):
        embed.run(EmbedConfig(**flags, **CONFIG, output=str(tmp_path / "t")))
    lines = [json.loads(x) for x in (tmp_path / "t" / "journal.ndjson").read_text().splitlines()]
    assert any("split" in line for line in lines)
    later = [line for line in lines if "split" in line and line["window"] > 1]
    assert not later  # the budget of the windows after the first was smaller from the start
    monkeypatch.setattr(embed.StoreWriter, "write", write)
    embed.run(EmbedConfig(**flags, **CONFIG, output=str(tmp_path / "t")))
    assert _bytes(tmp_path / "t") == _bytes(tmp_path / "s")


def test_a_window_begun_before_keeps_its_plan_when_the_memory_is_short_later(
    flags, tmp_path, monkeypatch
):
    """It stops with one batch of window 0 and one in the middle of window 1 left; the first is
    split later."""
    monkeypatch.setattr(embed, "_WINDOW_ROWS", 100)
    config = EmbedConfig(**flags, batch_tokens=500, output=str(tmp_path / "s"))
    write, start, late = embed.StoreWriter.write, backbone.Backbone.start, []

    class OutOfOrder(engines.Inline):
        def __init__(self, encoder):
            super().__init__(encoder)
            self.capacity = 20

        def next_finished(self):
            while (self._begun[0][0].window, self._begun[0][0].name) in ((0, "0"), (1, "1")):
                self._begun.rotate(-1)
            return super().next_finished()

    class Stop(Exception):
        pass

    def stop(self, window, batch, rows, found):
        write(self, window, batch, rows, found)
        if (window, batch) == (1, "3"):
            raise Stop

    def once_too_large(self, batch):
        if not late:
            late.append(batch)
            raise torch.OutOfMemoryError
        return start(self, batch)

    monkeypatch.setattr(engines, "Inline", OutOfOrder)
    monkeypatch.setattr(embed.StoreWriter, "write", stop)
    with pytest.raises(Stop):
        embed.run(config)
    monkeypatch.undo()
    monkeypatch.setattr(embed, "_WINDOW_ROWS", 100)
    monkeypatch.setattr(backbone.Backbone, "start", once_too_large)
    embed.run(config)
    assert late and np.load(tmp_path / "s" / "mean.npy").any(1).all()


def test_one_text_that_the_memory_does_not_hold_is_named(flags, tmp_path, monkeypatch):
    def start(self, batch):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(backbone.Backbone, "start", start)
    with pytest.raises(UserError, match=r"does not hold review \d+ of \d+ tokens"):
        embed.run(EmbedConfig(**flags, **CONFIG, output=str(tmp_path / "s")))
