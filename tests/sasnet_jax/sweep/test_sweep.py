"""A search over tiny networks: killed, stopped, pruned, failed, refused."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import optuna
import polars as pl
import pytest
from conftest import PATIENCE_SECONDS, edit_json, start_process

from sasnet_jax import cli, files
from sasnet_jax.cli import Preempted, UserError
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.evaluate.command import EvaluateConfig
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.sweep import command as sweep
from sasnet_jax.sweep import search_space
from sasnet_jax.train import loop

# Without attention and dropout, because each trial compiles its own step.
BASE = """# A tiny network.
--set_size=3
--eval_sets=2
--encoder=false
--width=8
--heads=2
--dropout=0
--batch_size=16
--epochs=16
--learning_rate=1e-3
--checkpoint_seconds=0.2
"""
VARY = ("learning_rate=1e-4..1e-2:log", "weight_decay=0.0..0.5")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.flags"
    path.write_text(BASE)
    return path


def _config(world, base, output, **settings) -> sweep.SweepConfig:
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    defaults = {"vary": VARY, "trials": 3}
    return sweep.SweepConfig(**paths, base=str(base), output=str(output), **(defaults | settings))


def _result(output):
    """What a resumed sweep must reproduce: the epochs of every trial, and the files."""
    metrics = [path.read_bytes() for path in sorted(output.glob("trial-*/metrics.jsonl"))]
    return metrics, *((output / name).read_bytes() for name in ("trials.csv", "best.flags"))


def _trials(output) -> list[dict]:
    return pl.read_csv(output / "trials.csv").to_dicts()


def _losses(output, trial) -> list[float]:
    return [record.validation_log_loss for record in Run(output / trial["trial"]).curve]


@pytest.fixture(scope="module")
def uninterrupted(world, base, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "sweep"
    sweep.run(_config(world, base, output))
    return output


def _arguments(config: sweep.SweepConfig) -> list[str]:
    arguments = [f"--{name}={getattr(config, name)}" for name in ("corpus", "base", "output")]
    arguments += [f"--store={config.store[0]}", f"--trials={config.trials}"]
    return arguments + [f"--vary={declaration}" for declaration in config.vary]


def _first_trials(uninterrupted, output, count):
    """A copy of the sweep as it was when so many trials were over."""
    shutil.copytree(uninterrupted, output)
    for number in range(count, 3):
        shutil.rmtree(output / f"trial-{number:04d}")
    return output


def test_a_killed_sweep_ends_with_the_trials_of_an_uninterrupted_one(
    world, base, tmp_path, uninterrupted, capsys
):
    output = _first_trials(uninterrupted, tmp_path / "sweep", 1)
    config = _config(world, base, output)
    process = start_process("-m", "sasnet_jax.sweep", *_arguments(config))
    metrics, deadline = output / "trial-0001" / "metrics.jsonl", time.monotonic() + PATIENCE_SECONDS
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert not Run(output / "trial-0001").finished and not (output / "trial-0002").exists()
    sweep.run(config)
    assert "resumed at step" in capsys.readouterr().out
    assert _result(output) == _result(uninterrupted)


@pytest.mark.parametrize("where", ["in a run", "between two runs"])
def test_a_stopped_sweep_says_so_and_ends_with_the_same_trials(
    world, base, tmp_path, uninterrupted, monkeypatch, where
):
    train = loop.train

    def train_and_stop(config, watch):
        def stop(record):
            if where == "in a run" and record.epoch == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return watch(record)

        second = Path(config.output).name == "trial-0001"
        if second and where == "between two runs":
            os.kill(os.getpid(), signal.SIGTERM)
        train(config, stop if second else watch)

    before = signal.getsignal(signal.SIGTERM)
    config = _config(world, base, _first_trials(uninterrupted, tmp_path / "sweep", 1))
    with monkeypatch.context() as patched, pytest.raises(Preempted, match="run the same command"):
        patched.setattr(loop, "train", train_and_stop)
        sweep.run(config)
    assert signal.getsignal(signal.SIGTERM) is before
    sweep.run(config)
    assert _result(tmp_path / "sweep") == _result(uninterrupted)


def test_every_trial_is_a_run_that_evaluate_accepts(uninterrupted, tmp_path):
    output = shutil.copytree(uninterrupted, tmp_path / "sweep")
    trials = _trials(output)
    assert len(trials) == 3
    evaluate.run(EvaluateConfig(run=tuple(str(output / trial["trial"]) for trial in trials)))
    for trial in trials:
        evaluation = Run(output / trial["trial"]).evaluation
        loss = evaluation.validation.log_loss
        assert loss == pytest.approx(trial["validation_log_loss"], rel=1e-5)


def test_trials_begin_with_the_base_and_stay_in_the_declared_space(uninterrupted):
    first, *others = _trials(uninterrupted)
    assert (first["learning_rate"], first["weight_decay"]) == (1e-3, 0.01)
    assert len({trial["learning_rate"] for trial in others}) == len(others)
    for trial in (first, *others):
        assert 1e-4 <= trial["learning_rate"] <= 1e-2
        assert 0 <= trial["weight_decay"] <= 0.5
        config = Run(uninterrupted / trial["trial"]).config
        assert (config.learning_rate, config.weight_decay) == (
            trial["learning_rate"],
            trial["weight_decay"],
        )


def test_best_flags_are_the_settings_of_the_run_with_the_lowest_validation_loss(
    world, uninterrupted
):
    best = min(_trials(uninterrupted), key=lambda trial: min(_losses(uninterrupted, trial)))
    run, flags = uninterrupted / best["trial"], uninterrupted / "best.flags"
    comment = "".join(line for line in flags.read_text().splitlines() if line.startswith("#"))
    loss = f"{min(_losses(uninterrupted, best)):.4f}"
    for mention in ("sasnet_jax.train", loss, world.corpus.sha256[:12], run.name):
        assert mention in comment
    arguments = ["train", f"--flagfile={flags}", f"--corpus={world.corpus_folder}"]
    arguments += [f"--store={world.store_folder}", f"--output={run}", "--checkpoint_seconds=0.2"]
    assert cli.parse(TrainConfig, arguments, "") == Run(run).config


def test_a_sweep_may_grow_and_is_complete_afterwards(world, base, uninterrupted, tmp_path, capsys):
    short = _first_trials(uninterrupted, tmp_path / "sweep", 2)
    sweep.run(_config(world, base, short, trials=2))
    assert [trial["trial"] for trial in _trials(short)] == ["trial-0000", "trial-0001"]
    assert "training" not in capsys.readouterr().out
    sweep.run(_config(world, base, short, trials=3))
    assert _result(short) == _result(uninterrupted)
    capsys.readouterr()
    sweep.run(_config(world, base, short, trials=3))
    assert "training" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def pruned(world, base, tmp_path_factory):
    """Six trials, some of which learn too slowly or not at all."""
    output = tmp_path_factory.mktemp("pruned") / "sweep"
    settings = {"vary": ("learning_rate=1e-2|1e-6|1e38",), "trials": 6, "prune_after_trials": 1}
    flags = output.parent / "base.flags"
    flags.write_text(BASE + "--learning_rate=1e-2\n--epochs=6\n")
    config = _config(world, flags, output, **settings)
    sweep.run(config)
    return output, config


def test_runs_are_ended_where_they_are_worse_than_the_median_run_was(pruned):
    complete, ended = [], 0
    for trial in _trials(pruned[0]):
        if trial["state"] == "fail":
            continue
        losses = _losses(pruned[0], trial)
        worse = [
            epoch + 1 >= 3
            and bool(complete)
            and min(losses[: epoch + 1]) > np.median([other[epoch] for other in complete])
            for epoch in range(len(losses))
        ]
        if trial["state"] == "pruned":
            ended += 1
            assert worse == [False] * (len(losses) - 1) + [True]
        else:
            assert len(losses) == 6 and not any(worse[:-1])
            complete.append(losses)
    assert ended and complete


def test_a_trial_whose_loss_is_not_finite_fails_and_the_sweep_goes_on(pruned):
    failed = [trial for trial in _trials(pruned[0]) if trial["learning_rate"] == 1e38]
    assert failed and failed[0]["trial"] < "trial-0005"
    for trial in failed:
        assert trial["state"] == "fail" and "not finite from step" in trial["problem"]


def test_a_complete_sweep_trains_again_only_what_failed(pruned, monkeypatch):
    output, config = pruned
    before, trained, train = _result(output), [], loop.train

    def counted(config, watch):
        trained.append(Path(config.output).name)
        train(config, watch)

    monkeypatch.setattr(loop, "train", counted)
    sweep.run(config)
    assert _result(output) == before
    assert trained == [trial["trial"] for trial in _trials(output) if trial["state"] == "fail"]


@pytest.mark.parametrize(
    ("declaration", "mentions"),
    [
        ("learning_speed=1..2", ("no setting", "learning_speed")),
        ("width=64|wide", ("--width=wide",)),
        ("width=64|64.5", ("64.5",)),
        ("dropout=0.0..1.5", ("--dropout=1.5", "at most 0.99")),
        ("dropout=0.5..0.1", ("0.5 is not below 0.1",)),
        ("weight_decay=0.0..0.1:log", ("must begin above 0",)),
        ("learning_rate=1e-4..1e-2:linear", (":log", ":linear")),
        ("cross_attention=pooled|paired", ("cross_attention", "paired")),
        ("bias_term=true|perhaps", ("bias_term", "perhaps")),
        ("width=64", ("A|B|C",)),
        ("width=64|64", ("different values",)),
        ("width", ("width",)),
        ("target_review=exclude|include", ("cannot be compared",)),
        ("output=a|b", ("does not affect",)),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_named(declaration, mentions):
    arguments = ["train", "--corpus=C", "--store=S", "--output=O"]
    with pytest.raises(UserError) as caught:
        search_space.read([declaration], arguments)
    for mention in (f"--vary={declaration}: ", *mentions):
        assert mention in str(caught.value)


def test_declared_values_have_the_types_of_the_settings():
    declarations = ["bias_term=true|false", "heads=2|4", "dropout=0|0.5", "width=64..128"]
    space = search_space.read(declarations, ["train", "--corpus=C", "--store=S", "--output=O"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        params = study.ask(space).params
        assert {name: type(value) for name, value in params.items()} == {
            "bias_term": bool,
            "width": int,
            "heads": int,
            "dropout": float,
        }
        assert all(search_space.contains(space[name], params[name]) for name in space)
    assert not search_space.contains(space["width"], 129)
    assert not search_space.contains(space["heads"], 3)
    assert (search_space.largest(space, "width"), search_space.largest(space, "heads")) == (128, 4)


def _damage(case, output, base):
    """Makes one thing wrong; returns the settings of the command that are not as before."""
    if case == "other base":
        base.write_text(BASE + "--depth=3\n")
    elif case == "store in base":
        base.write_text(BASE + "--store=work/other\n")
    elif case == "foreign folder":
        (output / "sweep.json").unlink()
    elif case == "foreign run":
        path = output / "trial-0001" / "config.json"
        edit_json(path, config=Run(path.parent).record.config | {"weight_decay": 10.5})
    return {
        "unknown setting": {"vary": ("learning_speed=1..2",)},
        "too many directions": {"vary": ("discriminants=0|17",)},
        "no base": {"base": "/nowhere/base.flags"},
        "other space": {"vary": ("learning_rate=1e-4..1e-3:log", "weight_decay=0.0..0.5")},
        "other seed": {"seed": 1},
        "no corpus": {"corpus": "/nowhere"},
    }.get(case, {})


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("unknown setting", ("--vary=learning_speed=1..2", "no setting")),
        ("too many directions", ("--discriminants=17", "16 dimensions")),
        ("no base", ("/nowhere/base.flags",)),
        ("other space", ("vary.learning_rate", "other")),
        ("other seed", ("other seed:",)),
        ("other base", ("base.depth", "other")),
        ("store in base", ("--store",)),
        ("foreign folder", ("other files",)),
        ("foreign run", ("trial-0001", "outside this sweep's space")),
        ("no corpus", ("corpus.json",)),
    ],
)
def test_a_mistake_is_named_and_overwrites_nothing(world, uninterrupted, tmp_path, case, mentions):
    output, base = shutil.copytree(uninterrupted, tmp_path / "sweep"), tmp_path / "base.flags"
    base.write_text(BASE)
    changed = _damage(case, output, base)

    def contents():
        paths = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.read_bytes() for path in paths}

    before = contents()
    settings = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    settings |= {"base": str(base), "output": str(output), "vary": VARY, "trials": 3}
    with pytest.raises(UserError) as caught:
        sweep.run(sweep.SweepConfig(**settings | changed))
    for mention in mentions:
        assert mention in str(caught.value)
    assert contents() == before


def test_a_second_sweep_on_one_folder_is_refused(world, base, tmp_path):
    config = _config(world, base, tmp_path / "sweep")
    with files.sole_writer(tmp_path / "sweep"), pytest.raises(UserError, match="in use by process"):
        sweep.run(config)
