"""One way to read a vector, for a whole table and for one review alike."""

import jax
import numpy as np
import pytest
from conftest import write_store

from sasnet_jax.cli import UserError
from sasnet_jax.corpus import transform
from sasnet_jax.corpus.store import open_store
from sasnet_jax.corpus.transform import InputTransform

STORES = pytest.mark.parametrize("widths", [(16,), (384, 9), (1024,)], ids=str)
KEPT = pytest.mark.parametrize("kept", [0, 4])


def _fitted(world, folder, widths, kept):
    rng = np.random.default_rng(0)
    corpus, stores = world.corpus, []
    for number, width in enumerate(widths):
        table = rng.normal(3, 2, size=(corpus.user.size, width)).astype(np.float16)
        path = write_store(folder / str(number), corpus, table)
        stores.append(open_store(path, corpus))
    return stores, InputTransform.fit(stores, corpus, corpus.rows("train"), kept)


@STORES
@KEPT
def test_what_is_applied_is_what_a_step_reads(world, tmp_path, widths, kept):
    stores, fitted = _fitted(world, tmp_path, widths, kept)
    tables = fitted.tables(stores)
    read = [
        jax.jit(transform.standardize)(np.asarray(table, np.float32), one.scaling())
        for table, one in zip(tables, fitted.stores, strict=True)
    ]
    vectors = np.hstack([np.asarray(store.table, np.float32) for store in stores])
    applied = fitted.apply(vectors)
    assert applied.dtype == np.float32 and applied.shape == (len(vectors), fitted.width)
    np.testing.assert_array_equal(applied, np.concatenate(read, axis=1))


@STORES
@KEPT
def test_a_row_does_not_depend_on_the_rows_beside_it(world, tmp_path, widths, kept):
    stores, fitted = _fitted(world, tmp_path, widths, kept)
    vectors = np.hstack([np.asarray(store.table, np.float32) for store in stores])
    whole = fitted.apply(vectors)
    for rows in ([0], [5, 3], range(7), range(100, 170)):
        np.testing.assert_array_equal(fitted.apply(vectors[list(rows)]), whole[list(rows)])
    assert fitted.apply(vectors[:0]).shape == (0, fitted.width)


@KEPT
def test_a_z_score_is_the_definition(world, tmp_path, kept):
    (store,), fitted = _fitted(world, tmp_path, (16,), kept)
    train = np.asarray(store.table, np.float64)[world.corpus.rows("train")]
    vectors = np.asarray(store.table[:20], np.float64)
    expected = (vectors - train.mean(axis=0)) / train.std(axis=0)
    if kept:
        expected = expected @ fitted.stores[0].directions
    np.testing.assert_allclose(fitted.apply(vectors), expected, rtol=1e-3, atol=1e-3)


@KEPT
def test_what_is_saved_is_loaded(world, tmp_path, kept):
    _, fitted = _fitted(world, tmp_path, (16, 9), kept)
    path = tmp_path / "zscore.npz"
    path.write_bytes(fitted.to_npz())
    again = InputTransform.load(path, fitted.dims, kept, "again")
    jax.tree.map(np.testing.assert_array_equal, again, fitted)
    for dims, more in (([16, 8], kept), ([25, 1], kept), ([16, 9], kept + 1)):
        with pytest.raises(UserError, match="fitted on other stores|is damaged"):
            InputTransform.load(path, dims, more, "again")
