import json
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import assert_one_line_mistake, run_command, write_store
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import SVC

from sasnet_jax import baselines, evaluate
from sasnet_jax.baselines import BaselinesConfig
from sasnet_jax.data import embeddings, interactions
from sasnet_jax.data.corpus import CLASSES
from sasnet_jax.evaluation import svm
from sasnet_jax.training import loop
from sasnet_jax.training.config import TrainConfig


def _run(world, output, **settings):
    stores = settings.pop("store", (str(world.store_folder),))
    config = BaselinesConfig(
        corpus=str(world.corpus_folder), store=stores, output=str(output), **settings
    )
    baselines.run(config)
    return json.loads((output / "baselines.json").read_text())


def test_majority_is_the_most_frequent_training_class(world, tmp_path):
    found = _run(world, tmp_path / "out")["models"]["majority"]["test"]
    corpus = world.corpus
    most = np.bincount(corpus.label[corpus.rows("train")]).argmax()
    assert found["accuracy"] == (corpus.label[corpus.rows("test")] == most).mean()


def test_svm_is_scikit_learns_and_its_probabilities_keep_its_choice():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(3, 6))
    label = rng.integers(0, 3, 400).astype(np.int8)
    pairs = (centres[label] + rng.normal(size=(400, 6))).astype(np.float32)
    model = svm.fit(pairs[:300], label[:300], pairs[300:], label[300:], seed=0)
    expected = SVC(C=model.penalty).fit(pairs[:300], label[:300]).predict(pairs[300:])
    probability = model.predict(pairs[300:])
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-6)
    assert (probability.argmax(axis=1) == expected).mean() >= 0.99  # near ties may differ


def test_scores_are_those_of_scikit_learn_and_do_not_depend_on_the_batch():
    rng = np.random.default_rng(3)
    label = np.repeat([0, 0, 0, 1, 2, 2], 80).astype(np.int8)
    pairs = (rng.normal(size=(480, 8)) + 0.3 * label[:, None]).astype(np.float32)
    model = svm.fit(pairs[:400], label[:400], pairs[400:], label[400:], seed=0)
    reference = SVC(C=model.penalty).fit(pairs[:400].astype(np.float64), label[:400])
    scores = svm.class_scores(model.model, pairs)
    expected = reference.decision_function(pairs.astype(np.float64))
    same_votes = np.round(scores) == np.round(expected)  # a margin of 0 may fall either way
    assert same_votes.mean() > 0.99
    np.testing.assert_allclose(scores[same_votes], expected[same_votes], atol=2e-3)
    alone = np.concatenate(
        [svm.class_scores(model.model, pairs[row : row + 1]) for row in range(90)]
    )
    np.testing.assert_allclose(alone, scores[:90], atol=1e-5)


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_baselines_ignore_the_target_review(world, tmp_path, target_review):
    """The leak test: one test target's embedding becomes noise; what is fitted is held, because
    z-score and SVM are fitted on training rows."""
    corpus = world.corpus
    before = _run(world, tmp_path / "before", target_review=target_review)
    table = np.load(world.store_folder / "mean.npy")
    row = int(corpus.rows("test")[3])
    table[row] = np.random.default_rng(0).normal(size=table.shape[1]) * 20
    store = write_store(tmp_path / "store", corpus, table)
    after = _run(world, tmp_path / "after", target_review=target_review, store=(str(store),))
    assert before["target_review"] == after["target_review"] == target_review

    def predicted(folder):
        path = tmp_path / folder / "predictions" / "store_svm.parquet"
        names = [f"p_{name}" for name in CLASSES]
        return pl.read_parquet(path).filter(pl.col("row") == row).select(names).row(0)

    assert (predicted("before") == predicted("after")) == (target_review == "exclude")


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_what_every_svm_sees_ignores_the_target_review(world, target_review):
    """Text and embedding of several held-out targets become noise, vectorizer and z-score held."""
    corpus = world.corpus
    stores = [embeddings.open_store(world.store_folder, corpus)]
    contexts = interactions.contexts_of(corpus, target_review)
    tfidf = TfidfVectorizer(dtype=np.float32).fit(corpus.texts()).transform(corpus.texts())
    zscored = embeddings.fit_zscore(stores[0].table, corpus.rows("train"))(stores[0].table)
    for features in (tfidf.toarray(), zscored):
        for row in corpus.rows("test")[:5]:
            noisy = features.copy()
            noisy[row] = np.random.default_rng(0).normal(size=features.shape[1])
            pairs = [svm.pair_averages(x, contexts, np.array([row])) for x in (features, noisy)]
            assert np.array_equal(*pairs) == (target_review == "exclude")


def test_evaluate_shows_baselines_of_the_same_protocol_only(world, tmp_path, capsys):
    small = {"width": 16, "depth": 1, "feed_forward": 16, "epochs": 1, "eval_sets": 1}
    loop.train(
        TrainConfig(
            corpus=str(world.corpus_folder),
            store=(str(world.store_folder),),
            output=str(tmp_path / "run"),
            **small,
        )
    )
    _run(world, tmp_path / "excluded")
    _run(world, tmp_path / "included", target_review="include")
    assert "target included (leaky)" in capsys.readouterr().out
    run = str(tmp_path / "run")
    evaluate.run(evaluate.EvaluateConfig(run=(run,), baselines=str(tmp_path / "excluded")))
    table = capsys.readouterr().out
    assert "target excluded" in table
    for name in ("majority", "tfidf_svm", "store_svm", "sasnet"):
        assert name in table
    result = run_command(
        "sasnet_jax.evaluate", f"--run={run}", f"--baselines={tmp_path / 'included'}"
    )
    assert_one_line_mistake(result, "target_review")


def test_evaluate_refuses_a_store_that_changed(world, tmp_path):
    store = shutil.copytree(world.store_folder, tmp_path / "store")
    small = {"width": 16, "depth": 1, "feed_forward": 16, "epochs": 1, "eval_sets": 1}
    paths = {"corpus": str(world.corpus_folder), "store": (str(store),)}
    loop.train(TrainConfig(**paths, output=str(tmp_path / "run"), **small))
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["weights_sha256"] = "1" * 64
    (store / "manifest.json").write_text(json.dumps(manifest))
    result = run_command("sasnet_jax.evaluate", f"--run={tmp_path / 'run'}")
    assert_one_line_mistake(result, "store", "not the one")
    result = run_command("sasnet_jax.evaluate", f"--run={tmp_path / 'nowhere'}")
    assert_one_line_mistake(result, "config.json")
