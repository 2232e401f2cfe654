"""Three folds of a tiny world: pooled, chosen, resumed, refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import TINY, edit_json
from polars.testing import assert_frame_equal

from sasnet_jax import files
from sasnet_jax.baselines import registry
from sasnet_jax.cli import Preempted, UserError
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.splits import folds_of_users
from sasnet_jax.crossvalidate import command as crossvalidate
from sasnet_jax.crossvalidate import fold as folds
from sasnet_jax.crossvalidate import pooled
from sasnet_jax.crossvalidate.command import CrossvalidateConfig
from sasnet_jax.crossvalidate.results import Crossvalidation
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions

FOLDS = 3
# Majority, bias and an oracle: what is fitted at once.
FEW = tuple(kind for kind in registry.KINDS if "text" not in kind.sees)


def _flagfile(path: Path, **settings) -> str:
    settings = TINY | {"epochs": 1} | settings
    path.write_text("".join(f"--{name}={value}\n" for name, value in settings.items()))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return _flagfile(tmp_path_factory.mktemp("base") / "tiny.flags")


@pytest.fixture(autouse=True, scope="module")
def few_baselines():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "KINDS", FEW)
        yield


def _config(world, output, *bases, **settings) -> CrossvalidateConfig:
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    return CrossvalidateConfig(
        **paths, base=bases, output=str(output), **{"folds": FOLDS} | settings
    )


@pytest.fixture(scope="module")
def complete(world, base, tmp_path_factory) -> Path:
    """One model with one seed, trained on every fold."""
    output = tmp_path_factory.mktemp("complete") / "folds"
    crossvalidate.run(_config(world, output, base))
    return output


@pytest.fixture(scope="module")
def grown(world, complete, base, tmp_path_factory) -> tuple[Path, CrossvalidateConfig]:
    """The same as if another model, and a second seed of both, had been trained too."""
    folder = tmp_path_factory.mktemp("grown")
    output = shutil.copytree(complete, folder / "folds")
    other = _flagfile(folder / "rated.flags", bias_term=True)
    for number in range(FOLDS):
        first = output / f"fold{number}" / "runs" / "tiny-seed0"
        _copy_run(first, "tiny-seed1", sureness=1.5, seed=1)
        better = 1 - 5e-4 if number == 1 else 1 + 5e-4  # on validation
        _copy_run(first, "rated-seed0", better, sureness=2.0, bias_term=True)
        _copy_run(first, "rated-seed1", better, sureness=0.5, bias_term=True, seed=1)
    config = _config(world, output, base, other, seeds=2, nested=True)
    crossvalidate.run(config)
    return output, config


def _copy_run(folder: Path, name: str, loss: float = 1.0, *, sureness: float, **settings) -> None:
    """A copy of a run, as if of other settings: surer, with `loss` times the validation loss."""
    copied = Path(shutil.copytree(folder, folder.with_name(name)))
    run = Run(folder)
    edit_json(copied / "config.json", config=run.record.config | settings)
    corpus = read_corpus(folder.parent.parent / "corpus")
    rows, probability = run.predictions(corpus, run.evaluation)
    probability = probability**sureness / (probability**sureness).sum(axis=1, keepdims=True)
    written = predictions.write(copied / "predictions.parquet", corpus, rows, probability)
    scores = json.loads((folder / "evaluation.json").read_text())["validation"]
    scores["log_loss"] *= loss
    edit_json(copied / "evaluation.json", predictions_sha256=written, validation=scores)


def _record(output: Path) -> Crossvalidation:
    return files.read_record(output / "crossvalidation.json", Crossvalidation)


def _written(output: Path) -> dict[str, bytes]:
    """What a resumed cross-validation must reproduce."""
    paths = [output / "crossvalidation.json", *(output / "predictions").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def _table(output: Path, name: str) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """A pooled file, its labels and its probabilities."""
    table = pl.read_parquet(output / "predictions" / f"{name}.parquet")
    return table, table["label"].to_numpy(), table.select("^p_.*$").to_numpy()


def test_every_review_is_predicted_once_by_a_run_that_had_its_user_for_test(world, grown):
    output, _ = grown
    corpus, record = world.corpus, _record(output)
    users = corpus.table("users")["user_id"]
    fold = folds_of_users(users, FOLDS, seed=0)[corpus.user]
    for name in ("tiny-seed0", "tiny-seed1", "rated-seed0", "chosen-seed1", "best_baseline"):
        table, label, _ = _table(output, name)
        assert table["row"].to_list() == list(range(corpus.user.size))
        assert table["fold"].to_list() == fold.tolist()
        np.testing.assert_array_equal(label, corpus.label)
    for number in range(FOLDS):
        folder = output / f"fold{number}"
        split = read_corpus(folder / "corpus").split
        assert ((split == "test") == (fold == number)).all()
        assert ((split == "validation") == (fold == (number + 1) % FOLDS)).all()
        for seed in (0, 1):
            own = pl.read_parquet(folder / "runs" / f"rated-seed{seed}" / "predictions.parquet")
            own = own.filter(split="test").drop("split")
            rows, _, _ = _table(output, f"rated-seed{seed}")
            assert_frame_equal(rows.filter(fold=number).drop("fold"), own, check_dtypes=False)
    for model in record.models.values():
        if model.kind != "ensemble":
            assert len(model.predictions_sha256) == model.seeds
    written = {files.file_sha256(path) for path in (output / "predictions").iterdir()}
    assert written == {sha for one in record.models.values() for sha in one.predictions_sha256}


def test_scores_are_those_of_the_written_predictions(world, grown):
    output, _ = grown
    record, corpus = _record(output), world.corpus
    other_reviews = np.bincount(corpus.user)[corpus.user] - 1
    slices = {"0": (0, 0), "1": (1, 1), "2-3": (2, 3), "4+": (4, 10**6)}
    parts = {"overall": (record.overall, np.ones(corpus.user.size, bool))}
    assert list(record.by_history) == list(slices)
    for name, (low, high) in slices.items():
        parts[name] = record.by_history[name], (low <= other_reviews) & (other_reviews <= high)
    seeds = [_table(output, f"tiny-seed{seed}")[2] for seed in (0, 1)]
    models = {"tiny": seeds, "tiny ensemble": [np.mean(seeds, axis=0)]}
    models["bias"] = [_table(output, "bias")[2]]
    for part, here in parts.values():
        assert (part.reviews, part.users) == (here.sum(), np.unique(corpus.user[here]).size)
        for name, probability in models.items():
            score = part.scores[name]
            label = corpus.label[here]
            right = [(one[here].argmax(axis=1) == label).mean() for one in probability]
            loss = [-np.log(one[here][np.arange(label.size), label]).mean() for one in probability]
            assert score.accuracy_of_seeds == pytest.approx(right)
            assert score.accuracy == pytest.approx(np.mean(right))
            assert score.log_loss == pytest.approx(np.mean(loss), rel=1e-5)
            for value, (low, high) in (
                (score.accuracy, score.accuracy_interval),
                (score.log_loss, score.log_loss_interval),
            ):
                assert low <= value <= high


def test_every_model_is_compared_with_every_baseline_the_best_ones_and_the_reference(grown):
    record = _record(grown[0])
    against = {"majority", "bias", "best baseline", "best baseline on texts", "tiny"}
    assert set(record.models) == against | {"rated", "chosen", "tiny ensemble", "rated ensemble"}
    compared = {(one.model, one.baseline): one for one in record.overall.comparisons}
    assert set(compared) == {(a, b) for a in record.models for b in against if a != b}
    for (name, baseline), one in compared.items():
        mine, other = (record.overall.scores[model] for model in (name, baseline))
        assert one.difference == pytest.approx(mine.accuracy - other.accuracy)
        assert one.log_loss_difference == pytest.approx(mine.log_loss - other.log_loss)
        single = record.models[name].seeds + record.models[baseline].seeds == 2
        assert (one.mcnemar_p is not None) == (one.holm_p is not None) == single
    for part in record.by_history.values():
        baselines = {one.baseline for one in part.comparisons}
        assert baselines == {"best baseline", "best baseline on texts"}


def test_choices_follow_the_validation_log_loss_and_nothing_of_the_test(world, grown, tmp_path):
    output, config = grown
    output = shutil.copytree(output, tmp_path / "folds")
    models = _record(output).models
    for number in range(FOLDS):
        runs = {
            name: Run(output / f"fold{number}" / "runs" / f"{name}-seed0").evaluation
            for name in ("tiny", "rated")
        }
        best = min(runs, key=lambda name: runs[name].validation.log_loss)
        assert best == ("rated" if number == 1 else "tiny")
        assert models["chosen"].choices[str(number)] == best
        path = output / f"fold{number}" / "baselines" / "baselines.json"
        fitted = json.loads(path.read_text())["models"]
        honest = [name for name in fitted if name != "oracle"]
        best = min(honest, key=lambda name: fitted[name]["validation"]["log_loss"])
        assert models["best baseline"].choices[str(number)] == best
        assert models["best baseline on texts"].choices[str(number)] == "majority"
        # Now the test scores say the opposite.
        edit_json(
            path,
            models={
                name: one | {"test": fitted["oracle"]["test"]} if name != best else one
                for name, one in fitted.items()
            },
        )
        evaluations = [path for path in output.glob(f"fold{number}/runs/*/evaluation.json")]
        tests = [json.loads(path.read_text())["test"] for path in evaluations]
        for path, test in zip(evaluations, reversed(tests), strict=True):
            edit_json(path, test=test)
    before = _written(output)
    crossvalidate.run(dataclasses.replace(config, output=str(output)))
    assert _written(output) == before


def test_a_choice_is_the_lowest_loss_that_there_is():
    losses = {"a": 1.0, "b": None, "c": 0.9, "d": 0.9, "e": 0.1}
    assert pooled.choose(losses, ["a", "b", "c", "d"]) == "c"


def test_the_table_names_models_and_verdicts(world, grown, capsys):
    output, config = grown
    crossvalidate.run(config)
    printed = capsys.readouterr().out
    assert (
        f"3 of 3 folds, {world.corpus.user.size:,} reviews" in printed and "training" not in printed
    )
    difference = {(one.model, one.baseline): one for one in _record(output).overall.comparisons}[
        "tiny", "best baseline"
    ]
    line = next(line for line in printed.splitlines() if line.split()[:2] == ["tiny", "text"])
    low, high = difference.log_loss_interval
    assert f"[{low:+.4f}, {high:+.4f}] {difference.log_loss_verdict}" in line
    assert f"{difference.difference:+.3f} [" in line and "users with 2-3 other reviews" in printed


def _interrupted(complete, output) -> Path:
    """The folds as they were when something of each was missing or half-written."""
    shutil.copytree(complete, output)
    (output / "crossvalidation.json").unlink()
    shutil.rmtree(output / "predictions")
    shutil.rmtree(output / "fold0" / "runs")
    (output / "fold0" / "corpus" / "corpus.json").unlink()
    (output / "fold1" / "runs" / "tiny-seed0" / "evaluation.json").unlink()
    shutil.rmtree(output / "fold2" / "baselines")
    path = output / "fold2" / "corpus" / "reviews.parquet"
    path.write_bytes(path.read_bytes()[:-4])
    return output


def test_an_interrupted_cross_validation_ends_with_the_same_bytes(
    world, base, complete, tmp_path, monkeypatch
):
    output = _interrupted(complete, tmp_path / "folds")
    config, evaluate = _config(world, output, base), folds.evaluate

    def evaluate_and_stop(run):
        evaluate(run)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Preempted, match="run the same command"):
        patched.setattr(folds, "evaluate", evaluate_and_stop)
        crossvalidate.run(config)
    assert not (output / "crossvalidation.json").exists()
    crossvalidate.run(config)
    assert _written(output) == _written(complete)


def test_what_is_complete_is_not_computed_again(world, base, complete, monkeypatch):
    before = _written(complete)
    for module, name in ((folds.loop, "train"), (folds, "evaluate"), (folds.baselines, "run")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(folds.resplit, "write", None)
    crossvalidate.run(_config(world, complete, base))
    assert _written(complete) == before


def test_more_seeds_or_models_add_what_is_missing(world, base, complete, tmp_path):
    other = _flagfile(tmp_path / "other.flags", depth=2)
    plan = crossvalidate._plan(_config(world, complete, base, other, seeds=2))
    names = {name for number in range(FOLDS) for name in folds.Fold(plan, number).missing()}
    assert names == {"tiny, seed 1", "other, seed 0", "other, seed 1"}


def test_workers_write_the_same_bytes(world, base, complete, tmp_path):
    output = shutil.copytree(complete, tmp_path / "folds")
    (output / "fold2" / "runs" / "tiny-seed0" / "evaluation.json").unlink()
    crossvalidate.run(_config(world, output, base, workers=2))
    assert _written(output) == _written(complete)
    assert "seed 0" in (output / "fold2" / "worker.log").read_text()
    assert not (output / "fold1" / "worker.log").exists()


@pytest.mark.parametrize(
    ("status", "message"),
    [(2, "^no space left$"), (137, "fold 1 ended with status 137: see .*worker.log")],
)
def test_a_worker_that_fails_is_the_mistake_reported(
    world, base, complete, tmp_path, monkeypatch, status, message
):
    output = shutil.copytree(complete, tmp_path / "folds")
    (output / "fold1" / "runs" / "tiny-seed0" / "evaluation.json").unlink()

    def fail(config, number):
        (output / f"fold{number}" / "worker.log").write_text("epoch 1\nerror: no space left\n")
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])

    monkeypatch.setattr(crossvalidate, "_start", fail)
    with pytest.raises(UserError, match=message):
        crossvalidate.run(_config(world, output, base, workers=2))


def test_one_fold_is_computed_and_some_are_reported(world, base, complete, tmp_path):
    output = shutil.copytree(complete, tmp_path / "folds")
    (output / "crossvalidation.json").unlink()
    (output / "fold0" / "runs" / "tiny-seed0" / "evaluation.json").unlink()
    crossvalidate.run(_config(world, output, base, only_fold=1))
    assert not (output / "crossvalidation.json").exists()
    crossvalidate.run(_config(world, output, base, report_folds="1..2"))
    record = _record(output)
    assert (
        record.reported_folds == [1, 2]
        and not (output / "fold0" / "runs" / "tiny-seed0" / "evaluation.json").exists()
    )
    fold = folds_of_users(world.corpus.table("users")["user_id"], FOLDS, seed=0)[world.corpus.user]
    assert record.overall.reviews == (fold > 0).sum()
    table, _, _ = _table(output, "tiny-seed0")
    assert table["row"].to_list() == np.flatnonzero(fold > 0).tolist()


def test_without_baselines_models_are_compared_with_the_reference(world, grown, tmp_path, capsys):
    output = shutil.copytree(grown[0], tmp_path / "folds")
    bases = grown[1].base
    config = _config(world, output, *bases, baselines=False, reference="rated")
    crossvalidate.run(config)
    record = _record(output)
    assert set(record.models) == {"tiny", "rated"}
    for part in (record.overall, *record.by_history.values()):
        assert [(one.model, one.baseline) for one in part.comparisons] == [("tiny", "rated")]
    assert "log-loss - rated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        ({"seed": 1}, {}, "names its own --seed"),
        ({"corpus": "other"}, {}, "names its own --corpus"),
        ({"store": "other"}, {}, "names its own --store"),
        ({"discriminants": 17}, {}, "--discriminants=17 is more than the 16 dimensions"),
        ({"classes": 5}, {}, "has another --classes than .*tiny.flags"),
        ({"target_review": "include"}, {}, "has another --target_review"),
        ({"depth": 2}, {"folds": 4}, "was made with other folds: choose another"),
        ({"depth": 2}, {"seed": 1}, "was made with other seed: choose another"),
        ({"depth": 2}, {"reference": "chosen"}, "--reference=chosen is none of majority, bias,"),
    ],
)
def test_a_mistake_is_named_before_anything_is_computed(
    world, base, complete, tmp_path, flags, settings, message
):
    other = _flagfile(tmp_path / "other.flags", **flags)
    before = _written(complete)
    with pytest.raises(UserError, match=message):
        crossvalidate.run(_config(world, complete, base, other, **settings))
    assert _written(complete) == before and not [*complete.glob("fold*/runs/other*")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nested": True}, "--nested chooses among models"),
        (
            {"report_folds": "2..3"},
            "--report_folds=2..3 must be a fold or FIRST..LAST, from 0 to 2",
        ),
        ({"report_folds": "two"}, "--report_folds=two must be"),
        ({"report_folds": "1", "only_fold": 0}, "--only_fold=0 is not among"),
        ({"folds": 2}, "--folds=2 must be at least 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(world, base, settings, message):
    with pytest.raises(UserError, match=message):
        _config(world, "nowhere", base, **settings)


def test_a_model_is_called_by_its_own_name_and_keeps_its_settings(world, complete, tmp_path):
    for name, message in (("bias", "another model is called bias"), ("tiny", "other depth")):
        changed = _flagfile(tmp_path / f"{name}.flags", depth=2)
        with pytest.raises(UserError, match=message):
            crossvalidate.run(_config(world, complete, changed))
    with pytest.raises(UserError, match="holds other files"):
        crossvalidate.run(_config(world, tmp_path, changed))
