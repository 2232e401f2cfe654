"""The jitted step and the run: leak test, one trace, exact resume by real processes, mistakes."""

import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import jax
import matplotlib.image
import msgspec
import numpy as np
import orbax.checkpoint as ocp
import polars as pl
import pytest
from conftest import (
    PATIENCE_SECONDS,
    SMALL,
    TINY,
    assert_one_line_mistake,
    change_store,
    edit_json,
    edit_reviews,
    load_data,
    run_command,
    shared_folder,
    start_process,
    write_store,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from written_runs import write_run

from sasnet_jax import files
from sasnet_jax.cli import Preempted, UserError
from sasnet_jax.corpus.contexts import contexts_of, write_grouped
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.counts import context_counts
from sasnet_jax.corpus.store import fit_zscore
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.model import devices, draws, step
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.records import Epoch
from sasnet_jax.model.run import Run
from sasnet_jax.train import loop, run_folder

# Most tests share one step of training, because to compile it takes most of their time.
SETTINGS = SMALL | {
    **{"epochs": 4, "review_features": "text+stars", "cross_attention": "set"},
    **{"batch_size": 16, "width": 8, "heads": 2, "feed_forward": 8},
}


def _config(world, output, **settings) -> TrainConfig:
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    return TrainConfig(**paths, output=str(output), **(SETTINGS | settings))


def _arguments(config: TrainConfig) -> list[str]:
    settings = dataclasses.asdict(config) | {"store": config.store[0]}
    return [f"--{k}={v}" for k, v in settings.items() if v != ""]


def _build(config, data) -> step.Functions:
    return step.build(config, devices.mesh_for(config.batch_size), data.embedding_dim, 100)


@pytest.mark.parametrize(
    "options", [{}, {"match": True, "votes": True, "discriminants": 4}], ids=str
)
@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_prediction_ignores_the_target_review(world, tmp_path, target_review, options):
    """The leak test: the target's embedding, stars and label become noise, what is fitted held."""
    settings = {"target_review": target_review, "set_size": 5, "eval_sets": 8, "bias_term": True}
    settings |= options
    config = _config(world, tmp_path / "run", **settings)
    corpus, data = load_data(config)
    functions = _build(config, data)
    params = functions.init().params
    rows = np.concatenate([corpus.rows("validation")[:20], corpus.rows("test")[:20]])
    before = np.asarray(functions.predict(params, data, rows))
    rng = np.random.default_rng(0)
    moved = {"validation": 0, "test": 0}
    for i, row in enumerate(rows):
        table, stars, label = np.array(data.tables[0]), data.stars.copy(), data.label.copy()
        table[row] = rng.normal(size=table.shape[1]) * 5
        stars[row], label[row] = 6 - stars[row], (label[row] + 1) % 3
        counts = context_counts(data.contexts, label, 3)
        noisy = data._replace(tables=(table,), stars=stars, label=label, counts=counts)
        after = np.asarray(functions.predict(params, noisy, rows))
        moved[corpus.split[row]] += not np.array_equal(after[i], before[i])
    # Under "include" the target is among what is sampled, so the same test must find the leak.
    for count in moved.values():
        assert count == 0 if target_review == "exclude" else count > 10


def test_prediction_depends_on_the_context(world, tmp_path):
    config = _config(world, tmp_path / "run")
    corpus, data = load_data(config)
    functions = _build(config, data)
    params = functions.init().params
    rows = corpus.rows("test")
    changed = data._replace(tables=(-np.asarray(data.tables[0]),))
    before, after = (np.asarray(functions.predict(params, d, rows)) for d in (data, changed))
    has_context = sum(context.size[rows] for context in data.contexts) > 0
    assert (np.abs(before - after).max(axis=1) > 0)[has_context].all()


def test_prediction_does_not_depend_on_the_batch(world, tmp_path):
    config = _config(world, tmp_path / "run")
    corpus, data = load_data(config)
    functions = _build(config, data)
    params = functions.init().params
    rows = corpus.rows("test")[:12]
    forward = np.asarray(functions.predict(params, data, rows))
    backward = np.asarray(functions.predict(params, data, rows[::-1].copy()))[::-1]
    np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-6)


def test_a_chunk_of_any_length_is_traced_once_and_gives_the_same_bits(world, tmp_path):
    config = _config(world, tmp_path / "run")
    corpus, data = load_data(config)
    functions = _build(config, data)
    functions.train_chunk.clear_cache()  # of what other tests traced
    rows = jax.device_put(corpus.rows("train"))
    order = draws.shuffle(rows, np.int32(0), config.batch_size, config.seed)
    last = order.targets.shape[0]
    assert last > 6

    def run(bounds):
        state = functions.init()
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            state, bad = functions.train_chunk(state, data, order, np.int32(first), np.int32(end))
            assert bad == -1
        return jax.device_get(state)

    whole, pieces = run([0, last]), run([0, 1, 2, 5, last])
    assert whole.step == last
    jax.tree.map(np.testing.assert_array_equal, whole, pieces)
    assert functions.train_chunk._cache_size() == 1


def test_an_epoch_visits_every_training_review_once(world, tmp_path):
    config = _config(world, tmp_path / "run")
    rows = world.corpus.rows("train")
    orders = [draws.shuffle(rows, np.int32(n), config.batch_size, config.seed) for n in (0, 1)]
    visited = [np.asarray(order.targets)[np.asarray(order.real)] for order in orders]
    for found in visited:
        np.testing.assert_array_equal(np.sort(found), rows)
    assert not np.array_equal(*visited)
    assert np.isin(np.asarray(orders[0].targets), rows).all()  # padding is a valid row


def test_padding_of_the_last_batch_has_no_weight(world, tmp_path):
    """The loss of an epoch, with nothing random and nothing learned, is that of a NumPy sum."""
    quiet = {"dropout": 0.0, "empty_side": 0.0, "learning_rate": 1e-30, "set_size": 80}
    quiet |= {"encoder": False}
    config = _config(world, tmp_path / "run", **quiet)
    corpus, data = load_data(config)
    rows = corpus.rows("train")
    assert rows.size % config.batch_size
    assert max(context.size[rows].max() for context in data.contexts) <= 80  # so sets are whole
    functions = _build(config, data)
    order = draws.shuffle(rows, np.int32(0), config.batch_size, config.seed)
    bounds = (np.int32(0), np.int32(order.targets.shape[0]))
    state, _ = functions.train_chunk(functions.init(), data, order, *bounds)
    probability = functions.predict(functions.init().params, data, rows)
    probability = np.asarray(probability, np.float64)[:, 0]
    expected = -np.log(probability[np.arange(rows.size), corpus.label[rows]]).sum()
    assert float(state.epoch_loss) == pytest.approx(expected, rel=1e-4)


def test_rows_that_fill_up_a_batch_do_not_matter(world, tmp_path):
    config = _config(world, tmp_path / "run", review_loss=0.5, dropout=0.0, encoder=False)
    corpus, data = load_data(config)
    rows = corpus.rows("train")
    functions = _build(config, data)
    real = np.arange(config.batch_size) < 5
    states = []
    for filling in (rows[5], rows[60]):
        targets = np.where(real, rows[: config.batch_size], filling)
        epoch = draws.Epoch(targets[None].astype(np.int32), real[None])
        bounds = (np.int32(0), np.int32(1))
        states.append(functions.train_chunk(functions.init(), data, epoch, *bounds)[0])
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(states))


def test_zscore_equals_numpy_in_float64():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(9000, 5)) * [1, 1e-9, 30, 1, 0] + [0, 3, 500, 1e-3, 7]).astype("f4")
    rows = np.flatnonzero(rng.random(9000) < 0.7).astype(np.int32)
    found = fit_zscore(table, rows)
    expected = table[rows].astype(np.float64)
    np.testing.assert_allclose(found.mean, expected.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.scale[[0, 2, 3]], expected.std(axis=0)[[0, 2, 3]], rtol=1e-6)
    assert found.scale[1] == found.scale[4] == 1


def test_zscore_is_fitted_on_training_reviews_by_default(world, tmp_path):
    corpus = world.corpus
    table = np.load(world.store_folder / "mean.npy").astype(np.float64)
    for fit_on, rows in (("train", corpus.rows("train")), ("all", np.arange(len(table)))):
        _, data = load_data(_config(world, tmp_path / "run", fit_on=fit_on))
        expected = table[rows].mean(axis=0)
        np.testing.assert_allclose(data.scalings[0].mean, expected, rtol=1e-5)


def test_training_learns_and_evaluation_recomputes(world, tmp_path, capsys):
    config = _config(world, tmp_path / "run", epochs=30, patience=10)
    loop.train(config)
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["validation_log_loss"] for record in records]
    assert min(losses) < losses[0]
    best = int(np.argmin(losses)) + 1
    assert records[-1]["best_epoch"] == best
    assert len(records) == min(30, best + 10)  # patience: ten epochs without a better one
    found = evaluate.evaluate(Run(run))
    # Evaluation reads the best parameters, not the last.
    assert found.validation.log_loss == pytest.approx(min(losses), rel=1e-5)
    table = pl.read_parquet(run / "predictions.parquet")
    corpus = world.corpus
    expected = np.concatenate([corpus.rows("validation"), corpus.rows("test")])
    np.testing.assert_array_equal(table["row"], expected)
    test = table.filter(pl.col("split") == "test")
    predicted = test.select("p_bad", "p_good", "p_excellent").to_numpy().argmax(axis=1)
    assert found.test.accuracy == (predicted == test["label"].to_numpy()).mean()
    np.testing.assert_allclose(
        table.select("p_bad", "p_good", "p_excellent").sum_horizontal(), 1, rtol=1e-5
    )
    capsys.readouterr()
    loop.train(config)
    assert "already complete" in capsys.readouterr().out


@functools.cache
def _first_state(config):
    _, data = load_data(config)
    return jax.device_get(_build(config, data).init())


def _result(run):
    """What an exact resume must reproduce: best parameters' predictions, metrics, parameters."""
    evaluate.evaluate(Run(run))
    state = _first_state(dataclasses.replace(Run(run).config, output="any", **SELDOM_SAVED))
    checkpoints = loop.Checkpoints(run, read_only=True)
    restored, best, progress = checkpoints.restore(state, state.params)
    checkpoints.close()
    leaves = jax.tree.leaves((restored, best))
    metrics = (run / "metrics.jsonl").read_bytes()
    return (
        [np.asarray(leaf).tobytes() for leaf in leaves],
        progress,
        metrics,
        (run / "evaluation.json").read_bytes(),
    )


def _start(config) -> subprocess.Popen:
    return start_process("-m", "sasnet_jax.train", *_arguments(config))


def _wait_for_epoch(process, run, epoch: int) -> None:
    path = run / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() or len(path.read_bytes().splitlines()) < epoch:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


KILLED = {"epochs": 20, "patience": 100, "checkpoint_seconds": 0.2}
SELDOM_SAVED = {"checkpoint_seconds": 1000.0}


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    loop.train(_config(world, run, **KILLED | SELDOM_SAVED))
    return _result(run)


@pytest.mark.parametrize(
    "epochs_at_kill",
    [(4,), pytest.param(tuple(range(1, 16, 2)), marks=pytest.mark.stress)],
    ids=str,
)
def test_a_killed_and_stopped_run_ends_where_an_uninterrupted_one_ends(
    world, tmp_path, uninterrupted, epochs_at_kill
):
    """Killed once or more, then told to stop by SIGTERM."""
    run = tmp_path / "run"
    config = _config(world, run, **KILLED)
    for epoch in epochs_at_kill:
        process = _start(config)
        _wait_for_epoch(process, run, epoch)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    config = dataclasses.replace(config, **SELDOM_SAVED)
    (run / "metrics.jsonl").unlink()  # the process writes it again
    process = _start(config)
    _wait_for_epoch(process, run, epochs_at_kill[-1] + 1)
    process.terminate()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, output
    assert re.search(r"resumed at step [1-9]", output)
    saved = re.search(r"saved at step (\d+)", output).group(1)
    result = run_command("sasnet_jax.train", *_arguments(config))
    assert result.returncode == 0, result.stderr
    assert f"resumed at step {saved}\n" in result.stdout
    assert _result(run) == uninterrupted


EVERY_OPTION = {
    "plain": {},
    "host": {"table": "host"},
    "all": {
        **{"average_decay": 0.2, "schedule": "cosine", "bias_term": True, "review_loss": 0.5},
        **{"match": True, "discriminants": 4, "votes": True, "crossed_bias": True, "offset": True},
        "empty_side": 0.0,
    },
}
FEW_EPOCHS = {"epochs": 3}  # the length of a cosine is part of its program


@pytest.mark.parametrize("options", EVERY_OPTION.values(), ids=EVERY_OPTION.keys())
def test_a_run_stopped_inside_an_epoch_ends_where_an_uninterrupted_one_ends(
    world, tmp_path, monkeypatch, capsys, options
):
    """A real SIGTERM during the 17th chunk of one step each."""
    run = tmp_path / "run"
    config = _config(world, run, **KILLED | SELDOM_SAVED | FEW_EPOCHS | options)
    loop.train(dataclasses.replace(config, output=str(tmp_path / "uninterrupted")))
    uninterrupted = _result(tmp_path / "uninterrupted")
    build = step.build

    def build_and_stop(*arguments):
        functions, chunks = build(*arguments), []

        def train_chunk(*inputs):
            chunks.append(1)
            if len(chunks) == 17:
                os.kill(os.getpid(), signal.SIGTERM)
            return functions.train_chunk(*inputs)

        return functions._replace(train_chunk=train_chunk)

    with monkeypatch.context() as patch:
        patch.setattr(step, "build", build_and_stop)
        patch.setattr(loop, "_CHUNK_SECONDS", 0.0)
        with pytest.raises(Preempted, match="saved at step 17"):
            loop.train(config)
    assert -(-world.corpus.rows("train").size // config.batch_size) > 17  # inside the first epoch
    loop.train(config)
    assert "resumed at step 17" in capsys.readouterr().out
    assert _result(run) == uninterrupted


def _damage_latest(run, how) -> int:
    """Damages every file of the latest checkpoint; returns its number."""
    number = max(int(path.name) for path in (run / "checkpoints").iterdir())
    for path in (run / "checkpoints" / str(number)).rglob("*"):
        if path.is_file() and how == "zero bytes":
            path.write_bytes(b"")
        elif path.is_file() and how == "cut short":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif path.parent.name == "d" and how == "bits flipped":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    return number


@pytest.mark.parametrize("how", ["zero bytes", "cut short", "bits flipped"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    world, tmp_path, kept, how, capsys
):
    run = shutil.copytree(kept, tmp_path / "run")
    number = _damage_latest(run, how)
    with pytest.raises(UserError, match=f"{number}.*: run .*train again, which resumes from the"):
        evaluate.evaluate(Run(run))
    loop.train(_config(world, run, epochs=5))
    assert f"{number} does not fit" in capsys.readouterr().err
    assert (run / "checkpoints" / f"damaged-{number}").is_dir()
    assert _result(run) == _result(kept)


@pytest.fixture(scope="module")
def grown(world, tmp_path_factory):
    """A run of two epochs that has grown to five."""
    run = tmp_path_factory.mktemp("grown") / "run"
    for epochs in (2, 5):
        loop.train(_config(world, run, epochs=epochs))
    return run


@pytest.mark.parametrize("how", ["edited", "cut short", "gone"])
def test_damaged_metrics_are_noticed_and_written_again(world, tmp_path, grown, how):
    """What a message advises works: evaluate refuses, train mends, evaluate agrees."""
    run = shutil.copytree(grown, tmp_path / "run")
    path = run / "metrics.jsonl"
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    if how == "edited":
        path.write_bytes(before.replace(b'"epoch": 1, "step": ', b'"epoch": 1, "step": 1'))
    elif how == "cut short":
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    else:
        path.unlink()
    with pytest.raises(
        UserError, match=r"metrics.jsonl (has|does not have) .*: run .*train again, which rewrites"
    ):
        evaluate.run(evaluate.EvaluateConfig(run=(str(run),)))
    loop.train(_config(world, run, epochs=5))
    assert path.read_bytes() == before
    evaluate.run(evaluate.EvaluateConfig(run=(str(run),)))


def test_a_run_of_a_version_without_hashes_is_resumed(world, run_of_one_epoch, kept):
    """Its checkpoints say how many epochs are over, and no more."""
    run = run_of_one_epoch
    edit_json(run / "config.json", zscore_sha256=None)
    for path in (run / "checkpoints").glob("*/progress/metadata"):
        known = json.loads(path.read_text())
        names = ("epochs_evaluated", "best_epoch", "best_log_loss")
        path.write_text(json.dumps({name: known[name] for name in names}))
    loop.train(_config(world, run, epochs=5))
    assert _result(run) == _result(kept)


@pytest.mark.parametrize("place", ["a checkpoint", "metrics.jsonl", "events.out", "TensorStore"])
def test_a_full_disk_is_one_line_that_names_the_file(world, tmp_path, monkeypatch, place):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_space_for_tensorstore(*_, **__):
        raise ValueError("Error writing \"a/0.0\": No space left [os_error_code='28']")

    named = "checkpoints cannot be written: a checkpoint takes .* MB, but only 0.0 MB are free"
    if place == "a checkpoint":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    elif place == "TensorStore":
        named = "checkpoints cannot be written: No space left on device"
        monkeypatch.setattr(ocp.CheckpointManager, "save", no_space_for_tensorstore)
    else:
        named = f"{place}.* cannot be written: No space left on device"
        function = {"metrics.jsonl": (Epoch, "line"), "events.out": (RecordWriter, "write")}[place]
        monkeypatch.setattr(*function, property(no_space) if function[0] is Epoch else no_space)
    with pytest.raises(UserError, match=named):
        loop.train(_config(world, tmp_path / "run", epochs=1))


@pytest.mark.parametrize(
    "name", ["set_size", "eval_set_size", "batch_size", "eval_sets", "width", "depth"]
)
def test_what_no_memory_holds_is_refused_before_it_is_asked_for(world, tmp_path, name):
    config = _config(world, tmp_path / "run", **{name: 10**12})
    with pytest.raises(devices.TooLittleMemory, match=f"--{name}=1000000000000.*this machine has"):
        loop.train(config)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory):
    """A run of five epochs that saved whenever it could, and keeps three checkpoints."""
    run = tmp_path_factory.mktemp("kept") / "run"
    loop.train(_config(world, run, epochs=5, keep=3, checkpoint_seconds=0.0))
    return run


def test_epochs_may_grow(grown, kept):
    assert _result(grown) == _result(kept)


def test_tensorboard_shows_each_epoch_once(grown):
    events = EventAccumulator(str(grown))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4, 5]


def test_a_learning_curve_is_drawn(grown):
    picture = matplotlib.image.imread(grown / "plots" / "learning_curve.png")
    assert picture.shape[1] > 600 and picture[..., :3].std() > 0.05


def test_a_run_keeps_the_last_checkpoints_and_the_best_parameters(kept):
    assert len(list((kept / "checkpoints").iterdir())) == 3


@pytest.fixture
def run_of_one_epoch(world, tmp_path, tmp_path_factory):
    """A copy, in `run`, for a test to damage."""

    def fill(folder):
        loop.train(_config(world, folder / "run", epochs=1))

    folder = shared_folder(tmp_path_factory, "run_of_one_epoch", fill)
    return shutil.copytree(folder / "run", tmp_path / "run")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(world, run_of_one_epoch):
    _damage_latest(run_of_one_epoch, "zero bytes")
    longer = _config(world, run_of_one_epoch, epochs=2)
    result = run_command("sasnet_jax.train", *_arguments(longer))
    assert_one_line_mistake(result, "checkpoints", "damaged")


def test_a_run_is_saved_inside_an_epoch_too(world, tmp_path, monkeypatch):
    """It is saved at every step if each is a chunk of its own and a checkpoint is always due."""
    run = tmp_path / "run"
    config = _config(world, run, **TINY, epochs=1, keep=1000, checkpoint_seconds=0.0)
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)
    loop.train(config)
    steps = -(-world.corpus.rows("train").size // config.batch_size)
    saved = {int(path.name) for path in (run / "checkpoints").iterdir()}
    assert saved >= set(range(1, steps + 1)) and steps > 3


RUINED = TINY | {"learning_rate": 1e38, "weight_decay": 1e38}


def test_settings_may_be_mended_until_the_first_checkpoint(world, tmp_path):
    wrong = _config(world, tmp_path / "run", **RUINED)
    with pytest.raises(loop.NotTrainable):
        loop.train(wrong)
    loop.train(_config(world, tmp_path / "run", epochs=1))
    assert Run(tmp_path / "run").config.learning_rate == 1e-3


def test_an_update_that_ruins_the_last_step_of_an_epoch_is_noticed(world, tmp_path):
    """The loss is taken before the update, so the evaluation is the first to see it."""
    config = _config(world, tmp_path / "run", **RUINED | {"batch_size": 1024})
    assert world.corpus.rows("train").size < config.batch_size
    result = run_command("sasnet_jax.train", *_arguments(config))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "not finite after step 1" in last, result.stderr


def test_a_corpus_without_validation_reviews_is_refused(world, tmp_path):
    folder = shutil.copytree(world.corpus_folder, tmp_path / "corpus")
    edit_reviews(folder, split=pl.col("split").replace("validation", "test"))
    config = dataclasses.replace(_config(world, tmp_path / "run"), corpus=str(folder))
    # The lists of interactions name the split too: a corpus is made anew, not edited.
    shutil.rmtree(folder / "interactions")
    write_grouped(read_corpus(folder))
    result = run_command("sasnet_jax.train", *_arguments(config))
    assert_one_line_mistake(result, "no validation review")


def test_epochs_may_grow_under_a_constant_rate_only(world, tmp_path):
    run = write_run(world, tmp_path / "run", **SETTINGS, schedule="cosine").folder
    longer = _config(world, run, epochs=5, schedule="cosine")
    assert_one_line_mistake(run_command("sasnet_jax.train", *_arguments(longer)), "--epochs")


def test_a_cosine_rate_falls_to_nothing(world, tmp_path):
    config = _config(world, tmp_path / "run", schedule="cosine", warmup_steps=5)
    optimizer = step._optimizer(config, total_steps=50)
    params = {"w": np.float32(0)}
    state, moved = optimizer.init(params), []
    for _ in range(50):
        updates, state = optimizer.update({"w": np.float32(1)}, state, params)
        moved.append(-float(updates["w"]) / config.learning_rate)
    done = np.clip((np.arange(1, 51) - 5) / 45, 0, 1)
    expected = np.where(np.arange(1, 51) < 5, np.arange(1, 51) / 5, (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(moved, expected, atol=1e-3)


def test_the_average_of_the_weights_is_what_predicts(world, tmp_path):
    """Compared with a loop over the parameters after each step."""
    config = _config(world, tmp_path / "run", average_decay=0.2, **FEW_EPOCHS)
    corpus, data = load_data(config)
    rows = corpus.rows("train")
    steps = config.epochs * -(-rows.size // config.batch_size)
    functions = step.build(config, devices.mesh_for(config.batch_size), data.embedding_dim, steps)
    order = draws.shuffle(jax.device_put(rows), np.int32(0), config.batch_size, config.seed)
    state = functions.init()
    expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
    for index in range(6):
        bounds = (np.int32(index), np.int32(index + 1))
        state, _ = functions.train_chunk(state, data, order, *bounds)
        decay = min(0.2, (1 + index) / (10 + index))
        params = jax.tree.leaves(jax.device_get(state.params))
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, params, strict=True)]
    assert state.evaluated is state.average
    for have, want in zip(jax.tree.leaves(state.evaluated), expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6)


def test_five_classes_predict_stars(world, tmp_path):
    found = evaluate.evaluate(write_run(world, tmp_path / "run", classes=5, bias_term=True))
    table = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    probability = table.select(f"p_{star}" for star in range(1, 6)).to_numpy()
    corpus = world.corpus
    stars = np.ceil(corpus.stars[table["row"].to_numpy()])
    np.testing.assert_array_equal(table["label"], stars - 1)
    test = (table["split"] == "test").to_numpy()
    error = probability[test] @ np.arange(1, 6) - stars[test]
    assert found.test.stars_rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)


def test_a_class_without_training_reviews_is_refused(world, tmp_path):
    folder = shutil.copytree(world.corpus_folder, tmp_path / "corpus")
    label = pl.when(pl.col("split") == "train").then(pl.min_horizontal("label", 1))
    edit_reviews(folder, label=label.otherwise("label").cast(pl.Int8))
    config = dataclasses.replace(_config(world, tmp_path / "run"), corpus=str(folder))
    assert_one_line_mistake(run_command("sasnet_jax.train", *_arguments(config)), "excellent")


def test_sets_larger_than_any_list_change_nothing(world, tmp_path):
    """Whole contexts padded to 90 or to 120 give the same predictions."""
    found = []
    for size in (90, 120):
        config = _config(world, tmp_path / "run", set_size=size)
        corpus, data = load_data(config)
        assert max(context.size.max() for context in data.contexts) < 90
        functions = _build(config, data)
        rows = corpus.rows("test")
        found.append(np.asarray(functions.predict(functions.init().params, data, rows)))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_several_stores_train_as_their_concatenation(world, tmp_path):
    table = np.load(world.store_folder / "mean.npy")
    first = write_store(tmp_path / "first", world.corpus, table[:, :5])
    second = write_store(tmp_path / "second", world.corpus, table[:, 5:])
    one = _config(world, tmp_path / "one", **TINY | {"epochs": 2})
    two = dataclasses.replace(one, store=(str(first), str(second)), output=str(tmp_path / "two"))
    for config in (one, two):
        loop.train(config)
    expected, found = (
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")
    )
    assert found == expected


@pytest.mark.stress
def test_a_float16_table_trains_as_well_as_a_float32_one(world, tmp_path):
    """They agree to less than the difference between two seeds."""
    table = np.load(world.store_folder / "mean.npy").astype(np.float32)
    table += np.random.default_rng(0).normal(scale=1e-5, size=table.shape).astype(np.float32)
    losses = {}
    for dtype, seed in ((np.float32, 0), (np.float16, 0), (np.float32, 1)):
        name = f"{np.dtype(dtype)}-{seed}"
        store = write_store(tmp_path / name, world.corpus, table.astype(dtype))
        config = _config(world, tmp_path / f"run-{name}", **TINY | {"epochs": 3, "seed": seed})
        loop.train(dataclasses.replace(config, store=(str(store),)))
        last = (tmp_path / f"run-{name}" / "metrics.jsonl").read_text().splitlines()[-1]
        losses[name] = json.loads(last)["validation_log_loss"]
    rounding = abs(losses["float16-0"] - losses["float32-0"])
    assert 0 < rounding < abs(losses["float32-1"] - losses["float32-0"]) / 10


def test_64_examples_are_learned_by_heart(world, tmp_path):
    quiet = {"dropout": 0.0, "empty_side": 0.0, "set_size": 12, "batch_size": 64, "width": 16}
    config = _config(world, tmp_path / "run", **quiet, learning_rate=1e-2, warmup_steps=10)
    corpus, data = load_data(config)
    functions = _build(config, data)
    rows = corpus.rows("train")
    largest = np.maximum(*(context.size[rows] for context in data.contexts))
    rows = rows[largest <= config.set_size][:64]  # so sets are whole, and always the same
    assert rows.size == 64
    order = draws.shuffle(jax.device_put(rows), np.int32(0), 64, config.seed)
    state = functions.init()
    for _ in range(100):
        state, _ = functions.train_chunk(state, data, order, np.int32(0), np.int32(1))
    predicted = np.asarray(functions.predict(state.params, data, rows))[:, 0].argmax(axis=1)
    np.testing.assert_array_equal(predicted, corpus.label[rows])


def _damage(case, world, run, store):
    """Makes one thing wrong; returns the settings of the command."""
    if case == "learning rate":
        return {"learning_rate": 0.5}
    if case == "other corpus":
        change_store(store, texts_sha256="f" * 64)
    elif case == "corrupt npy":
        data = (store / "mean.npy").read_bytes()
        (store / "mean.npy").write_bytes(data[: len(data) // 2])
    elif case == "pickled npy":
        np.save(store / "mean.npy", np.array([{}], object), allow_pickle=True)
    elif case == "wrong shape":
        np.save(store / "mean.npy", np.zeros((3, 16), np.float16))
    elif case == "no manifest":
        (store / "manifest.json").unlink()
    elif case == "old run":
        edit_json(run / "config.json", format_version=0)
    elif case == "foreign folder":
        shutil.rmtree(run)
        run.mkdir()
        (run / "thesis.tex").write_text("precious")
    elif case == "re-embedded":
        change_store(store, max_tokens=32)
    elif case == "foreign manifest":
        files.write_json(store / "manifest.json", {"name": "an app"})
    elif case == "bad rate":
        return {"learning_rate": "nan"}
    elif case == "bad dropout":
        return {"dropout": 0.999}
    elif case == "learns held-out ratings":
        return {"review_loss": 0.5, "target_review": "include"}
    elif case == "bad seed":
        return {"seed": 10**20}
    elif case == "bad heads":
        return {"heads": 3}
    elif case == "no corpus":
        return {"corpus": "/nowhere"}
    elif case == "no pooling":
        return {"pooling": "no_such_pooling"}
    elif case == "checkpoint of another shape":
        edit_json(run / "config.json", config=Run(run).record.config | {"width": 32})
        return {"width": 32, "epochs": 9}
    return {}


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("learning rate", ("--learning_rate", "other")),
        ("other corpus", ("texts_sha256", "embed_torch")),
        ("corrupt npy", ("mean.npy", "embed_torch --output=")),
        ("pickled npy", ("mean.npy", "embed_torch --output=")),
        ("wrong shape", ("mean.npy", "shape")),
        ("no manifest", ("manifest.json",)),
        ("old run", ("format version 0",)),
        ("foreign folder", ("other files",)),
        ("bad heads", ("--heads=3",)),
        ("bad rate", ("--learning_rate=nan",)),
        ("bad seed", ("--seed",)),
        ("bad dropout", ("--dropout=0.999",)),
        ("learns held-out ratings", ("--review_loss", "--target_review=include")),
        ("re-embedded", ("other store",)),
        ("foreign manifest", ("manifest.json", "lacks")),
        ("no corpus", ("corpus.json",)),
        ("no pooling", ("no_such_pooling",)),
        ("checkpoint of another shape", ("checkpoint", "does not fit")),
    ],
)
def test_a_mistake_is_one_line_and_overwrites_nothing(
    world, tmp_path, run_of_one_epoch, case, mentions
):
    store, run = tmp_path / "store", run_of_one_epoch
    shutil.copytree(world.store_folder, store)
    base = {**SETTINGS, "epochs": 1, "corpus": str(world.corpus_folder), "store": str(store)}
    changed = _damage(case, world, run, store)

    def contents():
        paths = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.read_bytes() for path in paths}

    before = contents()
    settings = base | {"output": run} | changed
    result = run_command("sasnet_jax.train", *(f"--{k}={v}" for k, v in settings.items()))
    assert_one_line_mistake(result, *mentions)
    assert contents() == before


def test_a_second_writer_is_refused(world, tmp_path):
    config = _config(world, tmp_path / "run")
    with files.sole_writer(tmp_path / "run"):
        result = run_command("sasnet_jax.train", *_arguments(config))
    assert_one_line_mistake(result, "in use by process")


def test_a_loss_that_is_not_finite_stops_and_names_the_step(world, tmp_path):
    config = _config(world, tmp_path / "run", **RUINED)
    result = run_command("sasnet_jax.train", *_arguments(config))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(r"error: the loss is not finite from step [1-9]", last), result.stderr


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_store_with_a_value_that_is_not_finite_is_refused(world, tmp_path, split):
    table = np.load(world.store_folder / "mean.npy")
    row = int(world.corpus.rows(split)[3])
    table[row, 2] = np.nan
    store = write_store(tmp_path / "store", world.corpus, table)
    config = dataclasses.replace(_config(world, tmp_path / "run"), store=(str(store),))
    result = run_command("sasnet_jax.train", *_arguments(config))
    assert_one_line_mistake(result, f"row {row} ")


def test_evaluation_leaves_a_checkpoint_in_progress_alone(world, tmp_path):
    run = write_run(world, tmp_path / "run")
    in_progress = tmp_path / "run" / "checkpoints" / "99.orbax-checkpoint-tmp"
    in_progress.mkdir()
    evaluate.evaluate(run)
    assert in_progress.is_dir()


def test_sets_are_drawn_anew_at_each_step(world, tmp_path):
    config = _config(world, tmp_path / "run", empty_side=0.0)
    corpus, data = load_data(config)
    targets = jax.device_put(corpus.rows("train")[:64])
    draw = jax.jit(lambda data, number: draws.draw_training(config, data, targets, number))
    first, again, other = (jax.device_get(draw(data, np.int32(number))) for number in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_array_equal(first.mask, other.mask)  # as many reviews, other ones
    assert (first.rows != other.rows)[first.mask].mean() > 0.2


def test_contexts_fit_the_device_dtype(world):
    contexts = contexts_of(world.corpus, "exclude")
    assert {array.dtype for context in contexts for array in context} == {np.dtype(np.int32)}


def test_the_loss_on_record_is_that_of_the_factor_that_predicts(world, tmp_path, monkeypatch):
    """Also where another factor has a lower loss."""
    monkeypatch.setattr(loop, "choose_factor", lambda *_: 2)
    options = {"discriminants": 4, "offset": True, "empty_side": 0.0, "epochs": 2}
    config = _config(world, tmp_path / "run", learning_rate=0.3, **options)
    loop.train(config)
    run = Run(tmp_path / "run")
    assert run.factor == 0.5
    evaluated = evaluate.evaluate(run).validation
    assert evaluated.log_loss == pytest.approx(run.best.validation_log_loss, rel=1e-6)
    assert evaluated.accuracy == run.best.validation_accuracy


def test_a_resumed_run_is_bound_to_what_it_was_started_with(world, tmp_path):
    """Not to what lies in its folder: it may have been begun with other settings before."""
    settings = {"discriminants": 4, "offset": True, "empty_side": 0.0}
    stale = write_run(world, tmp_path / "run", **settings)
    started = msgspec.structs.replace(stale.record, simple_models_sha256=None)
    (stale.folder / "zscore.npz").write_bytes(b"damaged since")
    run_folder.write_resumed(stale.folder, stale.record, started)
    resumed = Run(stale.folder).record
    assert resumed.simple_models_sha256 is None
    assert resumed.zscore_sha256 == stale.record.zscore_sha256
