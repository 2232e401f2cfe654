import json
from pathlib import Path

import pytest
from conftest import edit_json
from written_runs import write_evaluation, write_run

from sasnet_jax.cli import UserError
from sasnet_jax.leakage import command as leakage


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """The accuracies of runs alike but for their protocol."""
    folder = tmp_path_factory.mktemp("runs")
    accuracies = {}
    for target_review, accuracy in (("exclude", 0.4375), ("include", 0.5625)):
        run = write_run(world, folder / f"net-{target_review}", target_review=target_review)
        write_evaluation(run, 1.0, accuracy=accuracy)
        accuracies[str(run.folder)] = accuracy
    return accuracies


def _config(world, output, **settings):
    return leakage.LeakageConfig(corpus=str(world.corpus_folder), output=str(output), **settings)


def test_every_model_is_shown_with_the_target_out_and_in(world, runs, tmp_path, capsys):
    output = tmp_path / "out"
    leakage.run(_config(world, output, subset=300, run=tuple(runs)))
    printed = capsys.readouterr().out
    found = json.loads((output / "leakage.json").read_text())
    names = ["majority", "bias", "tfidf_svm", "tfidf_stars_svm"]
    names += ["tfidf_logistic", "tfidf_stars_logistic", "oracle"]
    for reading in ("subset", "subset_corpus", "all"):
        rows = {row["model"]: row for row in found["accuracy"] if row["reading"] == reading}
        assert list(rows)[: len(names)] == names
        for target_review in ("exclude", "include"):
            path = output / f"{reading}_{target_review}" / "baselines.json"
            models = json.loads(path.read_text())["models"]
            for name in names:
                assert rows[name][target_review] == models[name]["test"]["accuracy"]
        for name in ("majority", "oracle"):  # they look at no context
            assert rows[name]["leak"] == 0
    by_run = {row["model"]: row for row in found["accuracy"]}["net"]
    excluded, included = runs.values()
    assert (by_run["exclude"], by_run["include"]) == (excluded, included)
    assert by_run["leak"] == pytest.approx(included - excluded)
    assert found["sentence"] in printed and "included (leaky)" in printed
    # The same command again reads what is there.
    leakage.run(_config(world, output, subset=300, run=tuple(runs)))
    assert capsys.readouterr().out.count("already complete") == 6


def test_the_sentence_is_arithmetic():
    numbers = {
        ("majority", "nothing"): (0.4, 0.4),
        ("weak", "text"): (0.4, 0.5),
        ("good_stars", "text"): (0.5, 0.7),  # of a store that is called good_stars
        ("oracle", "target"): (0.8, 0.8),
        ("bias", "stars"): (0.5, 0.9),  # there the leak is the label
        ("good", "text+stars"): (0.5, 0.9),
    }
    rows = [
        leakage.Row(
            reading="all",
            model=name,
            label=name,
            sees=sees,
            fit="svm",
            exclude=exclude,
            include=include,
            leak=include - exclude,
            validation_include=include,
        )
        for (name, sees), (exclude, include) in numbers.items()
    ]
    run = leakage.Row(reading="all", model="majority", exclude=0.9, include=0.9, leak=0.0)
    rows.append(run)  # is called like a baseline
    majority = [
        line for line in leakage.table(rows, {"all": ""}).splitlines() if "majority" in line
    ]
    assert ["0.400" in majority[0], "0.900" in majority[1]] == [True, True]
    sentence = leakage.explained(rows)
    for part in ("67% of what good_stars gains", "0.700", "0.500", "0.400", "0.800"):
        assert part in sentence


def test_runs_that_do_not_belong_are_refused(world, runs, tmp_path):
    first = next(iter(runs))
    path = Path(first) / "evaluation.json"
    before = path.read_bytes()
    try:
        edit_json(path, corpus_sha256="0" * 64)
        with pytest.raises(UserError, match="differs from its run in corpus_sha256"):
            leakage.run(_config(world, tmp_path / "out", run=(first,)))
        path.unlink()
        with pytest.raises(UserError, match="has no evaluation of its best epoch"):
            leakage.run(_config(world, tmp_path / "out", run=(first,)))
    finally:
        path.write_bytes(before)
    assert not (tmp_path / "out").exists()
