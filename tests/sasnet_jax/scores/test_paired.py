import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from sasnet_jax.scores import paired
from sasnet_jax.scores.paired import Outcomes


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


def _simulated(rng, users, folds, seeds, user_deviation, seed_deviation):
    """One review per user: its score is the user's part plus that of the training."""
    fold = np.arange(users) % folds
    of_user = rng.normal(0, user_deviation, users)
    of_training = rng.normal(0, seed_deviation, (seeds, folds))
    values = of_user + of_training[:, fold]
    return fold, of_training, Outcomes(values, values)


def test_resampled_scores_vary_as_much_as_users_and_seeds_together():
    """The closed form: variance of a mean over users, plus that of a mean over seeds per fold."""
    fold, of_training, model = _simulated(np.random.default_rng(0), 300, 3, 4, 1.0, 0.1)
    drawn = paired.resample({"m": model}, np.arange(300), fold, seed=0, resamples=6000)["m"]
    expected = model.right.mean(axis=0).var() / 300
    expected += (of_training.var(axis=0, ddof=1) / 4).sum() / 9
    assert drawn.accuracy.var() == pytest.approx(expected, rel=0.08)
    assert drawn.accuracy.mean() == pytest.approx(model.right.mean(), abs=4 * 0.06 / 6000**0.5)
    np.testing.assert_allclose(drawn.log_loss, drawn.accuracy, atol=1e-12)


def test_intervals_hold_the_truth_95_times_of_100():
    rng, covered, covered_of_fixed = np.random.default_rng(1), 0, 0
    for number in range(250):
        fold, _, model = _simulated(rng, 120, 4, 4, 1.0, 0.4)
        mean = Outcomes(model.right.mean(axis=0, keepdims=True), None)
        models = {"seeds": model, "fixed": mean}
        drawn = paired.resample(models, np.arange(120), fold, seed=number, resamples=200)
        (low, high), (low_fixed, high_fixed) = (
            paired.interval(drawn[name].accuracy) for name in models
        )
        covered += low < 0 < high
        covered_of_fixed += low_fixed < 0 < high_fixed
    assert 0.91 < covered / 250 < 0.98
    assert covered_of_fixed / 250 < 0.88  # what holding the seeds fixed would claim


def test_one_seed_and_one_fold_are_the_bootstrap_over_users():
    rng = np.random.default_rng(0)
    user, right = rng.integers(0, 30, 100), rng.integers(0, 2, (1, 100)).astype(float)
    drawn = paired.resample({"m": Outcomes(right, None)}, user, np.zeros_like(user), seed=5)["m"]
    sums = paired.resample_users(user, np.stack([right[0], np.ones(100)], axis=1), seed=5)
    np.testing.assert_allclose(drawn.accuracy, sums[:, 0] / sums[:, 1])
    assert drawn.log_loss is None


def test_what_two_models_share_cancels_in_every_draw():
    """A model that is chosen per fold is compared with itself where it was chosen."""
    rng = np.random.default_rng(0)
    fold, _, model = _simulated(rng, 60, 3, 5, 1.0, 1.0)
    other = Outcomes(np.where(fold == 2, rng.normal(size=(5, 60)), model.right), model.loss)
    models = {"model": model, "other": other}
    drawn = paired.resample(models, np.arange(60), fold, seed=0)
    (difference,) = paired.differences("model", ["other"], models, drawn)
    assert difference.log_loss_interval == [0, 0] == [difference.log_loss_difference] * 2
    assert difference.interval[0] < difference.difference < difference.interval[1]
    assert difference.mcnemar_p is None and difference.only_model_right is None


def test_outcomes_equal_scikit_learns_metrics():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 50).astype(np.int8)
    probability = rng.dirichlet([1, 1, 1], (2, 50))
    joined = paired.joined(paired.outcomes(label, one[None]) for one in probability)
    for seed, one in enumerate(probability):
        assert joined.right[seed].mean() == reference.accuracy_score(label, one.argmax(axis=1))
        assert joined.loss[seed].mean() == pytest.approx(reference.log_loss(label, one))


def test_a_probability_of_zero_leaves_no_log_loss():
    label = np.array([0, 1, 2], np.int8)
    certain = paired.outcomes(label, np.eye(3)[[[0, 1, 1]]])
    unsure = paired.outcomes(label, np.full((1, 3, 3), 1 / 3))
    assert certain.loss is None and paired.joined([unsure, certain]).loss is None
    models = {"certain": certain, "unsure": unsure}
    drawn = paired.resample(models, np.arange(3), np.zeros(3, int), seed=0, resamples=50)
    (difference,) = paired.differences("certain", ["unsure"], models, drawn)
    assert difference.log_loss_difference is None and difference.log_loss_interval is None
    assert difference.log_loss_verdict is None
    assert difference.difference == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("bounds", "of_accuracy", "of_log_loss"),
    [
        ((0.001, 0.02), "above", "below"),
        ((-0.009, 0.02), "level", "undecided"),
        ((-0.009, -0.002), "level", "above"),
        ((-0.011, 0.004), "undecided", "level"),
        ((-0.02, -0.011), "below", "above"),
        ((-0.02, 0.006), "undecided", "undecided"),
    ],
)
def test_margins_are_a_hundredth_of_accuracy_and_five_thousandths_of_a_nat(
    bounds, of_accuracy, of_log_loss
):
    difference = paired.Difference(
        model="a",
        baseline="b",
        difference=0.0,
        interval=list(bounds),
        log_loss_difference=0.0,
        log_loss_interval=list(bounds),
        at_least_level=True,
    )
    assert (difference.verdict, difference.log_loss_verdict) == (of_accuracy, of_log_loss)


@pytest.mark.parametrize(
    ("accuracy", "loss", "level"),
    [(-0.009, 1.0, True), (-0.011, 1.0, False), (-0.011, 0.004, True), (-0.011, 0.006, False)],
)
def test_at_least_level_takes_either_measure(accuracy, loss, level):
    """Differences without any variance, so that each interval is a point."""
    models = {
        "model": Outcomes(np.full((1, 4), 0.5 + accuracy), np.full((1, 4), 1 + loss)),
        "other": Outcomes(np.full((1, 4), 0.5), np.ones((1, 4))),
    }
    drawn = paired.resample(models, np.arange(4), np.zeros(4, int), seed=0, resamples=20)
    (difference,) = paired.differences("model", ["other"], models, drawn)
    assert difference.at_least_level == level
