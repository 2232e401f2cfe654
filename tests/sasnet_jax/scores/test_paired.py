import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from sasnet_jax.scores import paired


@pytest.mark.parametrize(("only", "only_other"), [(0, 0), (1, 0), (3, 9), (40, 22)])
def test_mcnemar_equals_the_sum_over_the_binomial(only, only_other):
    right = np.array([True] * only + [False] * only_other + [True, False] * 5)
    other = np.array([False] * only + [True] * only_other + [True, False] * 5)
    n = only + only_other
    probability = stats.binom.pmf(np.arange(n + 1), n, 0.5)
    expected = probability[probability <= probability[only] * (1 + 1e-9)].sum()
    assert paired.mcnemar(right, other) == pytest.approx(expected)
    assert paired.mcnemar(other, right) == pytest.approx(expected)


def test_holm_equals_its_definition():
    """The closed test: of every set of hypotheses Bonferroni's, the worst over the sets of one."""
    p_values = [0.01, 0.04, 0.03, 0.005, 0.6]
    expected = []
    for i in range(5):
        sets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k) if i in s]
        expected.append(max(min(1, len(s) * min(p_values[j] for j in s)) for s in sets))
    np.testing.assert_allclose(paired.holm(p_values), expected)
    assert paired.holm([]) == []


def test_resampled_sums_are_of_whole_users():
    """Every draw's sums are those of some users, all their reviews each, as many as there are."""
    user = np.array([7, 7, 7, 2, 2, 9])
    values = np.array([[1.0, 1], [1, 10], [1, 100], [1, 1000], [1, 10000], [1, 100000]])
    sums = paired.resample_users(user, values, seed=0, resamples=50)
    of_user = [values[user == one].sum(axis=0) for one in (2, 7, 9)]
    possible = {tuple(sum(drawn)) for drawn in itertools.combinations_with_replacement(of_user, 3)}
    found = {tuple(row) for row in sums}
    assert found <= possible and len(found) > 5


def test_interval_of_a_mean_is_that_of_its_standard_error():
    """With one review per user the bootstrap is the ordinary one."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    columns = np.stack([values, np.ones(400)], axis=1)
    sums = paired.resample_users(np.arange(400), columns, seed=0)
    low, high = paired.interval(sums[:, 0] / sums[:, 1])
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.15 * error)


def test_users_with_many_reviews_widen_the_interval():
    """Ten equal reviews per user are worth one: the width is that of a tenth of the reviews."""
    values = np.random.default_rng(1).normal(size=100)
    ones = np.ones(100)
    alone = paired.resample_users(np.arange(100), np.stack([values, ones], axis=1), seed=0)
    user = np.repeat(np.arange(100), 10)
    columns = np.repeat(np.stack([values, ones], axis=1), 10, axis=0)
    many = paired.resample_users(user, columns, seed=0)
    widths = [np.diff(paired.interval(s[:, 0] / s[:, 1])) for s in (alone, many)]
    np.testing.assert_allclose(*widths)


def test_metrics_of_sums_equal_scikit_learns():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 200).astype(np.int8)
    probability = rng.dirichlet([1, 1, 1], 200)
    statistics = paired.statistics(label, probability)
    times = rng.integers(0, 3, 200)
    found = paired.metrics_of((times @ statistics)[None])
    label, probability = np.repeat(label, times), np.repeat(probability, times, axis=0)
    predicted = probability.argmax(axis=1)
    assert found["accuracy"][0] == pytest.approx(reference.accuracy_score(label, predicted))
    f1 = reference.f1_score(label, predicted, average="macro")
    assert found["macro_f1"][0] == pytest.approx(f1)
    assert found["log_loss"][0] == pytest.approx(reference.log_loss(label, probability))
