import itertools

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.model.sampling import sample_positions, sample_set, stream

_draw = jax.jit(jax.vmap(sample_positions, in_axes=(0, None, None)), static_argnums=2)


@pytest.mark.parametrize(("count", "size"), [(6, 3), (5, 4), (7, 1), (4, 2)])
def test_every_subset_is_equally_likely(count, size):
    keys = jax.random.split(stream(0, "test"), 20_000)
    positions, mask = _draw(keys, count, size)
    assert mask.all()
    found = np.sort(np.asarray(positions), axis=1)
    subsets = list(itertools.combinations(range(count), size))
    counts = [int((found == subset).all(axis=1).sum()) for subset in subsets]
    assert sum(counts) == len(keys)  # so every draw is a subset: without repetition, in range
    assert chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_short_lists_are_taken_whole(count):
    positions, mask = _draw(jax.random.split(stream(1, "test"), 50), count, 5)
    assert (np.asarray(mask).sum(axis=1) == count).all()
    for row, kept in zip(np.asarray(positions), np.asarray(mask), strict=True):
        assert sorted(row[kept]) == list(range(count))


def test_sampled_reviews_are_the_context_and_never_the_target(world):
    corpus = world.corpus
    sample = jax.jit(jax.vmap(sample_set, in_axes=(0, None, 0, None)), static_argnums=3)
    targets = np.arange(corpus.user.size, dtype=np.int32)
    contexts = contexts_of(corpus, "exclude")
    for side, context in zip(("user", "business"), contexts, strict=True):
        entity = getattr(corpus, side)
        seen = np.zeros(targets.size, int)
        for draw in range(30):
            keys = jax.random.split(stream(draw, side), targets.size)
            rows, mask = map(np.asarray, sample(keys, context, targets, 4))
            target = np.broadcast_to(targets[:, None], rows.shape)
            assert (entity[rows] == entity[target])[mask].all()
            assert not (rows == target)[mask].any()
            if side == "business":
                assert (corpus.split[rows] == "train")[mask].all()
            seen += mask.sum(axis=1)
        assert (seen == 30 * np.minimum(context.size, 4)).all()


def test_streams_differ_by_seed_and_name():
    keys = [stream(seed, name) for seed in (0, 1) for name in ("sets", "order", "eval")]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys)
