"""Workers: the same bytes whatever the engine, and nothing lost when one is killed."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import torch
import written_checkpoints
import written_tokenizers
from conftest import PATIENCE_SECONDS, ROOT

from embed_torch import backbone, embed, engines, inline
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig
from sasnet_jax.prepare import command as prepare

# Other tests of this process may have used JAX, which warns whenever Ray starts its own processes.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
BYTES = ("mean.npy", "attentional.npy", "categories.npy", "tokens.npy", "truncated.parquet")


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, str]:
    """A corpus, and a Phi-3 that takes some seconds to embed it."""
    folder = tmp_path_factory.mktemp("engines")
    prepare.run(prepare.PrepareConfig(synthetic=400, output=str(folder / "corpus")))
    written_checkpoints.write_phi3(folder / "phi3", hidden_size=128, num_hidden_layers=6)
    written_tokenizers.write_phi3_tokenizer(folder / "phi3")
    return {
        "corpus": str(folder / "corpus"),
        "model": str(folder / "phi3"),
        "instruction": "Analyze the review.",
        "poolings": "mean,attentional",
        "device": "cpu",
    }


CONFIG = {"batch_tokens": 2048, "max_tokens": 150}


@pytest.fixture(scope="module")
def uninterrupted(flags, tmp_path_factory) -> dict[str, bytes]:
    """The files of a store that one process wrote in one go, with one thread, like the workers."""
    output = tmp_path_factory.mktemp("reference") / "store"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    embed.run(EmbedConfig(**flags, **CONFIG, output=str(output)))
    torch.set_num_threads(threads)
    return _bytes(output)


def _bytes(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in BYTES}


def _start(flags: dict, output: Path, **more) -> subprocess.Popen:
    arguments = [f"--{name}={value}" for name, value in {**flags, **CONFIG, **more}.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "embed_torch", *arguments, f"--output={output}"],
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


def _children(process: subprocess.Popen) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def _cpu_seconds(pid: int) -> float:
    """The CPU seconds of a process: a clock that stands still while others have the CPU."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _wait_until_it_has_worked(process: subprocess.Popen, seconds: float) -> None:
    start = _cpu_seconds(process.pid)
    while _cpu_seconds(process.pid) < start + seconds:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_two_local_workers_write_the_same_bytes(flags, uninterrupted, tmp_path):
    process = _start(flags, tmp_path / "s", engine="local", workers=2)
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert "leaked" not in stderr and " truncated -> " in stdout
    assert _bytes(tmp_path / "s") == uninterrupted


def test_the_tasks_of_a_killed_worker_are_done_again(flags, uninterrupted, tmp_path):
    process = _start(flags, tmp_path / "s", engine="local", workers=2)
    killed = None
    while killed is None:
        assert process.poll() is None, process.stderr.read()
        for pid in _children(process):
            command = Path(f"/proc/{pid}/cmdline")
            is_worker = command.exists() and b"spawn_main" in command.read_bytes()
            if is_worker and _cpu_seconds(pid) > 3:  # it has loaded, and is at work
                os.kill(pid, signal.SIGKILL)
                killed = pid
                break
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert "died (exit status -9)" in stderr
    assert _bytes(tmp_path / "s") == uninterrupted


def test_tasks_and_results_larger_than_a_pipe_do_not_wait_for_each_other(flags):
    loading = backbone.Loading("m", Path(flags["model"]), "float32", "cpu", "dequantize")
    ids = np.random.default_rng(0).integers(3, 300, (2000, 25)).tolist()
    batch = backbone.Batch(ids, (0, 0), ("mean", "max"))
    tasks = [engines.Task(0, name, batch.poolings, list(range(2000)), batch) for name in "012"]
    engine = engines.Local(loading, 1)
    finished = []

    def work() -> None:
        for task in tasks:
            engine.submit(task)
        finished.extend(engine.next_finished()[0].name for _ in tasks)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    stuck = thread.is_alive()
    for worker in engine._workers if stuck else ():
        worker.process.kill()
    engine.stop()
    assert not stuck and finished == ["0", "1", "2"]


def _task(name: str, row: int, ids: list[int]) -> engines.Task:
    return engines.Task(0, name, ("mean",), [row], backbone.Batch([ids], (0, 0), ("mean",)))


@contextlib.contextmanager
def _opened(kind, folder):
    if kind == "ray":
        pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    loading = backbone.Loading("m", Path(folder), "float32", "cpu", "dequantize")
    with engines.open_engine(kind, loading, 1) as engine:
        yield engine


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_task_that_kills_every_worker_is_named(flags, kind):
    with _opened(kind, flags["model"]) as engine:
        assert engine.capacity == 3  # a worker's, however large the corpus
        engine.submit(_task("0", 76, [5]))
        engine.submit(_task("1", 77, [10**9]))  # an id that no vocabulary has
        assert engine.next_finished()[0].rows == [76]
        with pytest.raises(UserError, match="3 workers died over the batch of review 77.*--batch"):
            engine.next_finished()


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_worker_that_cannot_load_says_why(tmp_path, kind):
    (tmp_path / "config.json").write_text("{}")
    with _opened(kind, tmp_path) as engine:
        engine.submit(_task("0", 0, [1]))
        with pytest.raises(UserError, match="safetensors"):
            engine.next_finished()


def test_more_ray_workers_than_cpus_all_work(flags):
    ray = pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    loading = backbone.Loading("m", Path(flags["model"]), "float32", "cpu", "dequantize")
    rows = []

    def work() -> None:
        with engines.open_engine("ray", loading, 2) as engine:
            for row in (1, 2):
                engine.submit(_task(str(row), row, [5]))
            rows.extend(engine.next_finished()[0].rows[0] for _ in range(2))

    ray.init(num_cpus=1)
    thread = threading.Thread(target=work, daemon=True)
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            engines.signal, "signal", lambda *_: None
        )  # of the main thread only
        thread.start()
        thread.join(90)
        assert not thread.is_alive() and sorted(rows) == [1, 2]


def test_more_ray_workers_than_gpus_are_refused(flags, monkeypatch):
    pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    monkeypatch.setattr(engines, "_on_every_gpu", lambda _: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    loading = backbone.Loading("m", Path(flags["model"]), "float32", "", "dequantize")
    with (
        pytest.raises(UserError, match="--workers=2 need a GPU each, and Ray has 0"),
        engines.open_engine("ray", loading, 2),
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


def _kill_until_done(flags, output, seed, kills) -> None:
    """Kills the run `kills` times at random moments after it began, then lets it end."""
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        process = _start(flags, output)
        before = _journaled(output)
        while process.poll() is None and _journaled(output) <= before:
            time.sleep(0.01)
        threading.Event().wait(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
    process = _start(flags, output)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.stress)])
def test_killed_and_resumed_gives_the_same_bytes(flags, uninterrupted, tmp_path, kills):
    _kill_until_done(flags, tmp_path / "s", seed=kills, kills=kills)
    assert _bytes(tmp_path / "s") == uninterrupted
    assert not (tmp_path / "s" / "journal.ndjson").exists()


def test_sigterm_saves_what_is_finished_and_exits_75(flags, uninterrupted, tmp_path):
    process = _start(flags, tmp_path / "s", batch_tokens=400)
    while _journaled(tmp_path / "s") < 1:
        assert process.poll() is None
        time.sleep(0.01)
    _wait_until_it_has_worked(process, 1)  # some batches, none of them in the journal yet
    before = _cpu_seconds(process.pid)
    process.terminate()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _cpu_seconds(process.pid) - before < 5
    _, stderr = process.communicate()
    assert process.returncode == 75, stderr
    assert stderr.splitlines()[-1].startswith("stopped by SIGTERM")
    lines = (tmp_path / "s" / "journal.ndjson").read_text().splitlines()
    assert any(json.loads(line).get("done") for line in lines[1:])
    other = _start(flags, tmp_path / "s")  # another --batch_tokens: other batches
    _, stderr = other.communicate(timeout=PATIENCE_SECONDS)
    assert other.returncode == 2 and "batch_tokens" in stderr.splitlines()[-1]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_sigterm_ends_the_workers_too(flags, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    process = _start(flags, tmp_path / "s", engine=engine, workers=2)
    while _journaled(tmp_path / "s") < 1:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(2)  # the workers are starting, or at work
    process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, stderr
    assert "stopped by SIGTERM" in stderr.splitlines()[-1] and "Traceback" not in stderr


def test_a_second_writer_is_refused_and_told_who_holds_the_store(flags, tmp_path):
    first = _start(flags, tmp_path / "s")
    while _journaled(tmp_path / "s") < 1:
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    second = _start(flags, tmp_path / "s")
    _, stderr = second.communicate(timeout=PATIENCE_SECONDS)
    first.kill()
    first.communicate()
    assert second.returncode == 2 and f"process {first.pid}" in stderr.splitlines()[-1]


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


def test_ray_actors_write_the_same_bytes_though_one_is_killed(flags, uninterrupted, tmp_path):
    pytest.importorskip("ray", reason="ray is an optional extra: pip install ray")
    process = _start(flags, tmp_path / "s", engine="ray", workers=2)
    killed = False
    while not killed and process.poll() is None:
        for stat in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                at_work = b"ray::_Embedder" in stat.read_bytes()
                loaded = at_work and _cpu_seconds(int(stat.parent.name)) > 3
            except OSError:
                continue
            if loaded:
                os.kill(int(stat.parent.name), signal.SIGKILL)
                killed = True
                break
        time.sleep(0.05)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert killed, stderr
    assert _bytes(tmp_path / "s") == uninterrupted
