"""The directions that tell users and businesses apart, against loops over pairs of reviews."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import scipy.linalg
from conftest import TINY, assert_one_line_mistake, edit_json, run_command, write_store

from sasnet_jax.cli import UserError
from sasnet_jax.corpus import discriminants
from sasnet_jax.corpus.store import fit_zscore, open_store
from sasnet_jax.corpus.transform import InputTransform, StoreTransform
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.model import inputs
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.train import loop


def _reviews(reviews=600, entities=60, dim=12, share=(0.8, 0.3), seed=0):
    """Embeddings mixed from noise and two traits that reviews of one entity share."""
    rng = np.random.default_rng(seed)
    entity = rng.integers(entities, size=reviews).astype(np.int32)
    traits = rng.normal(size=(entities, len(share)))
    hidden = rng.normal(size=(reviews, dim))
    for k, correlation in enumerate(share):
        own = np.sqrt(1 - correlation) * hidden[:, k]
        hidden[:, k] = own + np.sqrt(correlation) * traits[entity, k]
    mixed = hidden @ np.linalg.qr(rng.normal(size=(dim, dim)))[0] + 3
    return mixed.astype(np.float32), entity, hidden


def _fit(table, entity, kept, rows=None):
    rows = np.arange(len(table), dtype=np.int32) if rows is None else rows
    return discriminants.fit(table, fit_zscore(table, rows), rows, entity, kept)


def test_directions_equal_a_loop_over_all_pairs():
    table, entity, _ = _reviews()
    rows = np.flatnonzero(np.arange(600) % 7 > 0).astype(np.int32)
    zscore = fit_zscore(table, rows)
    z = zscore(table).astype(np.float64)
    between, counted = np.zeros((12, 12)), 0
    for one in range(60):
        own = [row for row in rows if entity[row] == one]
        if len(own) > 1:
            counted += len(own)
            for i in own:
                others = [z[j] for j in own if j != i]
                between += np.outer(z[i], np.mean(others, axis=0))
    total = sum(np.outer(z[row], z[row]) for row in rows) / rows.size + 0.1 * np.eye(12)
    values, vectors = scipy.linalg.eigh(between / counted, total)
    found = _fit(table, entity, 5, rows)
    np.testing.assert_allclose(found.correlation, values[::-1][:5], rtol=1e-4)
    for k, expected in enumerate(vectors.T[::-1][:5]):
        direction = found.directions[:, k].astype(np.float64)
        sign = np.sign(direction @ expected)
        np.testing.assert_allclose(direction, sign * expected, rtol=2e-3, atol=2e-4)


def test_the_traits_of_entities_are_found_and_how_strong_they_are():
    table, entity, hidden = _reviews(reviews=40_000, entities=2_000)
    found = _fit(table, entity, 3)
    along = fit_zscore(table, np.arange(40_000, dtype=np.int32))(table)
    along = along @ found.directions
    for k in range(2):
        assert abs(np.corrcoef(along[:, k], hidden[:, k])[0, 1]) > 0.95
    expected = np.array([0.8, 0.3, 0.0]) / 1.1  # by the ridge; the third direction is none
    np.testing.assert_allclose(found.correlation, expected, atol=0.03)


def test_only_reviews_to_fit_on_are_read():
    table, entity, _ = _reviews()
    rows = np.flatnonzero(np.arange(600) % 3 > 0).astype(np.int32)
    noisy = table.copy()
    noisy[::3] = 1e6
    for one, other in zip(_fit(table, entity, 4, rows), _fit(noisy, entity, 4, rows), strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_reviews_are_sampled_by_whole_entities(monkeypatch):
    table, entity, _ = _reviews()
    monkeypatch.setattr(discriminants, "_MOST_REVIEWS", 100)
    monkeypatch.setattr(discriminants, "CHUNK", 32)
    zscore = fit_zscore(table, np.arange(600, dtype=np.int32))
    rows = np.arange(600, dtype=np.int32)
    seen = [len(values) for values, _ in discriminants._chunks(table, zscore, rows, entity)]
    assert 100 <= sum(seen) < 100 + np.bincount(entity).max() + 32
    every = np.concatenate(
        [values for values, _ in discriminants._chunks(table, zscore, rows, entity)]
    )
    of_row = {value.tobytes(): row for row, value in enumerate(zscore(table))}
    found = np.array([of_row[value.tobytes()] for value in every])
    for one in np.unique(entity[found]):
        assert (entity[found] == one).sum() == (entity == one).sum()


def test_the_transform_projects_what_numpy_projects(world):
    corpus = world.corpus
    store = open_store(world.store_folder, corpus)
    fitted = InputTransform.fit((store,), corpus, corpus.rows("train"), 3)
    ((zscore, directions),) = fitted.stores
    assert directions.shape == (16, 6)
    z = (np.float64(store.table) - zscore.mean) / zscore.scale
    np.testing.assert_allclose(fitted.tables((store,))[0], z @ directions, atol=5e-3)


def _config(world, output, **settings) -> TrainConfig:
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    settings = {"epochs": 2, "discriminants": 3, "match": True} | settings
    return TrainConfig(**(paths | TINY | settings), output=str(output))


def _directions(run):
    with np.load(run / "zscore.npz") as arrays:
        return arrays["directions_0"]


def _fit_otherwise(run, directions):
    """Gives a run other directions, as a version that wrote no hash of them would have."""
    with np.load(run / "zscore.npz") as arrays:
        kept = dict(arrays)
    np.savez(run / "zscore.npz", **kept | {"directions_0": directions})
    edit_json(run / "config.json", zscore_sha256=None)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("discriminants") / "run"
    loop.train(_config(world, folder))
    return folder


def _copy(run, folder):
    shutil.copytree(run, folder)
    return folder


def test_a_run_predicts_with_the_directions_that_it_was_trained_with(run, tmp_path):
    run = _copy(run, tmp_path / "run")
    first = evaluate.evaluate(Run(run))
    assert _directions(run).shape == (16, 6)
    _fit_otherwise(run, -_directions(run))
    assert evaluate.evaluate(Run(run)).test.log_loss != first.test.log_loss


def test_a_run_that_goes_on_reads_its_store_as_before(world, run, tmp_path):
    run = _copy(run, tmp_path / "run")
    directions = -_directions(run)
    _fit_otherwise(run, directions)
    loop.train(_config(world, run, epochs=3))
    np.testing.assert_array_equal(_directions(run), directions)


@pytest.mark.parametrize("damage", ["half", "other"])
def test_a_damaged_zscore_is_one_line(world, run, tmp_path, damage):
    run = _copy(run, tmp_path / "run")
    path = run / "zscore.npz"
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        edit_json(run / "config.json", zscore_sha256=None)
    else:
        _fit_otherwise(run, np.zeros((9, 6), np.float32))
    before = path.read_bytes()
    resume = functools.partial(loop.train, _config(world, run, epochs=3))
    for go in (resume, lambda: evaluate.evaluate(Run(run))):
        with pytest.raises(UserError, match="zscore.npz (is damaged|was fitted on other stores)"):
            go()
    assert path.read_bytes() == before


def test_a_run_refuses_another_store_of_another_width(world, run, tmp_path):
    corpus = world.corpus
    other = np.random.default_rng(3).normal(size=(corpus.user.size, 9)).astype(np.float32)
    other = write_store(tmp_path / "other", corpus, other)
    config = _config(world, _copy(run, tmp_path / "run"), store=(str(other),))
    with pytest.raises(UserError, match="was made with other .*stores"):
        loop.train(config)


def test_a_run_of_before_there_were_discriminants_goes_on(world, tmp_path):
    config = _config(world, tmp_path / "run", discriminants=0, match=False)
    loop.train(config)
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())["config"]
    edit_json(
        path, config={k: v for k, v in settings.items() if k not in ("discriminants", "match")}
    )
    loop.train(dataclasses.replace(config, epochs=3))
    assert json.loads(path.read_text())["config"]["match"] is False


def test_nobody_with_two_reviews_is_refused(world):
    corpus = world.corpus
    alone = dataclasses.replace(corpus, user=np.arange(corpus.user.size, dtype=np.int32))
    store = open_store(world.store_folder, corpus)
    with pytest.raises(UserError, match="no user has two reviews"):
        InputTransform.fit((store,), alone, corpus.rows("train"), 3)


def test_what_float16_cannot_hold_is_its_largest(world):
    corpus = world.corpus
    store = open_store(world.store_folder, corpus)
    ((zscore, directions),) = InputTransform.fit((store,), corpus, corpus.rows("train"), 3).stores
    flat = StoreTransform(zscore._replace(scale=np.full(16, 2e-6, np.float32)), directions)
    (table,) = InputTransform((flat,)).tables((store,))
    assert np.isfinite(table).all() and np.abs(table).max() > 60_000


def test_more_directions_than_dimensions_are_refused(world, tmp_path):
    arguments = (f"--corpus={world.corpus_folder}", f"--store={world.store_folder}")
    arguments = (*arguments, f"--output={tmp_path / 'run'}", "--discriminants=17")
    result = run_command("sasnet_jax.train", *arguments)
    assert_one_line_mistake(result, "--discriminants=17 is more than the 16 dimensions")


@pytest.mark.parametrize("kept", [2, 8])
def test_two_stores_are_read_side_by_side(world, tmp_path, kept):
    corpus = world.corpus
    other = np.random.default_rng(3).normal(size=(corpus.user.size, 9)).astype(np.float32)
    folder = write_store(tmp_path / "other", corpus, other)
    stores = (str(world.store_folder), str(folder))
    config = _config(world, tmp_path / "run", store=stores, discriminants=kept)
    opened = inputs.open_inputs(config)
    fitted = inputs.fit_transform(config, *opened)
    data = inputs.build_data(config, *opened, fitted)
    assert [table.shape[1] for table in data.tables] == [2 * kept, 2 * kept]
    (tmp_path / "zscore.npz").write_bytes(fitted.to_npz())
    again = InputTransform.load(tmp_path / "zscore.npz", fitted.dims, kept, "train again")
    jax.tree.map(np.testing.assert_array_equal, fitted, again)
