import dataclasses
import json
import math

import msgspec
import numpy as np
import polars as pl
import pytest
from conftest import small_files
from sklearn import metrics as reference

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.corpus import CLASS_NAMES
from sasnet_jax.scores import metrics, predictions


def _random(classes, n=300, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n).astype(np.int8)
    probability = rng.dirichlet(np.ones(classes), n)
    probability[np.arange(n), label] += 0.2
    return label, probability / probability.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [3, 5])
def test_metrics_equal_scikit_learns(classes):
    label, probability = _random(classes)
    predicted = probability.argmax(axis=1)
    found = metrics.summarize(label, probability)
    assert found.confusion == reference.confusion_matrix(label, predicted).tolist()
    expected = {
        "accuracy": reference.accuracy_score(label, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(label, predicted),
        "quadratic_kappa": reference.cohen_kappa_score(label, predicted, weights="quadratic"),
        "log_loss": reference.log_loss(label, probability),
    }
    for average in ("macro", "weighted", "micro"):
        expected[f"{average}_f1"] = reference.f1_score(label, predicted, average=average)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value), name
    assert found.undefined == {}
    columns = reference.precision_recall_fscore_support(label, predicted)
    names = ("precision", "recall", "f1", "support")
    for i, one in enumerate(CLASS_NAMES[classes]):
        for name, column in zip(names, columns, strict=True):
            assert getattr(found.per_class[one], name) == pytest.approx(column[i])


def test_calibration_error_equals_a_loop_over_reviews():
    label, probability = _random(3, 400)
    probability[0] = [0, 1, 0]  # a confidence of exactly 1 belongs to the last bin
    bins = [[] for _ in range(metrics.BINS)]
    for one, row in zip(label, probability, strict=True):
        place = min(math.floor(row.max() * metrics.BINS), metrics.BINS - 1)
        bins[place].append((row.max(), float(row.argmax() == one)))
    expected = sum(
        len(found) / 400 * abs(np.mean([c for c, _ in found]) - np.mean([r for _, r in found]))
        for found in bins
        if found
    )
    assert metrics.calibration_error(label, probability) == pytest.approx(expected)
    certain = np.eye(3)[label]
    assert metrics.calibration_error(label, certain) == 0
    assert metrics.calibration_error(((label + 1) % 3).astype(np.int8), certain) == 1


def test_expected_stars_of_five_classes():
    label, probability = _random(5)
    found = metrics.summarize(label, probability)
    stars = [sum((i + 1) * p for i, p in enumerate(row)) for row in probability]
    assert found.expected_stars == pytest.approx(np.mean(stars))
    rmse = math.sqrt(reference.mean_squared_error(label + 1.0, stars))
    assert found.stars_rmse == pytest.approx(rmse)
    assert "stars_rmse" not in msgspec.to_builtins(metrics.summarize(*_random(3)))


def test_what_an_absent_class_leaves_undefined_is_said():
    label, probability = _random(3)
    here = label != 1
    found = metrics.summarize(label[here], probability[here])
    for name in ("macro_f1", "balanced_accuracy"):
        assert getattr(found, name) is None and found.undefined[name] == "no review is good"
    assert found.accuracy is not None and found.weighted_f1 is not None
    good = found.per_class["good"]
    assert good.recall is None and good.precision == 0 and good.support == 0
    assert "no review is good" in good.undefined["recall"]


def test_nothing_is_ever_nan():
    nothing = metrics.summarize(np.zeros(0, np.int8), np.zeros((0, 3)))
    assert nothing.reviews == 0 and nothing.accuracy is None and nothing.log_loss is None
    assert set(nothing.undefined.values()) == {"there is no review"}
    alike = metrics.summarize(np.zeros(4, np.int8), np.tile([0.8, 0.1, 0.1], (4, 1)))
    assert alike.quadratic_kappa is None and alike.accuracy == 1
    assert alike.per_class["good"].f1 is None
    for found in (nothing, alike, metrics.summarize(np.zeros(0, np.int8), np.zeros((0, 5)))):
        json.dumps(msgspec.to_builtins(found), allow_nan=False)


def test_histories_part_the_reviews(world):
    corpus = world.corpus
    rows = corpus.rows("test")
    probability = _random(3, rows.size)[1]
    user = contexts_of(corpus, "exclude").user
    found = metrics.by_history(corpus.label[rows], probability, user.size[rows])
    other = [int((corpus.user == corpus.user[row]).sum()) - 1 for row in rows]
    for name, (low, high) in {"0": (0, 0), "1": (1, 1), "2-4": (2, 4), "10+": (10, 99)}.items():
        here = np.array([low <= n <= high for n in other])
        assert found[name].reviews == here.sum()
        if here.any():
            right = probability[here].argmax(axis=1) == corpus.label[rows[here]]
            assert found[name].accuracy == pytest.approx(right.mean())
    assert sum(one.reviews for one in found.values()) == rows.size


@pytest.mark.parametrize("classes", [3, 5])
def test_predictions_are_read_as_they_were_written(world, tmp_path, classes):
    corpus = world.corpus
    rows = np.concatenate([corpus.rows("validation"), corpus.rows("test")])
    probability = _random(classes, rows.size)[1]
    sha256 = predictions.write(tmp_path / "p.parquet", corpus, rows, probability)
    found = predictions.read(tmp_path / "p.parquet", corpus, sha256, "again")
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.probability, probability)
    names = {3: ["p_bad", "p_good", "p_excellent"], 5: ["p_1", "p_2", "p_3", "p_4", "p_5"]}
    columns = pl.read_parquet(tmp_path / "p.parquet").columns
    assert columns == ["row", "split", "label", *names[classes]]


def test_predictions_that_do_not_fit_on_the_disk_are_one_line(world, tmp_path):
    """Polars raises an error of its own."""
    rows = world.corpus.rows("test")
    path = tmp_path / "p.parquet"
    with (
        small_files(1000),
        pytest.raises(UserError, match=f"{path} cannot be written: File too large"),
    ):
        predictions.write(path, world.corpus, rows, _random(3, rows.size)[1])
    assert not path.exists()


def test_predictions_of_another_split_are_refused(world, tmp_path):
    corpus = world.corpus
    rows = corpus.rows("test")
    path = tmp_path / "p.parquet"
    predictions.write(path, corpus, rows, _random(3, rows.size)[1])
    other = dataclasses.replace(corpus, split=np.roll(corpus.split, 7))
    with pytest.raises(UserError, match="does not predict the reviews of"):
        predictions.read(path, other, None, "again")
    columns = ("user", "business", "stars", "label", "date", "split")
    smaller = {name: getattr(corpus, name)[:100] for name in columns}
    with pytest.raises(UserError, match="does not predict the reviews of"):
        predictions.read(path, dataclasses.replace(corpus, **smaller), None, "again")
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(path, corpus, None, "again")
    pl.DataFrame({"row": [1]}).write_parquet(path)
    with pytest.raises(UserError, match="does not hold predictions"):
        predictions.read(path, corpus, None, "again")
