"""How much of a network is added to its regression: by simulated validation losses."""

import numpy as np
import pytest

from sasnet_jax.train.factor import choose_factor


def _probabilities(gains, reviews=2000, noise=0.3, seed=0):
    """Probabilities of the label 0 whose log-losses with each factor improve by these, in nats."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.5, 1.5, size=reviews)
    scale = np.array([0, 0.25, 0.5, 1])
    loss = base[:, None] - np.array(gains) + noise * scale * rng.normal(size=(reviews, 1))
    right = np.exp(-loss)
    return np.stack([right, 1 - right], axis=2)


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ([0, 0.05, 0.1, 0.2], 3),  # the network is better
        ([0, 0.1, 0.1, 0.1], 1),  # a quarter of it is as good as all of it
        ([0, -0.05, -0.1, -0.2], 0),  # it is worse
        ([0, 0.05, 0.1, -0.3], 2),  # all of it is too much
        ([0, 0.0, 0.0, 0.001], 0),  # nothing that shows
    ],
)
def test_the_smallest_factor_that_is_as_good_as_the_best(gains, chosen):
    probability = _probabilities(gains)
    label = np.zeros(len(probability), np.int8)
    user = np.arange(len(probability)) // 2
    assert choose_factor(probability, label, user) == chosen


def test_without_a_regression_there_is_nothing_to_choose():
    probability = np.full((5, 1, 3), 1 / 3)
    assert choose_factor(probability, np.zeros(5, np.int8), np.arange(5)) == 0


@pytest.mark.parametrize(("epochs", "most"), [(1, 0.15), (10, 0.35)])
def test_a_useless_network_seldom_counts(epochs, most):
    """Losses that differ by chance alone; the best of the epochs is asked, as in training.

    Here the epochs are independent, which they are not in training: that is the worst case.
    """
    counted = []
    label = np.zeros(300, np.int8)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tried = []
        for _ in range(epochs):
            probability = _probabilities([0] * 4, reviews=300, seed=int(rng.integers(1 << 30)))
            tried.append(probability)
        best = min(tried, key=lambda p: -np.log(p[..., 0]).mean(axis=0).max())
        counted.append(choose_factor(best, label, np.arange(300)) > 0)
    assert np.mean(counted) <= most
