import msgspec
import numpy as np
import pytest

from sasnet_jax.corpus.ratings import STEPS, RatingScale

CRITICS = RatingScale(low=0.0, high=10.0, bad_up_to=5.0, excellent_from=8.333)


def test_stars_lie_on_the_half_star_grid():
    stars = np.array([0.5, 1, 3.5, 5], np.float32)
    assert RatingScale().steps(stars).tolist() == [1, 2, 7, 10]


@pytest.mark.parametrize(("low", "high"), [(0.0, 10.0), (1.0, 5.0), (-1.0, 1.0), (1.0, 100.0)])
def test_the_steps_of_a_scale_are_even_from_its_lowest_rating_to_its_highest(low, high):
    scale = RatingScale(low=low, high=high, bad_up_to=low, excellent_from=high)
    grid = np.linspace(low, high, STEPS, dtype=np.float32)
    np.testing.assert_allclose(scale.steps(grid), np.arange(STEPS), rtol=0, atol=1e-5)
    np.testing.assert_allclose(scale.nearest_steps(grid + 0.01), grid, rtol=0, atol=1e-5)


def test_a_cut_that_float32_rounds_is_still_met():
    ratings = np.array([0, 5, 5.001, 8.332, 8.333, 10], np.float32)
    assert CRITICS.labels(ratings, 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_lowest_rating_is_on_every_scale_but_that_of_stars():
    for scale in (RatingScale(), CRITICS, RatingScale(low=1.0)):
        low, high = scale.low, scale.high
        ratings = np.array([low - 0.01, low, low + 0.01, high, high + 0.01, np.nan])
        assert scale.holds(ratings).tolist() == [False, low + high != 5, True, True, False, False]


def test_a_scale_is_read_back_as_it_was_written():
    assert msgspec.json.decode(msgspec.json.encode(CRITICS), type=RatingScale) == CRITICS
    with pytest.raises(msgspec.ValidationError, match="--bad_up_to=6"):
        msgspec.json.decode(b'{"bad_up_to": 6}', type=RatingScale)
