from itertools import product
from typing import get_args

import numpy as np
import pytest
import scipy.sparse
from conftest import shared_folder
from scipy.special import ndtr

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.files import read_record
from sasnet_jax.prepare import command as prepare
from sasnet_jax.prepare.command import PrepareConfig
from sasnet_jax.synthetic import ceiling, hand_made, opinions, tastes
from sasnet_jax.synthetic.families import (
    BUSINESS_BIAS,
    CUISINE_QUALITY,
    FAMILIES,
    NOISE_VARIANCE,
    OPINIONS,
    STAR_NOISE,
    USER_BIAS,
    VISIT_NOISE,
    FamilyName,
    star_cuts,
)
from sasnet_jax.synthetic.text import OWN_STYLE, Words, read_words
from sasnet_jax.synthetic.vocabulary import ASPECTS, CUISINES, STYLES
from sasnet_jax.synthetic.world import Truth, make_world

MATCHES = {"aspects": tastes.Product, "veto": tastes.Worst}


def _exact_reviews(world, rng, taste, bias, quality, business_bias, cuisine):
    """Facts of one review of each given user and business, from the model itself."""
    family = FAMILIES[world]
    experience = quality + VISIT_NOISE * rng.normal(size=quality.shape)
    liking = bias + business_bias + family.match(taste, experience)
    liking += STAR_NOISE * rng.normal(size=len(taste))
    stars = 1 + np.searchsorted(star_cuts(), liking)
    texts = family.writer(rng, family.shape.small_talk).write(taste, experience, stars, cuisine)
    return read_words(texts, family.read)._replace(stars=stars)


def _drawn_qualities(rng, usual, cuisine):
    own = np.sqrt(1 - CUISINE_QUALITY**2)
    return usual[cuisine] + own * rng.normal(size=(cuisine.size, len(ASPECTS)))


@pytest.mark.parametrize("world", MATCHES)
def test_beliefs_about_businesses_are_right_on_average(world):
    """Over many businesses the posterior's mean and variance are those of the errors it makes."""
    rng = np.random.default_rng(0)
    usual = rng.normal(scale=CUISINE_QUALITY, size=(len(CUISINES), len(ASPECTS)))
    errors, bias_errors = [], []
    for _ in range(200):
        n = int(rng.integers(1, 20))
        cuisine = np.full(n, rng.integers(len(CUISINES)))
        quality = _drawn_qualities(rng, usual, cuisine[:1])
        business_bias = rng.normal(scale=BUSINESS_BIAS)
        taste = FAMILIES[world].draw_tastes(n, rng)
        bias = rng.normal(scale=USER_BIAS, size=n)
        quality_n = np.repeat(quality, n, 0)
        words = _exact_reviews(world, rng, taste, bias, quality_n, business_bias, cuisine)
        known = tastes.infer_business(words, usual, MATCHES[world], rng)
        errors.append((quality[0] - known.quality) / np.sqrt(known.quality_variance))
        bias_errors.append((business_bias - known.bias) / np.sqrt(known.bias_variance))
    for standardized in (np.concatenate(errors), np.array(bias_errors)):
        # Mean 0 and variance 1, within four standard errors.
        assert abs(standardized.mean()) < 4 / np.sqrt(standardized.size)
        assert abs(standardized.var() - 1) < 4 * np.sqrt(2 / standardized.size)


@pytest.mark.parametrize("world", MATCHES)
def test_beliefs_about_users_are_right_on_average(world):
    rng = np.random.default_rng(1)
    usual = rng.normal(scale=CUISINE_QUALITY, size=(len(CUISINES), len(ASPECTS)))
    draw = FAMILIES[world].draw_tastes
    ranks, error, spread = [], [], []
    for _ in range(120):
        n = int(rng.integers(1, 40 if world == "aspects" else 12))
        taste = np.repeat(draw(1, rng), n, axis=0)
        bias = rng.normal(scale=USER_BIAS)
        cuisine = rng.integers(len(CUISINES), size=n)
        quality = _drawn_qualities(rng, usual, cuisine)
        business_bias = rng.normal(scale=BUSINESS_BIAS, size=n)
        biases = np.full(n, bias)
        words = _exact_reviews(world, rng, taste, biases, quality, business_bias, cuisine)
        user = tastes.infer_user(words, usual, MATCHES[world], rng)
        # The share of belief below the truth, of an equal belief a random part.
        ranks.append((user.weight * (user.bias < bias)).sum())
        belief = user.weight.sum(axis=1)
        error.append((taste[0] - belief @ user.taste) ** 2)
        spread.append(belief @ user.taste**2 - (belief @ user.taste) ** 2)
    if world != "veto":  # whose biases are on a coarse grid
        # The truth is anywhere in the belief, equally likely: Kolmogorov-Smirnov at 0.1 %.
        gap = np.abs(np.sort(ranks) - (np.arange(120) + 0.5) / 120).max()
        assert gap < 1.95 / np.sqrt(120)
    assert np.mean(error) == pytest.approx(np.mean(spread), rel=0.25)
    assert np.mean(error) < 0.6 * draw(2000, rng).var(axis=0).mean()  # it learns


def test_the_worst_of_truncated_experiences_has_the_moments_of_simulated_ones():
    rng = np.random.default_rng(0)
    level = np.array([[-1, 0, 4, 2, -1, 3, -1, 1]])
    mean, variance = rng.uniform(-0.5, 0.5, size=(1, 8)), rng.uniform(0.5, 1.5, size=(1, 8))
    taste = tastes.listed_tastes()
    worst, spread = tastes.Worst(level, mean, variance).moments(taste)
    low, high = tastes._interval(level)[0].T
    felt = np.empty((40_000, 8))
    for k in range(8):
        draws = mean[0, k] + np.sqrt(variance[0, k]) * rng.normal(size=1_000_000)
        inside = (level[0, k] < 0) | ((draws > low[k]) & (draws <= high[k]))
        felt[:, k] = rng.choice(draws[inside], 40_000)
    for row in range(0, 56, 5):
        match = FAMILIES["veto"].match(np.tile(taste[row], (40_000, 1)), felt)
        error = match.std() / np.sqrt(40_000)
        assert worst[row, 0] == pytest.approx(match.mean(), abs=5 * error + 0.01)
        assert spread[row, 0] == pytest.approx(match.var(), rel=0.06)


def _style_words(rng, n):
    """Facts of n texts in shuffled words, of no one in particular."""
    blank = np.full((n, len(ASPECTS)), -1)
    none = np.zeros(n, int)
    style = rng.integers(0, 3, size=(n, len(STYLES)))
    return Words(none - 1, blank, blank, none, none - 1, rng.integers(0, 6, size=n), style)


def _by_brute_force(words, of_user, of_business, all_agree):
    """P(class) by summing over all that is latent, in loops."""
    grid = np.linspace(-5, 5, 201) * USER_BIAS
    prior = np.exp(-0.5 * (grid / USER_BIAS) ** 2)
    prior /= prior.sum()
    edges = np.array([-np.inf, *star_cuts(), np.inf])

    def stars(row, liking):
        s = words.stars[row]
        if not s:
            return np.ones_like(liking)
        low, high = ((edges[s - i] - liking) / np.sqrt(NOISE_VARIANCE) for i in (1, 0))
        return ndtr(high) - ndtr(low)

    def style(row, kind):
        other = (1 - OWN_STYLE) / (len(STYLES) - 1)
        share = np.where(np.arange(len(STYLES)) == kind, OWN_STYLE, other)
        return (share ** words.style[row]).prod()

    total = np.zeros(3)
    for opinion in product(OPINIONS, repeat=len(STYLES)):
        if all_agree and len(set(opinion)) > 1:
            continue
        likelihood = 1.0
        for row in of_business:
            writers = [
                style(row, h) * (prior * stars(row, opinion[h] + grid)).sum()
                for h in range(len(STYLES))
            ]
            likelihood *= sum(writers)
        for kind in range(len(STYLES)):
            belief = prior.copy()
            for row in of_user:
                anywhere = np.mean([stars(row, o + grid) for o in OPINIONS], axis=0)
                belief = belief * style(row, kind) * anywhere
            cuts = star_cuts()[2:, None] - opinion[kind] - grid
            below = np.vstack([0 * grid, ndtr(cuts / np.sqrt(NOISE_VARIANCE)), 0 * grid + 1])
            total += likelihood * np.diff(below, axis=0) @ belief
    return total / total.sum()


@pytest.mark.parametrize("all_agree", [False, True])
@pytest.mark.parametrize(("written", "received"), [(0, 0), (1, 2), (3, 1)])
def test_opinions_are_inferred_as_by_brute_force(written, received, all_agree):
    words = _style_words(np.random.default_rng(written), 7)
    of_user, of_business = range(1, 1 + written), range(4, 4 + received)
    seen = np.zeros((2, 1, 7))
    seen[0, 0, list(of_user)] = seen[1, 0, list(of_business)] = 1
    sides = [scipy.sparse.csr_matrix(side) for side in seen]
    inferred = opinions.predict(words, *sides, all_agree=all_agree)[0]
    exact = _by_brute_force(words, of_user, of_business, all_agree)
    np.testing.assert_allclose(inferred, exact, atol=1e-4)


@pytest.fixture(scope="module", params=["aspects", "kinds", "null", "veto"])
def prepared(request, tmp_path_factory):
    """A corpus of each family, and its truth.json."""

    def fill(folder):
        output = str(folder / "corpus")
        prepare.run(PrepareConfig(synthetic=1500, seed=3, world=request.param, output=output))

    folder = shared_folder(tmp_path_factory, request.param, fill) / "corpus"
    return read_corpus(folder), read_record(folder / "synthetic" / "truth.json", Truth)


def test_the_inference_has_the_accuracy_that_it_expects(prepared):
    corpus, truth = prepared
    targets = corpus.rows("test").size
    assert truth.test_reviews == targets
    for sees, reached in truth.inference.items():
        expected = reached.expected_accuracy
        error = np.sqrt(expected * (1 - expected) / targets)
        assert abs(expected - reached.accuracy) < 3 * error
        assert expected < truth.best_accuracy_knowing_the_latents
        assert reached.log_loss < truth.hand_made[sees].log_loss + 0.05
    assert set(truth.inference) == set(truth.hand_made)
    # In `aspects` each text tells its stars.
    assert ("texts_and_stars" in truth.inference) == (truth.world != "aspects")


def test_the_standard_error_is_that_of_independent_users():
    best = np.random.default_rng(0).uniform(0.4, 0.9, size=50)  # of all reviews of a user
    user, label = np.repeat(np.arange(50, dtype=np.int32), 20), np.zeros(1000, np.int8)
    probability = np.stack([best, (1 - best) / 2, (1 - best) / 2], axis=1).repeat(20, axis=0)
    reached = ceiling._reached(label, user, probability)
    assert reached.standard_error == pytest.approx(best.std() / np.sqrt(50))


def test_every_family_can_be_asked_for_and_only_of_generated_reviews():
    assert set(get_args(FamilyName)) == set(FAMILIES)
    with pytest.raises(UserError, match="--world=kinds .* add --synthetic=NUMBER"):
        PrepareConfig(reviews=("reviews.json",), world="kinds", output="corpus")


def test_the_ceilings_never_use_the_target_itself(prepared):
    """What a target says and how it was rated changes no prediction of it."""
    corpus, truth = prepared
    world = truth.world
    words = read_words(corpus.texts(), FAMILIES[world].read)
    usual = make_world(truth.reviews, truth.seed, world=world).usual
    user = contexts_of(corpus, "exclude").user
    rows = corpus.rows("test")
    target = rows[[np.argmax(user.size[rows])]]
    other = (words.stars == 1) & (words.mentions == words.mentions[target[0]])
    changed = words.take(np.arange(words.stars.size))
    for column in changed:
        column[target] = column[np.flatnonzero(other)[0]]
    before, after = (
        ceiling.infer(corpus, told, target, usual, world, 0) for told in (words, changed)
    )
    np.testing.assert_array_equal(before, after)
    features = [
        hand_made._features(corpus, hand_made._facts(told), target, world)
        for told in (words, changed)
    ]
    np.testing.assert_array_equal(*features)
