"""A run folder as the rest of the program sees it, in every state that it may be in."""

import json
import shutil

import msgspec
import numpy as np
import pytest
from conftest import edit_json, run_command
from written_runs import epoch_of, write_evaluation, write_run

import sasnet_jax
from sasnet_jax.cli import UserError
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.train import run_folder


def test_the_state_follows_the_curve_and_the_evaluation(world, tmp_path):
    folder = write_run(world, tmp_path / "run", epochs=5, patience=2).folder
    (folder / "metrics.jsonl").unlink()
    shutil.rmtree(folder / "checkpoints")

    def run():
        return sasnet_jax.load_run(folder)

    assert (run().state, run().best, run().epochs) == ("epoch 0 of 5", None, 0)
    run_folder.append_metrics(folder, epoch_of(1, 1, 0.9))
    assert (run().state, run().finished) == ("epoch 1 of 5", False)
    write_evaluation(run(), 0.9)
    assert run().evaluation.test.log_loss == pytest.approx(0.9)
    run_folder.append_metrics(folder, epoch_of(2, 2, 0.8))
    assert run().state == "epoch 2 of 5, evaluate again" and run().evaluation is None
    for epoch in (3, 4):
        run_folder.append_metrics(folder, epoch_of(epoch, 2, 0.85))
    assert run().finished and run().state == "finished, evaluate again"  # patience is at its end
    assert run().best.epoch == 2 and run().epochs == 4
    write_evaluation(run(), 0.8)
    assert run().state == "finished" and not run().evaluation_is_stale
    (folder / "evaluation.json").unlink()
    assert run().state == "finished, not evaluated"


def test_a_line_that_is_being_written_is_left_out(world, tmp_path):
    """A kill, or a look at a run in progress, may find half a line."""
    run = write_run(world, tmp_path / "run")
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "best_ep')
    assert sasnet_jax.load_run(run.folder).curve == run.curve
    result = run_command("sasnet_jax.evaluate", f"--run={run.folder}")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def test_an_evaluation_is_of_the_best_epoch_of_its_run(world, tmp_path):
    run = write_run(world, tmp_path / "run")
    found = evaluate.evaluate(run)
    shutil.rmtree(run.folder / "checkpoints")
    run_folder.write_metrics(run.folder, [epoch_of(1, 1, found.validation.log_loss)])
    edit_json(run.folder / "evaluation.json", best_sha256=None)
    kept = msgspec.structs.replace(found, best_sha256=None)
    assert sasnet_jax.load_run(run.folder).evaluation == kept


@pytest.mark.parametrize("key", ["target_review", "corpus_sha256"])
def test_an_evaluation_of_another_run_is_refused(world, tmp_path, key):
    run = write_run(world, tmp_path / "run")
    write_evaluation(run, 1.0)
    edit_json(run.folder / "evaluation.json", **{key: "include"})
    with pytest.raises(UserError, match=f"evaluation.json differs from its run in {key}"):
        print(sasnet_jax.load_run(run.folder).evaluation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format version 1, this program reads 2"),
        ({"config": {"heating": "gas"}}, "another version"),
        ({"stores": None}, "config.json is damaged .*stores"),
    ],
)
def test_a_folder_that_is_no_run_of_this_version_is_refused(world, tmp_path, change, message):
    run = write_run(world, tmp_path / "run")
    if "config" in change:
        change = {"config": run.record.config | change["config"]}
    edit_json(run.folder / "config.json", **change)
    with pytest.raises(UserError, match=message):
        sasnet_jax.load_run(run.folder)
    with pytest.raises(UserError, match="does not exist"):
        sasnet_jax.load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"config": []}', "config.json is damaged"),
        ("config.json", '{"stores": [{}]}', "config.json is damaged"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl is damaged"),
        ("metrics.jsonl", "null\n", "metrics.jsonl is damaged"),
        ("metrics.jsonl", epoch_of(1, 2).line.decode(), "metrics.jsonl is damaged"),
        ("evaluation.json", '{"validation": {}}', "evaluation.json is damaged"),
        ("zscore.npz", "", "zscore.npz was changed after it was written"),
        ("zscore.npz", None, "zscore.npz does not exist"),
    ],
)
def test_a_damaged_file_is_one_line(world, tmp_path, name, content, message):
    run = write_run(world, tmp_path / "run")
    write_evaluation(run, 1.0)
    path = run.folder / name
    if content is None:
        path.unlink()
    elif name.endswith(".json"):
        edit_json(path, **json.loads(content))
    elif name == "zscore.npz":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        opened = sasnet_jax.load_run(run.folder)
        opened.transform()
        print(opened.evaluation)
