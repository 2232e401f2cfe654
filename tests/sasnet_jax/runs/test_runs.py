import json
import shutil

import pytest
from conftest import assert_one_line_mistake, edit_json, run_command
from written_runs import write_evaluation, write_run

from sasnet_jax.model.run import Run
from sasnet_jax.runs import command as runs


def _files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Two runs, one of them leaky and ended early, and what else may lie beside runs."""
    folder = tmp_path_factory.mktemp("runs")
    write_evaluation(write_run(world, folder / "first", losses=(1.1, 1.05)), 1.05, accuracy=0.4321)
    settings = {"review_features": "text+stars", "target_review": "include", "seed": 3}
    losses = (1.0, 0.9876, 0.99)
    write_run(world, folder / "more" / "leaky", losses=losses, epochs=5, **settings)

    def copied(name):
        return shutil.copytree(folder / "first", folder / name)

    (copied("begun") / "metrics.jsonl").unlink()
    shutil.rmtree(folder / "begun" / "checkpoints")
    (folder / "begun" / "evaluation.json").unlink()
    edit_json(copied("old") / "config.json", format_version=0)
    other = Run(folder / "first").record.config | {"heating": "gas"}
    edit_json(copied("other") / "config.json", config=other)
    (copied("torn") / "config.json").write_text('{"format_version": 2, "conf')
    (copied("unreadable") / "metrics.jsonl").write_text("{]\n")
    (copied("strange") / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("precious")
    return folder


def _table(text):
    """The lines of a table by their first cell, each by column."""
    lines = [line for line in text.splitlines() if "  " in line]
    names, *rows = ([cell.strip() for cell in line.split("  ") if cell] for line in lines)
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_the_table_says_of_each_run_what_its_files_say(folder, world, capsys):
    runs.run(runs.RunsConfig(folder=str(folder)))
    table = _table(capsys.readouterr().out)
    assert set(table) == {"begun", "first", "more/leaky"}
    evaluation = json.loads((folder / "first" / "evaluation.json").read_text())
    for name, state in (("first", "finished"), ("more/leaky", "epoch 3 of 5")):
        row = table[name]
        assert row["state"] == state
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        best = min(map(json.loads, lines), key=lambda record: record["validation_log_loss"])
        assert int(row["best epoch"]) == best["epoch"]
        assert float(row["val log loss"]) == pytest.approx(best["validation_log_loss"], abs=5e-5)
        assert float(row["val accuracy"]) == pytest.approx(best["validation_accuracy"], abs=5e-5)
        assert row["corpus"] == world.corpus.sha256[:8]
    assert float(table["first"]["test accuracy"]) == pytest.approx(
        evaluation["test"]["accuracy"], abs=5e-5
    )
    assert (table["first"]["inputs"], table["first"]["protocol"]) == ("text", "target excluded")
    assert table["first"]["seed"] == "0"
    leaky = table["more/leaky"]
    assert (leaky["inputs"], leaky["protocol"]) == ("text+stars", "target included (leaky)")
    assert (leaky["seed"], leaky["test accuracy"]) == ("3", "-")
    assert (table["begun"]["state"], table["begun"]["val log loss"]) == ("epoch 0 of 2", "-")


@pytest.mark.parametrize(
    ("name", "mention"),
    [
        ("old", "format version 0"),
        ("other", "another version"),
        ("torn", "not valid JSON"),
        ("unreadable", "metrics.jsonl is damaged"),
        ("strange", "metrics.jsonl is damaged"),
        ("thesis", "holds no run"),
    ],
)
def test_what_is_no_whole_run_is_shown_as_such(folder, capsys, name, mention):
    runs.run(runs.RunsConfig(folder=str(folder)))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith(f"{name}: ")]
    assert mention in line
    runs.run(runs.RunsConfig(run=(str(folder / name),)))
    assert mention in capsys.readouterr().out


def test_comparison_shows_exactly_the_settings_that_differ(folder, capsys):
    pair = (str(folder / "first"), str(folder / "more" / "leaky"))
    runs.run(runs.RunsConfig(run=pair, compare=True))
    table = _table(capsys.readouterr().out)
    differing = {"review features", "target review", "seed", "epochs"}
    outcome = {"name", "protocol", "val log loss", "val accuracy"}
    assert set(table["first"]) == differing | outcome
    assert (table["first"]["seed"], table["leaky"]["seed"]) == ("0", "3")
    runs.run(runs.RunsConfig(run=(pair[0], str(folder / "begun")), compare=True))
    assert capsys.readouterr().out == "the runs do not differ in any setting\n"


def test_the_command_changes_no_run(folder):
    before = _files(folder)
    result = run_command("sasnet_jax.runs", f"--folder={folder}")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert _files(folder) == before


def test_an_evaluation_of_an_earlier_epoch_is_not_shown(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "first", tmp_path / "run")
    validation = json.loads((run / "evaluation.json").read_text())["validation"]
    validation["log_loss"] += 0.1
    edit_json(run / "evaluation.json", validation=validation)
    runs.run(runs.RunsConfig(folder=str(tmp_path)))
    row = _table(capsys.readouterr().out)["run"]
    assert row["test accuracy"] == "-" and "evaluate again" in row["state"]


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        ((), ("--folder", "--run")),
        (("--folder=/nowhere",), ("/nowhere",)),
        (("--run=/nowhere", "--sort=name"), ("Unknown", "sort")),
    ],
)
def test_a_mistake_is_one_line(arguments, mentions):
    assert_one_line_mistake(run_command("sasnet_jax.runs", *arguments), *mentions)
