import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import TINY, assert_one_line_mistake, edit_json, run_command
from sklearn.naive_bayes import GaussianNB
from written_runs import write_run

from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines import protocol, registry
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.baselines.registry import Fitted, Kind
from sasnet_jax.baselines.results import BaselineResult, Baselines
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import CorpusRecord
from sasnet_jax.corpus.store import fit_zscore
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.evaluate.command import EvaluateConfig
from sasnet_jax.leakage import command as leakage
from sasnet_jax.leakage.command import LeakageConfig
from sasnet_jax.report import command as report
from sasnet_jax.report import models
from sasnet_jax.report.command import ReportConfig
from sasnet_jax.report.sources import Output, Sources
from sasnet_jax.scores import metrics, paper

_STORES = ("words", "words_normalized", "x_svm", "oracle", "my_tfidf", "logistic_stars", "{text}")


def test_stores_whose_names_look_like_others_are_not_confused():
    found = registry.baselines_of(_STORES)
    assert len({one.name for one in found}) == len(found) == 2 + 5 * (1 + len(_STORES))
    for store in _STORES:
        own = [one for one in found if one.store == store]
        assert {(one.features, one.sees) for one in own} == {
            ("embeddings", "text"),
            ("embeddings", "text+stars"),
            ("embeddings", "target"),
        }
        assert {one.label for one in own} == {
            f"{store} + SVM",
            f"{store} + SVM, stars too",
            f"{store} + logistic regression",
            f"{store} + logistic regression, stars too",
            f"oracle of {store}",
        }
    assert "oracle" not in {one.name for one in found}


def test_names_end_in_how_they_are_fitted_and_oracles_say_so():
    for one in registry.baselines_of(["words"]):
        if one.is_ceiling:
            assert "oracle" in one.name
        elif one.name not in ("majority", "bias"):
            assert one.name.endswith(f"_{one.fit}")


@pytest.mark.parametrize(
    ("stores", "name"),
    [
        (["tfidf"], "tfidf_svm"),
        (["words", "words"], "words_svm"),
        (["words", "words_stars"], "words_stars_svm"),
    ],
)
def test_stores_that_would_give_two_baselines_one_name_are_refused(world, tmp_path, stores, name):
    folders = [
        shutil.copytree(world.store_folder, tmp_path / str(i) / store)
        for i, store in enumerate(stores)
    ]
    result = run_command(
        "sasnet_jax.baselines",
        f"--corpus={world.corpus_folder}",
        f"--output={tmp_path / 'out'}",
        *(f"--store={folder}" for folder in folders),
    )
    assert_one_line_mistake(result, "--store", f"both be called {name}", "rename the folder")
    assert not (tmp_path / "out").exists()


def test_the_papers_number_stands_beside_the_store_that_it_is_of(world):
    """`words_svm` is the paper's Phi-3 here, `words_normalized_svm` is not."""
    phi3 = {"encoder": "phi3", "dim": 3072, "instruction": "Rate", "pooling": "attentional"}
    other = {"encoder": "words", "dim": 64, "instruction": None, "pooling": "mean"}
    known = {
        one.name: one
        for one in registry.baselines_of(["words", "words_normalized"])
        if not one.is_ceiling
    }
    scores = metrics.summarize(np.zeros(2, np.int8), np.eye(3)[:2])
    results = {
        name: BaselineResult(**one.description, validation=scores, test=scores, chosen={})
        for name, one in known.items()
    }
    found = Baselines(
        models=results,
        target_review="exclude",
        corpus_sha256="",
        stores={"words": phi3, "words_normalized": other},
        subset=0,
        averages_over="corpus",
        classes=3,
        seed=0,
        svm_library="",
        train_reviews=1,
    )
    output = Output(Path("folder"), found)
    nothing = dict.fromkeys(("stores", "runs", "comparisons", "quality", "leakage"), ())
    record = CorpusRecord(settings={"split": "by_user"}, texts_sha256="")
    sources = Sources(corpus=world.corpus, record=record, baselines=(output,), **nothing)
    shown = {group.first.name: group.first.paper for group in models.groups_of(sources)}
    assert shown["words_svm"] == paper.TABLE_2["phi3 + SVM"]
    assert shown["tfidf_svm"] == paper.TABLE_2["TF-IDF + SVM"]
    assert {name for name, row in shown.items() if row} == {"words_svm", "tfidf_svm"}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run."""
    return write_run(world, tmp_path_factory.mktemp("trained") / "net", **TINY).folder


def _report(world, output, **sources):
    report.run(ReportConfig(corpus=str(world.corpus_folder), output=str(output), **sources))
    return " ".join((output / "report.html").read_text().replace("<wbr>", "").split())


def test_a_line_in_the_registry_is_all_that_a_baseline_needs(
    world, trained, tmp_path, monkeypatch, capsys
):
    def fit(candidates, label, seed, name):
        inputs = protocol.joined(candidates[0], "train")
        model = GaussianNB().fit(inputs, label["train"])
        return Fitted(0, model.predict_proba, {"classes": len(model.classes_)})

    toy = Kind("{text}_toy_bayes", "{text} + naive Bayes", "text", "bayes")
    monkeypatch.setattr(registry, "KINDS", (*registry.KINDS, toy))
    monkeypatch.setitem(registry.FITS, "bayes", fit)
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    made = tmp_path / "leakage" / "all_exclude"
    leakage.run(LeakageConfig(**paths, output=str(tmp_path / "leakage"), subset=0))
    evaluate.run(
        EvaluateConfig(run=(str(trained),), baselines=str(made), output=str(tmp_path / "compared"))
    )
    assert capsys.readouterr().out.count("store_toy_bayes") >= 3

    # Fitted and saved: equal to the classifier by hand, on the same averages.
    corpus = world.corpus
    asked = protocol.protocol_of(corpus, "exclude")
    table = np.load(world.store_folder / "mean.npy")
    zscored = fit_zscore(table, asked.rows["train"])(table)
    inputs = protocol.scaled(protocol.averages(asked, zscored))
    reference = GaussianNB().fit(inputs["train"], corpus.label[asked.rows["train"]])
    saved = pl.read_parquet(made / "predictions" / "store_toy_bayes.parquet")
    found = saved.filter(split="test").select("p_bad", "p_good", "p_excellent").to_numpy()
    np.testing.assert_allclose(found, reference.predict_proba(inputs["test"]), atol=1e-5)
    description = {
        "label": "store + naive Bayes",
        "sees": "text",
        "features": "embeddings",
        "store": "store",
        "fit": "bayes",
    }
    written = json.loads((made / "baselines.json").read_text())["models"]
    compared = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    for one in (written, compared["models"]):
        assert description.items() <= one["store_toy_bayes"].items()
    assert "store_toy_bayes" in {one["baseline"] for one in compared["comparisons"]}

    # Shown: in Table 2, in the comparison and in the picture of the leak.
    page = _report(
        world,
        tmp_path,
        baselines=(str(made),),
        comparison=(str(tmp_path / "compared"),),
        leakage=(str(tmp_path / "leakage"),),
    )
    assert 'store + naive Bayes <small class="">text, target excluded</small>' in page
    assert "net against store + naive Bayes" in page
    assert ">store + naive Bayes, target excluded</span>" in page
    assert "toy_bayes" not in page


def _of_before(folder, name):
    """What a version without the descriptions wrote, and the folder's new place."""
    path = folder / name
    found = json.loads(path.read_text())
    listed = found["accuracy"] if name == "leakage.json" else found["models"].values()
    for model in listed:
        for key in ("label", "sees", "features", "store", "fit"):
            model.pop(key, None)
    edit_json(path, **found)
    return str(folder)


def test_what_an_earlier_version_wrote_is_refused_by_every_reader(world, trained, tmp_path):
    corpus = str(world.corpus_folder)
    leak = LeakageConfig(corpus=corpus, output=str(tmp_path / "leakage"), subset=0)
    leakage.run(leak)
    made = shutil.copytree(tmp_path / "leakage" / "all_exclude", tmp_path / "made")
    begun = shutil.copytree(made, tmp_path / "begun")
    (begun / "baselines.json").rename(begun / "begun.json")
    compared = tmp_path / "compared"
    against = EvaluateConfig(run=(str(trained),), baselines=str(made), output=str(compared))
    evaluate.run(against)
    of_before = {
        "baselines": _of_before(made, "baselines.json"),
        "comparison": _of_before(compared, "comparison.json"),
        "leakage": _of_before(tmp_path / "leakage", "leakage.json"),
    }
    _of_before(begun, "begun.json")
    _of_before(tmp_path / "leakage" / "all_exclude", "baselines.json")
    readers = [
        (baselines.run, BaselinesConfig(corpus=corpus, output=str(made)), "baselines"),
        (baselines.run, BaselinesConfig(corpus=corpus, output=str(begun)), "baselines"),
        (evaluate.run, against, "baselines"),
        (leakage.run, leak, "baselines"),
    ]
    commands = {"comparison": "evaluate --output"}
    for kind, folder in of_before.items():
        config = ReportConfig(corpus=corpus, output=str(tmp_path / "out"), **{kind: (folder,)})
        readers.append((report.run, config, commands.get(kind, kind)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    for run, config, command in readers:
        remedy = f"remove .* and run python -m sasnet_jax.{command} again"
        with pytest.raises(UserError, match=f"json is damaged .*: {remedy}"):
            run(config)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
