import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
from conftest import TINY, assert_one_line_mistake, change_store, edit_json, run_command
from written_runs import write_run

from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines.registry import Baseline
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.evaluate import comparison
from sasnet_jax.model import step
from sasnet_jax.model.run import Run
from sasnet_jax.scores import metrics, predictions
from sasnet_jax.scores.predictions import Predictions


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Two seeds of one run, and one of others."""
    folder = tmp_path_factory.mktemp("trained")
    rated = {"review_features": "text+stars", "bias_term": True}
    settings = {"net-0": {"seed": 0}, "net-1": {"seed": 1}, "rated": rated}
    runs = [write_run(world, folder / name, **TINY | own) for name, own in settings.items()]
    return [str(run.folder) for run in runs]


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """Baselines without a store, by target_review."""
    folder = tmp_path_factory.mktemp("made")
    for target_review in ("exclude", "include"):
        config = baselines.BaselinesConfig(
            corpus=str(world.corpus_folder),
            output=str(folder / target_review),
            target_review=target_review,
        )
        baselines.run(config)
    return folder


def test_too_little_memory_on_the_device_is_one_line(trained, monkeypatch):
    def allocate(*_):
        return jax.jit(lambda: jax.numpy.zeros((1 << 44,), "float32"))().block_until_ready()

    monkeypatch.setattr(step, "predict", allocate)
    with pytest.raises(UserError, match="too little memory.*: evaluate .*net-0 on a device like"):
        evaluate.evaluate(Run(trained[0]))


def test_runs_that_differ_in_the_seed_are_a_group(world, trained, made, tmp_path, capsys):
    evaluate.run(
        evaluate.EvaluateConfig(
            run=tuple(trained), baselines=str(made / "exclude"), output=str(tmp_path / "out")
        )
    )
    printed = capsys.readouterr().out
    assert "target excluded" in printed and "net, 2 seeds" in printed
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {name: one["runs"] for name, one in found["groups"].items()} == {
        "net": trained[:2],
        "rated": trained[2:],
    }
    tables = [pl.read_parquet(f"{run}/predictions.parquet") for run in trained[:2]]
    tests = [table.filter(pl.col("split") == "test") for table in tables]
    label = tests[0]["label"].to_numpy()
    columns = ["p_bad", "p_good", "p_excellent"]
    probabilities = [test.select(columns).to_numpy() for test in tests]
    accuracies = [(p.argmax(axis=1) == label).mean() for p in probabilities]
    accuracy = found["groups"]["net"]["test"]["accuracy"]
    assert accuracy["values"] == pytest.approx(accuracies)
    assert accuracy["mean"] == pytest.approx(np.mean(accuracies))
    assert accuracy["spread"] == pytest.approx(np.std(accuracies, ddof=1))
    ensemble = np.mean(probabilities, axis=0)
    one = found["models"]["net ensemble"]
    assert one["test"]["accuracy"] == pytest.approx((ensemble.argmax(axis=1) == label).mean())
    low, high = one["test_intervals"]["accuracy"]
    assert low < one["test"]["accuracy"] < high
    written = predictions.read(
        tmp_path / "out" / "predictions" / "net.parquet",
        world.corpus,
        found["models"]["net ensemble"]["predictions_sha256"],
        "again",
    )
    here = world.corpus.split[written.rows] == "test"
    np.testing.assert_allclose(written.probability[here], ensemble, rtol=1e-6)
    compared = {(one["model"], one["baseline"]) for one in found["comparisons"]}
    models = json.loads((made / "exclude" / "baselines.json").read_text())["models"]
    against = set(models) - {"oracle"}
    for model in ("net mean", "net ensemble", *trained):
        assert {baseline for name, baseline in compared if name == model} == against
    for one in found["comparisons"]:
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]
        assert one["at_least_level"] == (one["interval"][0] > -0.02)


def _baseline(name, sees):
    return Baseline(name=name, label=name, sees=sees, features=None, store=None, fit="svm")


def test_a_comparison_can_be_recomputed_from_predictions(world):
    """One model equals the other, except on five reviews of two users, which it gets right."""
    corpus = world.corpus
    rows = np.concatenate([corpus.rows("validation"), corpus.rows("test")])
    wrong = np.eye(3)[(corpus.label[rows] + 1) % 3] * 0.8 + 0.2 / 3
    right = wrong.copy()
    first = np.flatnonzero(corpus.split[rows] == "test")[:5]
    right[first] = np.eye(3)[corpus.label[rows[first]]] * 0.8 + 0.2 / 3
    worse, best = _baseline("worse", "text"), _baseline("best", "target")
    found = comparison.compare(
        corpus,
        [comparison.Group("better", ("better",))],
        {"better": Predictions(rows, right)},
        {worse: Predictions(rows, wrong), best: Predictions(rows, right)},
        target_review="exclude",
        seed=0,
    )
    (one,) = found.comparisons  # what reads the target is shown and never compared with
    assert (one.model, one.baseline) == ("better", "worse")
    assert one.difference == pytest.approx(5 / corpus.rows("test").size)
    assert (one.only_model_right, one.only_baseline_right) == (5, 0)
    assert one.mcnemar_p == pytest.approx(2 * 0.5**5) == one.holm_p
    assert one.at_least_level
    assert found.models["worse"].test.accuracy == 0
    shown = {name: getattr(model, "sees", None) for name, model in found.models.items()}
    assert shown == {"better": None, "worse": "text", "best": "target"}


def test_truncated_histories_are_what_was_kept(world, trained, capsys):
    run = trained[2]
    found = evaluate.evaluate(Run(run), truncate_histories=True)
    corpus = world.corpus
    cut = found.truncated_histories
    assert list(cut) == ["0", "1", "2", "4", "all"]
    rows = corpus.rows("test")
    for name, one in cut.items():
        path = f"{run}/truncated/{name}.parquet"
        table = pl.read_parquet(path)
        np.testing.assert_array_equal(table["row"], rows)
        probability = table.select("p_bad", "p_good", "p_excellent").to_numpy()
        label = corpus.label[rows]
        assert one.every_user.log_loss == pytest.approx(metrics.log_loss(label, probability))
    size = contexts_of(corpus, "exclude").user.size[rows]
    whole, none = (
        pl.read_parquet(f"{run}/truncated/{name}.parquet").select("p_bad").to_numpy().ravel()
        for name in ("all", "0")
    )
    assert (whole == none)[size == 0].all()
    assert (whole != none)[size > 0].all()
    assert cut["0"].long_histories.reviews == (size >= 4).sum()


def test_evaluate_shows_baselines_of_the_same_protocol_only(trained, made, capsys):
    evaluate.run(evaluate.EvaluateConfig(run=(trained[0],), baselines=str(made / "exclude")))
    table = capsys.readouterr().out
    for name in ("majority", "bias", "tfidf_svm", "oracle", trained[0]):
        assert name in table
    result = run_command(
        "sasnet_jax.evaluate", f"--run={trained[0]}", f"--baselines={made / 'included'}"
    )
    assert_one_line_mistake(result, "baselines.json does not exist")
    result = run_command(
        "sasnet_jax.evaluate", f"--run={trained[0]}", f"--baselines={made / 'include'}"
    )
    assert_one_line_mistake(result, "target_review")


def test_evaluate_refuses_a_store_that_changed(world, tmp_path):
    store = shutil.copytree(world.store_folder, tmp_path / "store")
    write_run(dataclasses.replace(world, store_folder=store), tmp_path / "run")
    change_store(store, weights_sha256="1" * 64)
    result = run_command("sasnet_jax.evaluate", f"--run={tmp_path / 'run'}")
    assert_one_line_mistake(result, "store", "not the one")
    result = run_command("sasnet_jax.evaluate", f"--run={tmp_path / 'nowhere'}")
    assert_one_line_mistake(result, "config.json")


def _changed(run, folder, **settings):
    """A copy of a run whose record says that it was trained otherwise."""
    shutil.copytree(run, folder)
    edit_json(folder / "config.json", config=Run(folder).record.config | settings)
    return str(folder)


def test_what_cannot_be_compared_is_refused(trained, made, tmp_path):
    def refused(message, *run, **settings):
        with pytest.raises(UserError, match=message):
            evaluate.run(evaluate.EvaluateConfig(run=run, **settings))

    run = trained[0]
    before = {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")}
    unfinished = _changed(run, tmp_path / "unfinished", epochs=7)
    leaky = _changed(run, tmp_path / "leaky", target_review="include")
    five = _changed(run, tmp_path / "five", classes=5)
    refused("unfinished, after 1 of at most 7 epochs", run, unfinished)
    refused("names a run twice", run, run + "/")
    refused("differ in target_review: evaluate", run, leaky)
    refused("--truncate_histories", leaky, truncate_histories=True)
    refused("the run differ in classes", five, baselines=str(made / "exclude"))
    refused("the run differ in target_review", run, baselines=str(made / "include"))
    refused("holds other files", run, output=str(made / "exclude"))
    assert before == {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")}


def test_predictions_of_other_reviews_are_not_compared(world):
    corpus = world.corpus
    rows = np.concatenate([corpus.rows("validation"), corpus.rows("test")])
    probability = np.full((rows.size, 3), 1 / 3)
    groups = [comparison.Group("a", ("a",))]
    whole = {"a": Predictions(rows, probability)}
    for other, message in (
        (Predictions(rows[:-1], probability[:-1]), "predict different reviews"),
        (Predictions(rows, np.full((rows.size, 5), 0.2)), "5 classes"),
    ):
        with pytest.raises(UserError, match=message):
            comparison.compare(corpus, groups, whole, {_baseline("b", "text"): other}, "exclude", 0)


def test_a_run_that_is_called_like_a_baseline_is_refused(trained, made, tmp_path, monkeypatch):
    """Before anything is evaluated."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0], tmp_path / "bias")
    (tmp_path / "bias" / "evaluation.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="a run and a baseline are both called bias"):
        evaluate.run(evaluate.EvaluateConfig(run=("bias",), baselines=str(made / "exclude")))
    assert not (tmp_path / "bias" / "evaluation.json").exists()


def test_the_interaction_files_are_opened_once_however_many_models_are_compared(
    trained, made, opened
):
    times = []
    for compared in ("", str(made / "exclude")):
        evaluate.run(evaluate.EvaluateConfig(run=(trained[0],), baselines=compared))
        times.append(len(opened))
        opened.clear()
    assert times[0] == times[1]


def test_groups_have_names_of_their_own():
    same, other = ({"--width": width, "stores": ["a"]} for width in (1, 2))
    found = comparison.groups_of({"runs/a/seed-0": same, "runs/a/seed-1": same, "runs/b": other})
    assert [(one.name, one.runs) for one in found] == [
        ("seed", ("runs/a/seed-0", "runs/a/seed-1")),
        ("b", ("runs/b",)),
    ]
    numbers = comparison.groups_of({"0": same, "1": same, "x/0": other})
    assert len({one.name for one in numbers}) == 2
