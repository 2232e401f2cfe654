import numpy as np
import pytest

from sasnet_jax.data.interactions import averaging_matrix, contexts_of


def _brute_force(corpus, target, side, target_review):
    """The context of one target by looking at every review."""
    entity = getattr(corpus, side)
    rows = set()
    for row in range(entity.size):
        if entity[row] != entity[target]:
            continue
        if target_review == "exclude":
            same_pair = corpus.user[row] == corpus.user[target]
            same_pair &= corpus.business[row] == corpus.business[target]
            if same_pair or (side == "business" and corpus.split[row] != "train"):
                continue
        rows.add(row)
    return rows


def _members(context, target):
    positions = np.arange(context.size[target])
    positions = positions + (positions >= context.skip[target])
    return context.rows[context.start[target] + positions].tolist()


@pytest.mark.parametrize("target_review", ["exclude", "include"])
@pytest.mark.parametrize("side", ["user", "business"])
def test_contexts_equal_a_brute_force_loop(world, side, target_review):
    corpus = world.corpus
    context = getattr(contexts_of(corpus, target_review), side)
    sizes = set()
    for target in range(corpus.user.size):
        members = _members(context, target)
        assert len(members) == len(set(members))
        assert set(members) == _brute_force(corpus, target, side, target_review)
        assert (target in members) == (target_review == "include")
        sizes.add(len(members))
    assert len(sizes) > 5  # the world has short and long lists


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_averages_equal_a_loop(world, target_review):
    corpus = world.corpus
    features = np.random.default_rng(0).normal(size=(corpus.user.size, 3))
    targets = corpus.rows("test")
    contexts = contexts_of(corpus, target_review)
    for side, context in zip(("user", "business"), contexts, strict=True):
        expected = np.zeros((targets.size, 3))
        for i, target in enumerate(targets):
            rows = sorted(_brute_force(corpus, target, side, target_review))
            if rows:
                expected[i] = features[rows].mean(axis=0)
        found = averaging_matrix(context, targets) @ features
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
