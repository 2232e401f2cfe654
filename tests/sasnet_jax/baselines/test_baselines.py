import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import edit_reviews, write_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import SVC

from sasnet_jax import files
from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines import logistic, protocol, registry, svm
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.corpus import CLASSES, read_corpus
from sasnet_jax.corpus.splits import SPLITS
from sasnet_jax.scores import predictions

_MODELS = len(registry.baselines_of(["one store"]))
_RECORDS = 1 + _MODELS + 1  # begun.json before and after each model, then baselines.json


def _run(world, output, **settings):
    stores = settings.pop("store", (str(world.store_folder),))
    config = BaselinesConfig(
        corpus=str(world.corpus_folder), store=stores, output=str(output), **settings
    )
    baselines.run(config)
    return json.loads((output / "baselines.json").read_text())


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """Folders of the world's baselines, by target_review."""
    folder = tmp_path_factory.mktemp("made")
    for target_review in ("exclude", "include"):
        _run(world, folder / target_review, target_review=target_review)
    return folder


def _models(folder):
    return json.loads((folder / "baselines.json").read_text())["models"]


def test_majority_is_the_most_frequent_training_class(world, made):
    found = _models(made / "exclude")["majority"]["test"]
    corpus = world.corpus
    most = np.bincount(corpus.label[corpus.rows("train")]).argmax()
    assert found["accuracy"] == (corpus.label[corpus.rows("test")] == most).mean()


def _candidate(seed, n=400, width=6):
    """One block of inputs, as `protocol.scaled` makes them, and labels, of each split."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(3, width))
    sizes = {"train": n, "validation": 120, "test": 120}
    label = {split: rng.integers(0, 3, size).astype(np.int8) for split, size in sizes.items()}
    inputs = {
        split: (centers[one] + 1.5 * rng.normal(size=(one.size, width))).astype(np.float32)
        for split, one in label.items()
    }
    return [(1.0, protocol.scaled(inputs))], label


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_svm_is_scikit_learns_and_its_probabilities_keep_its_choice(monkeypatch, kernel):
    monkeypatch.setattr(svm, "KERNELS", (kernel,))
    candidate, label = _candidate(1)
    _, model, chosen = svm.fit([candidate], label, seed=0)
    train, test = (protocol.joined(candidate, split) for split in ("train", "test"))
    reference = SVC(C=chosen["C"], kernel=kernel, gamma=1.0).fit(train, label["train"])
    probability = model.predict(test)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-6)
    same = probability.argmax(axis=1) == reference.predict(test)
    assert same.mean() >= 0.99  # near ties may differ


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_scores_are_those_of_scikit_learn_and_do_not_depend_on_the_batch(monkeypatch, kernel):
    monkeypatch.setattr(svm, "KERNELS", (kernel,))
    candidate, label = _candidate(3, width=8)
    _, model, chosen = svm.fit([candidate], label, seed=0)
    train, test = (protocol.joined(candidate, split) for split in ("train", "test"))
    reference = SVC(C=chosen["C"], kernel=kernel, gamma=1.0, tol=1e-5)
    expected = reference.fit(train, label["train"]).decision_function(test)
    scores = model.scores(test)
    same_votes = np.round(scores) == np.round(expected)  # a margin of 0 may fall either way
    assert same_votes.mean() > 0.98
    np.testing.assert_allclose(scores[same_votes], expected[same_votes], atol=5e-3)
    alone = np.concatenate([model.scores(test[row : row + 1]) for row in range(90)])
    np.testing.assert_allclose(alone, scores[:90], atol=1e-5)


def test_svm_settings_are_the_best_on_validation_by_brute_force():
    candidate, label = _candidate(5, n=200)
    noise = protocol.scaled(_candidate(6, n=200)[0][0][1])
    candidates = [candidate, [candidate[0], (2.0, noise)]]
    index, _, chosen = svm.fit(candidates, label, seed=0)
    accuracy = {}
    for i, one in enumerate(candidates):
        train, validation = (protocol.joined(one, split) for split in ("train", "validation"))
        gamma = 1 / train.var(axis=0).sum()
        for kernel in svm.KERNELS:
            for penalty in svm.PENALTIES:
                scaled = penalty if kernel == "rbf" else penalty * gamma
                model = SVC(C=scaled, kernel=kernel, gamma=gamma).fit(train, label["train"])
                accuracy[i, kernel, penalty] = model.score(validation, label["validation"])
    best = max(accuracy.values())
    assert chosen["tuned_accuracy"] == pytest.approx(best, abs=1.01 / 120)
    found = [
        v for (i, kernel, _), v in accuracy.items() if (i, kernel) == (index, chosen["kernel"])
    ]
    assert max(found) == pytest.approx(best, abs=1.01 / 120)


def test_logistic_regression_has_the_best_penalty_of_the_grid():
    candidate, label = _candidate(2, n=200)
    _, model, chosen = logistic.fit([candidate], label, seed=0)
    train, validation = (protocol.joined(candidate, split) for split in ("train", "validation"))
    losses = {}
    for penalty in logistic.PENALTIES:
        one = LogisticRegression(C=penalty).fit(train, label["train"])
        losses[penalty] = log_loss(label["validation"], one.predict_proba(validation))
    assert chosen["C"] == min(losses, key=losses.get)
    expected = LogisticRegression(C=chosen["C"]).fit(train, label["train"])
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-3)


def test_scaled_blocks_have_unit_variance_and_keep_the_held_out_on_their_scale():
    rng = np.random.default_rng(0)
    inputs = {split: rng.normal(3, 5, (50, 4)).astype(np.float32) for split in ("train", "test")}
    found = protocol.scaled(inputs)
    assert found["train"].var(axis=0).sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found["train"].mean(axis=0), 0, atol=1e-6)
    factor = np.sqrt(inputs["train"].var(axis=0).sum())
    expected = (inputs["test"] - inputs["train"].mean(axis=0)) / factor
    np.testing.assert_allclose(found["test"], expected, rtol=1e-4, atol=1e-6)
    constant = {"train": np.ones((3, 2), np.float32)}
    assert not protocol.scaled(constant)["train"].any()


@pytest.mark.parametrize("averages_over", ["corpus", "subset"])
def test_a_subset_is_learned_from_alone_and_averages_are_over_what_was_asked(world, averages_over):
    corpus = world.corpus
    asked = protocol.protocol_of(corpus, "exclude", subset=200, averages_over=averages_over, seed=1)
    assert [asked.rows[split].size for split in SPLITS] == [160, 20, 20]
    chosen = set(np.concatenate(list(asked.rows.values())).tolist())
    features = np.random.default_rng(0).normal(size=(corpus.user.size, 3)).astype(np.float32)
    found = protocol.averages(asked, features)
    for split in SPLITS:
        assert (corpus.split[asked.rows[split]] == split).all()
        for i, target in enumerate(asked.rows[split]):
            for side, entity in enumerate((corpus.user, corpus.business)):
                seen = (entity == entity[target]) & (np.arange(corpus.user.size) != target)
                seen &= corpus.split == (split if side == 0 else "train")
                if averages_over == "subset":
                    seen &= np.isin(np.arange(corpus.user.size), list(chosen))
                expected = features[seen].mean(axis=0) if seen.any() else np.zeros(3)
                found_here = found[split][i, 3 * side : 3 * side + 3]
                np.testing.assert_allclose(found_here, expected, rtol=1e-4, atol=1e-5)


def _with_noise(world, folder, row):
    """The world, except that one review has another text, embedding and stars."""
    corpus_folder = shutil.copytree(world.corpus_folder, folder / "corpus")
    label = (world.corpus.label[row] + 1) % 3
    here = pl.int_range(pl.len()) == row
    noise = {"text": "zebra good awful", "stars": (2.0, 4.0, 5.0)[label], "label": label}
    types = {"text": pl.String, "stars": pl.Float32, "label": pl.Int8}
    edit_reviews(
        corpus_folder,
        **{k: pl.when(here).then(pl.lit(v, types[k])).otherwise(k) for k, v in noise.items()},
    )
    embedded = np.load(world.store_folder / "mean.npy")
    embedded[row] = np.random.default_rng(0).normal(size=embedded.shape[1]) * 20
    write_store(folder / "store", read_corpus(corpus_folder), embedded)
    return dataclasses.replace(world, corpus_folder=corpus_folder, store_folder=folder / "store")


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_every_baseline_ignores_the_target_review(world, made, tmp_path, target_review):
    """The leak test, of the whole command: a test target's text, embedding and stars become noise.

    What is fitted is held, because everything is fitted on training and chosen on validation.
    """
    corpus = world.corpus
    test = corpus.rows("test")
    user, business = contexts_of(corpus, "exclude")
    row = int(test[(user.size[test] > 0) & (business.size[test] > 0)][3])
    noisy = _with_noise(world, tmp_path, row)
    after = _run(noisy, tmp_path / "after", target_review=target_review)
    assert after["target_review"] == target_review
    names = [f"p_{name}" for name in CLASSES]

    def predicted(folder, model):
        table = pl.read_parquet(folder / "predictions" / f"{model}.parquet")
        return table.filter(pl.col("row") == row).select(names).row(0)

    assert list(after["models"]) == [
        *("majority", "bias"),
        *("tfidf_svm", "tfidf_stars_svm", "tfidf_logistic", "tfidf_stars_logistic"),
        *("store_svm", "store_stars_svm", "store_logistic", "store_stars_logistic"),
        "oracle",
    ]
    for model in after["models"]:
        before = predicted(made / target_review, model)
        same = before == predicted(tmp_path / "after", model)
        if model == "majority":
            assert same
        else:  # with the target included the same change must be seen; the oracle always sees it
            assert same == (target_review == "exclude" and model != "oracle"), model


def test_every_baseline_but_an_svm_has_a_log_loss(made):
    for folder in made.iterdir():
        for name, model in _models(folder).items():
            assert model["fit"] == "svm" or model["test"]["log_loss"] is not None, name


def test_the_interaction_files_are_opened_once_however_many_baselines_there_are(
    world, tmp_path, opened
):
    _run(world, tmp_path / "out", subset=200, store=())
    assert len(opened) == 4  # both sides, for the protocol and for the lengths of histories


def test_oracle_reads_the_target_and_knows_more(world, made):
    """Texts and embeddings of the world tell the stars of their own review."""
    models = _models(made / "exclude")
    assert "own text" in models["oracle"]["chosen"]["reads"]
    others = [one["test"]["accuracy"] for name, one in models.items() if name != "oracle"]
    assert models["oracle"]["test"]["accuracy"] > max(others)


def test_the_same_baselines_are_not_made_again_and_others_do_not_replace_them(world, made, capsys):
    before = (made / "exclude" / "baselines.json").read_bytes()
    _run(world, made / "exclude")
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with other classes"):
        _run(world, made / "exclude", classes=5)
    assert (made / "exclude" / "baselines.json").read_bytes() == before


def _files(folder):
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("[!.]*.*")}
    assert found
    return found


class _Killed(BaseException):
    pass


def _kill(monkeypatch, module, name, call, when):
    """Stops the process, as it were, before or after a call of `module.name`, counted from 1."""
    function, calls = getattr(module, name), []

    def killing(*args):
        calls.append(args)
        if len(calls) == call and when == "before":
            raise _Killed
        returned = function(*args)
        if len(calls) == call:
            raise _Killed
        return returned

    monkeypatch.setattr(module, name, killing)


@pytest.mark.parametrize(
    ("module", "name", "call", "when"),
    [
        (files, "write_record", 1, "before"),
        (files, "write_record", 1, "after"),
        (predictions, "write", 5, "before"),
        (predictions, "write", _MODELS, "after"),
        (files, "write_record", _RECORDS, "before"),  # of baselines.json
        (files, "write_record", _RECORDS, "after"),
    ],
)
def test_baselines_that_were_stopped_go_on_and_end_the_same(
    world, made, tmp_path, monkeypatch, module, name, call, when
):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        _kill(patch, module, name, call, when)
        with pytest.raises(_Killed):
            _run(world, output)
    complete = (output / "baselines.json").exists()
    assert complete == (call == _RECORDS and when == "after")
    begun = output / "begun.json"
    before = json.loads(begun.read_text())["models"] if begun.exists() else {}
    fitted = []
    with monkeypatch.context() as patch:
        write = predictions.write

        def noting(path, *args):
            fitted.append(path.stem)
            return write(path, *args)

        patch.setattr(predictions, "write", noting)
        _run(world, output)
    assert not set(before) & set(fitted)
    assert not begun.exists()
    assert _files(output) == _files(made / "exclude")


def test_begun_baselines_that_were_made_otherwise_or_are_damaged_are_refused(
    world, made, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        _kill(patch, predictions, "write", 4, "before")
        with pytest.raises(_Killed):
            _run(world, output)
    begun = output / "begun.json"
    whole = begun.read_text()
    with pytest.raises(UserError, match="made with other classes"):
        _run(world, output, classes=5)
    for damaged in (whole[:50], json.dumps(json.loads(whole) | {"models": [], "sha256": None})):
        begun.write_text(damaged)
        with pytest.raises(UserError, match=r"begun.json is .*: remove .*out and run"):
            _run(world, output)
    begun.write_text(whole)
    (output / "predictions" / "tfidf_svm.parquet").unlink()
    _run(world, output)
    assert _files(output) == _files(made / "exclude")


def test_five_classes_are_predicted(world, tmp_path):
    found = _run(world, tmp_path / "out", classes=5, store=())["models"]
    assert len(found["bias"]["test"]["confusion"]) == 5
    assert found["bias"]["test"]["stars_rmse"] < found["majority"]["test"]["stars_rmse"] + 0.1
    table = pl.read_parquet(tmp_path / "out" / "predictions" / "bias.parquet")
    assert table.columns[3:] == ["p_1", "p_2", "p_3", "p_4", "p_5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset": 10**6}, "--subset=1000000 needs 800000 train reviews"),
        ({"subset": 2}, "--subset=2 needs 0 validation"),
    ],
)
def test_a_subset_that_cannot_be_drawn_is_refused(world, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        _run(world, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_meant_are_refused():
    paths = {"corpus": "c", "output": "o"}
    for settings in ({"averages_over": "subset"}, {"classes": 4}, {"subset": -1}, {"seed": -1}):
        with pytest.raises(UserError, match=f"--{next(iter(settings))}="):
            BaselinesConfig(**paths, **settings)
