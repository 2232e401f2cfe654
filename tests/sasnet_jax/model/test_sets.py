"""Sets to recommend by: drawn uniformly, by what is in an entity and by nothing else."""

import numpy as np
from scipy import stats

from sasnet_jax.model import sampling, sets
from sasnet_jax.model.sets import Reviews


def _draw(digest, count, numbers, size=3, seed=0):
    n = len(numbers)
    digests = np.tile(np.asarray(digest, np.uint32), (n, 1))
    stream = sampling.stream(seed, "recommend")
    counts, numbers = np.full(n, count, np.int32), np.asarray(numbers, np.int32)
    positions, mask = sets.draw(stream, digests, counts, numbers, size)
    return np.asarray(positions), np.asarray(mask)


def test_every_subset_is_equally_likely():
    """The 10 subsets of 3 of 5 over 6,000 draws of one entity: a chi-squared test."""
    positions, mask = _draw((1, 2), 5, range(6000))
    assert mask.all()
    found, counts = np.unique(np.sort(positions, axis=1), axis=0, return_counts=True)
    assert len(found) == 10 and (np.diff(found, axis=1) > 0).all()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_what_fits_is_taken_whole():
    for count in range(4):
        positions, mask = _draw((7, 9), count, range(5))
        assert (mask.sum(axis=1) == count).all()
        assert (positions[mask].reshape(5, count) == np.arange(count)).all()


def test_a_draw_follows_from_seed_digest_and_number_alone():
    first, _ = _draw((3, 4), 50, range(64), size=8)
    backward, _ = _draw((3, 4), 50, range(63, -1, -1), size=8)
    np.testing.assert_array_equal(first, backward[::-1])
    for other in (_draw((3, 5), 50, range(64), size=8), _draw((3, 4), 50, range(64), 8, seed=1)):
        assert (first != other[0]).any(axis=1).mean() > 0.9
    assert len(np.unique(first, axis=0)) == 64


def test_members_depend_on_content_and_not_on_order():
    rng = np.random.default_rng(0)
    vectors, stars = rng.normal(size=(9, 4)).astype(np.float32), rng.integers(1, 6, 9)
    vectors[4] = vectors[2]  # one text twice, with other stars
    order = rng.permutation(9)
    one, same = Reviews(vectors, stars), Reviews(vectors[order], stars[order])
    for with_stars in (False, True):
        a, b = sets.members_of(one, with_stars), sets.members_of(same, with_stars)
        np.testing.assert_array_equal(a.vectors, b.vectors)
        np.testing.assert_array_equal(a.stars, b.stars)
        np.testing.assert_array_equal(a.digest, b.digest)
    without = Reviews(vectors)
    digests = [sets.members_of(reviews, False).digest for reviews in (one, without)]
    np.testing.assert_array_equal(*digests)  # a run on texts draws the same without stars
    changed = sets.members_of(Reviews(vectors, 6 - stars), True).digest
    assert (changed != sets.members_of(one, True).digest).any()
    fewer = sets.members_of(Reviews(vectors[:-1]), False).digest
    assert (fewer != digests[0]).any()
