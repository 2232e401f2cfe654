import dataclasses

import jax
import numpy as np
import pytest
from conftest import load_data

from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.counts import (
    SMOOTHING,
    bias_features,
    class_shares,
    context_counts,
    out_of_fold_counts,
)
from sasnet_jax.model import draws
from sasnet_jax.model.config import TrainConfig


def _rows_of(context, target):
    """The rows of one target's context, one position at a time."""
    return [
        int(context.rows[context.start[target] + p + (p >= context.skip[target])])
        for p in range(context.size[target])
    ]


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_counts_equal_a_loop_over_the_context(world, target_review, classes):
    corpus = world.corpus
    contexts = contexts_of(corpus, target_review)
    label = corpus.labels(classes)
    found = context_counts(contexts, label, classes)
    for target in range(corpus.user.size):
        for side, context in enumerate(contexts):
            rows = _rows_of(context, target)
            assert (target in rows) == (target_review == "include")
            expected = np.bincount(label[rows], minlength=classes)
            np.testing.assert_array_equal(found[target, side], expected)


def test_out_of_fold_counts_equal_a_loop_over_the_other_folds(world):
    corpus = world.corpus
    contexts = contexts_of(corpus, "exclude")
    fold = np.random.default_rng(0).integers(0, 4, corpus.user.size)
    found = out_of_fold_counts(contexts, corpus.label, 3, fold)
    for target in range(corpus.user.size):
        for side, context in enumerate(contexts):
            rows = [row for row in _rows_of(context, target) if fold[row] != fold[target]]
            expected = np.bincount(corpus.label[rows], minlength=3)
            np.testing.assert_array_equal(found[target, side], expected)


def test_features_are_smoothed_frequencies_and_counts():
    counts = np.array([[[0, 0, 0], [3, 1, 0]]], np.int32)
    shares = np.array([0.2, 0.3, 0.5], np.float32)
    (found,) = np.asarray(bias_features(counts, shares))
    alpha = SMOOTHING
    of_business = np.array([3 + alpha * 0.2, 1 + alpha * 0.3, alpha * 0.5]) / (4 + alpha)
    expected = [*np.log(shares), 0, *np.log(of_business), np.log(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_five_classes_are_stars_with_halves_rounded_up(world):
    corpus = world.corpus
    assert set(corpus.labels(5).tolist()) <= set(range(5))
    for stars, label in ((0.5, 0), (1, 0), (1.5, 1), (2, 1), (4.5, 4), (5, 4)):
        here = np.full_like(corpus.stars, stars)
        assert (dataclasses.replace(corpus, stars=here).labels(5) == label).all()


def test_training_counts_are_a_part_of_the_context_and_evaluation_counts_the_whole(world):
    """A part whose size is uniform: on average half of every class, between none and all."""
    corpus = world.corpus
    contexts = contexts_of(corpus, "exclude")
    counts = context_counts(contexts, corpus.label, 3)
    shares = class_shares(corpus.label, 3)
    unused = np.zeros(corpus.user.size, np.float32)
    data = jax.device_put(draws.Data((), (), unused, corpus.label, contexts, counts, shares))
    config = TrainConfig(corpus="-", store=("-",), output="-", bias_term=True, empty_side=0.0)
    targets = jax.device_put(corpus.rows("train")[:200])

    def counts_in(bias):
        """Inverts the features: [b, 2, c]."""
        features = np.asarray(bias, np.float64).reshape(-1, 2, 4)
        total = np.expm1(features[..., 3:])
        alpha = SMOOTHING
        return np.exp(features[..., :3]) * (total + alpha) - alpha * shares

    draw = jax.jit(lambda step: draws.draw_training(config, data, targets, step))
    parts = np.stack([counts_in(draw(np.int32(step)).known.bias) for step in range(60)])
    np.testing.assert_allclose(parts, parts.round(), atol=2e-3)
    assert (parts > -0.01).all() and (parts < counts[targets] + 0.01).all()
    assert parts.sum() == pytest.approx(60 * counts[targets].sum() / 2, rel=0.05)
    every = draws.draw_evaluation(config, data, targets, jax.numpy.int32(0)).known.bias
    np.testing.assert_allclose(counts_in(every), counts[targets], atol=2e-3)


def test_a_part_of_the_sampled_reviews_votes_in_training_and_all_of_them_at_evaluation(world):
    """All of them would leak, as counts of the whole context do."""
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    options = {"votes": True, "discriminants": 4, "empty_side": 0.0, "set_size": 5}
    config = TrainConfig(**paths, output="-", **options)
    data = jax.tree.map(jax.numpy.asarray, load_data(config)[1])
    targets = jax.numpy.asarray(world.corpus.rows("train"))
    draw = jax.jit(lambda step: draws.draw_training(config, data, targets, step))
    drawn = [draw(np.int32(step)) for step in range(20)]
    mask, voting = (np.stack([getattr(one, name) for one in drawn]) for name in ("mask", "voting"))
    assert not (voting & ~mask).any()
    assert abs(voting.sum() / mask.sum() - 0.5) < 0.02
    whole = (voting == mask).all(axis=3)[mask.sum(axis=3) == 5]
    assert abs(whole.mean() - 1 / 6) < 0.02  # a uniform probability to the fifth, on average
    every = draws.draw_evaluation(config, data, targets, jax.numpy.int32(0))
    np.testing.assert_array_equal(every.voting, every.mask)
