"""A search over tiny networks: killed, stopped, pruned, failed, refused."""

import json
import re
import shutil
import signal
import time

import numpy as np
import optuna
import polars as pl
import pytest
from conftest import PATIENCE_SECONDS, assert_one_line_mistake, run_command, start_process

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.sweep import command as sweep
from sasnet_jax.sweep import search_space

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


def _arguments(config: sweep.SweepConfig) -> list[str]:
    arguments = [f"--{name}={getattr(config, name)}" for name in ("corpus", "base", "output")]
    arguments += [f"--store={config.store[0]}", f"--trials={config.trials}"]
    return arguments + [f"--vary={declaration}" for declaration in config.vary]


def _study(output) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(
        study_name="sweep", storage=f"sqlite:///{output / 'study.sqlite3'}"
    ).trials


def _result(output):
    """What a resumed sweep must reproduce: settings and losses of every trial, and the files."""
    trials = [
        (t.number, t.state, t.params, t.values, t.intermediate_values) for t in _study(output)
    ]
    metrics = [path.read_bytes() for path in sorted(output.glob("trial-*/metrics.jsonl"))]
    csv, flags = ((output / name).read_bytes() for name in ("trials.csv", "best.flags"))
    return trials, metrics, csv, flags


@pytest.fixture(scope="module")
def uninterrupted(world, base, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "sweep"
    sweep.run(_config(world, base, output))
    return output


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_sweep_ends_with_the_trials_of_an_uninterrupted_one(
    world, base, tmp_path, uninterrupted, sign
):
    output = tmp_path / "sweep"
    arguments = _arguments(_config(world, base, output))
    process = start_process("-m", "sasnet_jax.sweep", *arguments)
    checkpoints = output / "trial-0001" / "checkpoints"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sign)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == (75 if sign == signal.SIGTERM else -sign), said
    assert len(_study(output)) == 1  # so the second one was in the middle
    result = run_command("sasnet_jax.sweep", *arguments)
    assert result.returncode == 0, result.stderr
    assert re.search(r"resumed at step [1-9]", result.stdout)
    assert re.search(r"^sweep, best of 3 trials: trial-000", result.stdout, re.MULTILINE)
    assert "Trial " not in result.stderr  # what Optuna would log
    assert _result(output) == _result(uninterrupted)


def test_every_trial_is_a_run_that_evaluate_accepts(uninterrupted, tmp_path):
    output = shutil.copytree(uninterrupted, tmp_path / "sweep")
    runs = sorted(output.glob("trial-*"))
    result = run_command("sasnet_jax.evaluate", *(f"--run={run}" for run in runs))
    assert result.returncode == 0, result.stderr
    values = [trial.value for trial in _study(output)]
    assert len(runs) == len(values) == 3
    for run, value in zip(runs, values, strict=True):
        found = json.loads((run / "evaluation.json").read_text())
        assert found["validation"]["log_loss"] == pytest.approx(value, rel=1e-5)


def test_trials_begin_with_the_base_and_stay_in_the_declared_space(uninterrupted):
    first, *others = _study(uninterrupted)
    assert first.params == {"learning_rate": 1e-3, "weight_decay": 0.01}
    assert len({tuple(trial.params.values()) for trial in others}) == len(others)
    for number, trial in enumerate([first, *others]):
        assert 1e-4 <= trial.params["learning_rate"] <= 1e-2
        assert 0 <= trial.params["weight_decay"] <= 0.5
        run = uninterrupted / f"trial-{number:04d}"
        config = Run(run).config
        assert {name: getattr(config, name) for name in trial.params} == trial.params


def test_best_flags_are_the_settings_of_the_run_with_the_lowest_validation_loss(
    world, uninterrupted
):
    def lowest(run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return min(json.loads(line)["validation_log_loss"] for line in lines)

    best = min(uninterrupted.glob("trial-*"), key=lowest)
    flags = uninterrupted / "best.flags"
    comment = "".join(line for line in flags.read_text().splitlines() if line.startswith("#"))
    for mention in ("sasnet_jax.train", f"{lowest(best):.4f}", world.corpus.sha256[:12], best.name):
        assert mention in comment
    arguments = ["train", f"--flagfile={flags}", f"--corpus={world.corpus_folder}"]
    arguments += [f"--store={world.store_folder}", f"--output={best}", "--checkpoint_seconds=0.2"]
    parsed = cli.parse(TrainConfig, arguments, "")
    assert parsed == Run(best).config
    table = pl.read_csv(uninterrupted / "trials.csv")
    assert table["trial"][table["validation_log_loss"].arg_min()] == best.name


def test_a_sweep_may_grow_and_is_complete_afterwards(world, base, uninterrupted, tmp_path, capsys):
    short = tmp_path / "sweep"
    sweep.run(_config(world, base, short, trials=2))
    sweep.run(_config(world, base, short, trials=3))
    assert _result(short)[:3] == _result(uninterrupted)[:3]
    capsys.readouterr()
    sweep.run(_config(world, base, short, trials=3))
    assert "training" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def pruned(world, base, tmp_path_factory):
    """Six trials of which some learn too slowly, or not at all."""
    output = tmp_path_factory.mktemp("pruned") / "sweep"
    settings = {"vary": ("learning_rate=1e-2|1e-6|1e38",), "trials": 6, "prune_after_trials": 1}
    flags = output.parent / "base.flags"
    flags.write_text(BASE + "--learning_rate=1e-2\n--epochs=6\n")
    config = _config(world, flags, output, **settings, prune_after_epochs=2)
    sweep.run(config)
    return output, config


def test_runs_are_ended_where_they_are_worse_than_the_median_run_was(pruned):
    trials, complete, ended = _study(pruned[0]), [], 0
    for trial in trials:
        losses = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
        if trial.state == optuna.trial.TrialState.FAIL:
            continue
        worse = [
            epoch + 1 >= 2
            and bool(complete)
            and min(losses[: epoch + 1]) > np.median([other[epoch] for other in complete])
            for epoch in range(len(losses))
        ]
        if trial.state == optuna.trial.TrialState.PRUNED:
            ended += 1
            assert worse == [False] * (len(losses) - 1) + [True]
        else:
            assert len(losses) == 6 and not any(worse[:-1])
            complete.append(losses)
    assert ended and complete


def test_a_trial_whose_loss_is_not_finite_fails_and_the_sweep_goes_on(pruned):
    failed = [t for t in _study(pruned[0]) if t.params["learning_rate"] == 1e38]
    assert failed and failed[0].number < 5
    for trial in failed:
        assert trial.state == optuna.trial.TrialState.FAIL
        assert "not finite from step" in trial.user_attrs["problem"]
    table = pl.read_csv(pruned[0] / "trials.csv")
    assert table["state"].to_list() == [t.state.name.lower() for t in _study(pruned[0])]


def test_a_study_that_was_lost_is_made_again_from_the_runs(pruned, tmp_path):
    output, config = pruned
    before = _result(output)
    (output / "study.sqlite3").unlink()
    sweep.run(config)
    assert _result(output) == before


@pytest.mark.parametrize(
    ("declaration", "mentions"),
    [
        ("learning_speed=1..2", ("no setting", "learning_speed")),
        ("width=64|wide", ("--width=wide",)),
        ("width=64|64.5", ("64.5",)),
        ("dropout=0.0..1.5", ("--dropout=1.5", "[0, 1)")),
        ("dropout=0.5..0.1", ("0.5 is not below 0.1",)),
        ("weight_decay=0.0..0.1:log", ("begins above 0",)),
        ("learning_rate=1e-4..1e-2:linear", (":log", ":linear")),
        ("cross_attention=pooled|paired", ("cross_attention", "paired")),
        ("bias_term=true|perhaps", ("bias_term", "perhaps")),
        ("width=64", ("A|B|C",)),
        ("width=64|64", ("different values",)),
        ("width", ("width",)),
        ("target_review=exclude|include", ("cannot be compared",)),
        ("output=a|b", ("does not decide",)),
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
        assert search_space.holds(space, params)
        assert not search_space.holds(space, params | {"width": 129})
        assert not search_space.holds(space, params | {"heads": 3})


def _damage(case, output, base):
    """Makes one thing wrong; returns the settings of the command."""
    if case == "unknown setting":
        return {"vary": ("learning_speed=1..2",)}
    if case == "too many directions":
        return {"vary": ("discriminants=0|17",)}
    if case == "no base":
        return {"base": "/nowhere/base.flags"}
    if case == "other space":
        return {"vary": ("learning_rate=1e-4..1e-3:log", "weight_decay=0.0..0.5")}
    if case == "other base":
        base.write_text(BASE + "--depth=3\n")
    elif case == "store in base":
        base.write_text(BASE + "--store=work/other\n")
    elif case == "damaged study":
        (output / "study.sqlite3").write_bytes(b"precious" * 1000)
    elif case == "foreign folder":
        (output / "sweep.json").unlink()
    elif case == "no corpus":
        return {"corpus": "/nowhere"}
    return {}


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("unknown setting", ("--vary=learning_speed=1..2", "no setting")),
        ("too many directions", ("--discriminants=17", "16 dimensions")),
        ("no base", ("/nowhere/base.flags",)),
        ("other space", ("--vary=learning_rate", "other")),
        ("other base", ("--depth in --base", "other")),
        ("store in base", ("--store",)),
        ("damaged study", ("study.sqlite3", "remove it")),
        ("foreign folder", ("other files",)),
        ("no corpus", ("corpus.json",)),
    ],
)
def test_a_mistake_is_one_line_and_overwrites_nothing(
    world, uninterrupted, tmp_path, case, mentions
):
    output, base = shutil.copytree(uninterrupted, tmp_path / "sweep"), tmp_path / "base.flags"
    base.write_text(BASE)
    changed = _damage(case, output, base)

    def contents():
        paths = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.read_bytes() for path in paths}

    before = contents()
    config = _config(world, changed.pop("base", base), output)
    arguments = _arguments(sweep.SweepConfig(**_settings(config) | changed))
    assert_one_line_mistake(run_command("sasnet_jax.sweep", *arguments), *mentions)
    assert contents() == before


def _settings(config):
    return {name: getattr(config, name) for name in config.__slots__}


def test_a_second_sweep_on_one_folder_is_refused(world, base, tmp_path):
    config = _config(world, base, tmp_path / "sweep")
    with files.sole_writer(tmp_path / "sweep"):
        result = run_command("sasnet_jax.sweep", *_arguments(config))
    assert_one_line_mistake(result, "in use by process")
