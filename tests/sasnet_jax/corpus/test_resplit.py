"""A corpus that is split anew: the same reviews, other contexts."""

import shutil

import numpy as np
import polars as pl
import pytest
from conftest import World

from sasnet_jax.cli import UserError
from sasnet_jax.corpus import resplit
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.splits import folds_of_users
from sasnet_jax.corpus.store import open_store
from sasnet_jax.prepare import command as prepare

BOUNDARIES = {"folds": 5, "test_fold": 0}


def _split_of_user(corpus: Corpus) -> np.ndarray:
    fold = folds_of_users(corpus.table("users")["user_id"], 5, seed=3)
    return np.array(["test", "validation", "train", "train", "train"])[fold]


@pytest.fixture(scope="module", params=["by_user", "by_time"])
def original(request, tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp(request.param) / "corpus"
    prepare.run(prepare.PrepareConfig(synthetic=500, output=str(folder), split=request.param))
    return read_corpus(folder)


@pytest.fixture
def changed(original, tmp_path) -> Corpus:
    new = resplit.resplit(original, _split_of_user(original), tmp_path / "new")
    resplit.write(original, new, BOUNDARIES)
    return new


def test_only_the_split_is_another(original, changed):
    read = read_corpus(changed.folder)
    assert (read.sha256, read.columns_sha256) == (changed.sha256, changed.columns_sha256)
    assert read.sha256 != original.sha256
    before, after = (pl.read_parquet(one.folder / "reviews.parquet") for one in (original, changed))
    assert before.drop("split").equals(after.drop("split")) and before.columns == after.columns
    assert after["split"].to_list() == _split_of_user(original)[original.user].tolist()
    assert read.texts().equals(original.texts())
    for name in ("users", "businesses", "categories"):
        assert read.table(name).equals(original.table(name))


def test_its_contexts_are_those_of_a_split_by_user(original, changed):
    """By looking at every review: the user's others, and the business's of training users."""
    contexts = contexts_of(read_corpus(changed.folder), "exclude")
    training = _split_of_user(original)[original.user] == "train"
    others = np.arange(original.user.size)
    for side in ("user", "business"):
        context, entity = getattr(contexts, side), getattr(original, side)
        for target in others:
            expected = (entity == entity[target]) & (others != target)
            expected &= training if side == "business" else True
            position = np.arange(context.size[target])
            position = context.start[target] + position + (position >= context.skip[target])
            np.testing.assert_array_equal(np.sort(context.rows[position]), others[expected])


def test_a_store_of_the_corpus_is_one_of_it_too(world, tmp_path):
    corpus = world.corpus
    new = resplit.resplit(corpus, _split_of_user(corpus), tmp_path / "new")
    resplit.write(corpus, new, BOUNDARIES)
    store = open_store(world.store_folder, read_corpus(tmp_path / "new"))
    assert store.identity == open_store(world.store_folder, corpus).identity


def test_it_is_written_with_the_same_bytes_again_and_damage_is_noticed(original, changed):
    def contents():
        return {path: path.read_bytes() for path in changed.folder.rglob("*") if path.is_file()}

    before = contents()
    assert resplit.is_written(changed)
    path = changed.folder / "reviews.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert not resplit.is_written(changed)
    resplit.write(original, changed, BOUNDARIES)
    assert resplit.is_written(changed) and contents() == before
    shutil.rmtree(changed.folder)
    assert not resplit.is_written(changed)


def test_a_damaged_corpus_is_not_split_anew(world, tmp_path):
    folder = shutil.copytree(world.corpus_folder, tmp_path / "corpus")
    corpus = World(folder, world.store_folder).corpus
    (folder / "users.parquet").write_bytes(b"")
    new = resplit.resplit(corpus, np.full(corpus.user.max() + 1, "train"), tmp_path / "new")
    with pytest.raises(UserError, match=f"users.parquet was changed .*: remove {folder}"):
        resplit.write(corpus, new, BOUNDARIES)
    assert not new.folder.exists()
