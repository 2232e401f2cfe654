import json

import numpy as np
import polars as pl
import pytest

from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.prepare import command as prepare
from sasnet_jax.synthetic import ceiling
from sasnet_jax.synthetic.text import ASPECTS, CUISINES, LEVEL_CUTS, ReviewWriter, read_facts
from sasnet_jax.synthetic.world import (
    _STAR_SHARES,
    BUSINESS_BIAS,
    CUISINE_QUALITY,
    NOISE_VARIANCE,
    STAR_NOISE,
    USER_BIAS,
    VISIT_NOISE,
    YELP,
    class_probabilities,
    draw_tastes,
    generate,
    make_world,
    star_cuts,
)


def _visits(world, rng, n):
    user = rng.integers(world.taste.shape[0], size=n)
    business = rng.integers(world.quality.shape[0], size=n)
    liking = world.user_bias[user] + world.business_bias[business]
    return user, business, liking + (world.taste[user] * world.quality[business]).sum(axis=1)


def _write(rng, taste, experience, small_talk=0.0):
    """Texts of visits, with what was put into them."""
    stars = rng.integers(1, 6, size=len(taste))
    cuisine = rng.integers(len(CUISINES), size=len(taste))
    texts = ReviewWriter(rng, small_talk).write(taste, experience, stars, cuisine)
    return texts, stars, cuisine


def test_class_probabilities_equal_simulated_visits():
    rng = np.random.default_rng(0)
    world = make_world(4000, 0)
    _, _, liking = _visits(world, rng, 40)
    draws = 20_000
    visit_noise = VISIT_NOISE * rng.normal(size=(draws, 40))  # tastes have length 1
    felt = liking + visit_noise + STAR_NOISE * rng.normal(size=(draws, 40))
    stars = 1 + np.searchsorted(star_cuts(), felt)
    simulated = np.stack([(stars <= 3).mean(0), (stars == 4).mean(0), (stars == 5).mean(0)], axis=1)
    error = 5 * 0.5 / np.sqrt(draws)
    found = class_probabilities(liking, NOISE_VARIANCE)
    np.testing.assert_allclose(found, simulated, atol=error)


def test_taste_matters():
    """Knowing the biases only (each business's mean liking included) is clearly worse."""
    rng = np.random.default_rng(1)
    world = make_world(20_000, 1)
    user, business, liking = _visits(world, rng, 50_000)
    truth = class_probabilities(liking, NOISE_VARIANCE)
    knowing = truth.max(axis=1).mean()
    mean_taste = world.taste.mean(axis=0)
    bias_only = world.user_bias[user] + world.business_bias[business]
    bias_only += world.quality[business] @ mean_taste
    bins = np.digitize(bias_only, np.quantile(bias_only, np.linspace(0, 1, 101)[1:-1]))
    guess = np.array([truth[bins == b].mean(axis=0).argmax() for b in range(100)])[bins]
    biased = truth[np.arange(len(truth)), guess].mean()
    majority = truth.mean(axis=0).max()
    assert majority + 0.05 < biased < knowing - 0.05


def test_the_dump_tells_the_ceiling_of_its_own_reviews(tmp_path):
    generate(3000, 5, tmp_path)
    truth = json.loads((tmp_path / "truth.json").read_text())
    stars = pl.read_ndjson(tmp_path / "review.ndjson")["stars"].to_numpy()
    shares = np.array([(stars == s).mean() for s in (1, 2, 3, 4, 5)])
    # The mix depends on which users and businesses are frequent, so it is near the plan only.
    np.testing.assert_allclose(shares, _STAR_SHARES, atol=0.1)
    assert shares[4] + 0.1 < truth["best_accuracy_knowing_the_latents"] < 0.8


def test_the_same_seed_gives_the_same_dump(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        generate(200, seed, tmp_path / name)
    dumps = [(tmp_path / name / "review.ndjson").read_bytes() for name in "abc"]
    assert dumps[0] == dumps[1] != dumps[2]


def test_numbers_of_reviews_have_long_tails(tmp_path):
    generate(40_000, 0, tmp_path, YELP)
    reviews = pl.read_ndjson(tmp_path / "review.ndjson")
    for side, mean in (("user_id", 3.5), ("business_id", 46.0)):
        counts = np.sort(reviews[side].value_counts()["count"].to_numpy())[::-1]
        everyone = reviews.height / mean
        assert counts[: round(everyone / 10)].sum() > 0.4 * reviews.height  # the busiest tenth
        assert counts[0] > 15 * mean
    assert reviews["text"].str.len_chars().mean() > 400  # as long as Yelp's


def test_users_stay_in_their_city(tmp_path):
    generate(30_000, 0, tmp_path)
    reviews = pl.read_ndjson(tmp_path / "review.ndjson")
    cities = pl.read_ndjson(tmp_path / "business.ndjson")["business_id", "city"]
    assert cities["city"].n_unique() > 1
    visits = reviews.join(cities, on="business_id").group_by("user_id", "city").len()
    at_home = visits.group_by("user_id").agg(pl.col("len").max())["len"].sum() / reviews.height
    assert at_home > 0.85


@pytest.mark.parametrize("small_talk", [0.0, 3.0])
def test_a_text_tells_what_was_put_into_it(small_talk):
    rng = np.random.default_rng(0)
    taste, experience = draw_tastes(500, rng), rng.normal(size=(500, len(ASPECTS)))
    texts, stars, cuisine = _write(rng, taste, experience, small_talk)
    levels = np.searchsorted(LEVEL_CUTS, experience)
    favorites = 0
    for row, text in enumerate(texts):
        facts = read_facts(text)
        assert (facts.stars, facts.cuisine) == (stars[row], cuisine[row])
        assert 2 <= len(facts.mentions) == len(dict(facts.mentions)) <= 4
        for aspect, level in facts.mentions:
            assert level == levels[row, aspect]
        if facts.favourite is not None:
            favorites += 1
            assert facts.favourite == taste[row].argmax()
    assert 100 < favorites < 200  # 30 %


def test_what_a_user_cares_for_is_mentioned_more():
    rng = np.random.default_rng(0)
    taste = np.zeros((400, len(ASPECTS)))
    taste[:, ASPECTS.index("clean")] = 1
    texts, _, _ = _write(rng, taste, rng.normal(size=taste.shape))
    mentioned = [aspect for text in texts for aspect, _ in read_facts(text).mentions]
    shares = np.bincount(mentioned, minlength=len(ASPECTS)) / 400
    assert shares[ASPECTS.index("clean")] > 0.9 > 0.5 > np.delete(shares, 6).max()


def _exact_reviews(rng, taste, bias, quality, business_bias, cuisine):
    """Facts of one review of each given user and business, from the model itself."""
    experience = quality + VISIT_NOISE * rng.normal(size=quality.shape)
    liking = bias + business_bias + (taste * experience).sum(axis=1)
    liking += STAR_NOISE * rng.normal(size=len(taste))
    stars = 1 + np.searchsorted(star_cuts(), liking)
    texts = ReviewWriter(rng).write(taste, experience, stars, cuisine)
    return ceiling._words([read_facts(text) for text in texts])


def _drawn_qualities(rng, usual, cuisine):
    own = np.sqrt(1 - CUISINE_QUALITY**2)
    return usual[cuisine] + own * rng.normal(size=(cuisine.size, len(ASPECTS)))


def test_beliefs_about_businesses_are_right_on_average():
    """Over many businesses the posterior's mean and variance are those of the errors it makes."""
    rng = np.random.default_rng(0)
    usual = rng.normal(scale=CUISINE_QUALITY, size=(len(CUISINES), len(ASPECTS)))
    errors, bias_errors = [], []
    for _ in range(200):
        n = int(rng.integers(1, 20))
        cuisine = np.full(n, rng.integers(len(CUISINES)))
        quality = _drawn_qualities(rng, usual, cuisine[:1])
        business_bias = rng.normal(scale=BUSINESS_BIAS)
        taste, bias = draw_tastes(n, rng), rng.normal(scale=USER_BIAS, size=n)
        words = _exact_reviews(rng, taste, bias, np.repeat(quality, n, 0), business_bias, cuisine)
        found = ceiling._infer_business(words, usual, rng)
        errors.append((quality[0] - found.quality) / np.sqrt(found.quality_variance))
        bias_errors.append((business_bias - found.bias) / np.sqrt(found.bias_variance))
    for standardized in (np.concatenate(errors), np.array(bias_errors)):
        # Mean 0 and variance 1, within four standard errors.
        assert abs(standardized.mean()) < 4 / np.sqrt(standardized.size)
        assert abs(standardized.var() - 1) < 4 * np.sqrt(2 / standardized.size)


def test_beliefs_about_users_are_right_on_average():
    rng = np.random.default_rng(1)
    usual = rng.normal(scale=CUISINE_QUALITY, size=(len(CUISINES), len(ASPECTS)))
    prior = ceiling._prior_users(1000, rng)
    ranks, error, spread = [], [], []
    for _ in range(120):
        n = int(rng.integers(1, 60))
        taste = np.repeat(draw_tastes(1, rng), n, axis=0)
        bias = rng.normal(scale=USER_BIAS)
        cuisine = rng.integers(len(CUISINES), size=n)
        quality = _drawn_qualities(rng, usual, cuisine)
        business_bias = rng.normal(scale=BUSINESS_BIAS, size=n)
        words = _exact_reviews(rng, taste, np.full(n, bias), quality, business_bias, cuisine)
        tastes, biases = ceiling._infer_user(words, usual, prior, rng)
        ranks.append((biases < bias).mean())
        error.append((taste[0] - tastes.mean(axis=0)) ** 2)
        spread.append(tastes.var(axis=0))
    # The truth is anywhere among the samples, equally likely: Kolmogorov-Smirnov at 0.1 %.
    gap = np.abs(np.sort(ranks) - (np.arange(120) + 0.5) / 120).max()
    assert gap < 1.95 / np.sqrt(120)
    assert np.mean(error) == pytest.approx(np.mean(spread), rel=0.25)
    assert np.mean(error) < 0.6 * draw_tastes(2000, rng).var(axis=0).mean()  # it learns


def test_the_ceiling_of_one_who_reads_the_other_reviews_is_its_own_accuracy(tmp_path):
    prepare.run(prepare.PrepareConfig(synthetic=4000, output=str(tmp_path / "corpus")))
    truth = json.loads((tmp_path / "corpus" / "synthetic" / "truth.json").read_text())
    corpus = read_corpus(tmp_path / "corpus")
    label = corpus.label[corpus.rows("test")]
    expected = truth["best_accuracy_knowing_the_other_reviews"]
    error = np.sqrt(expected * (1 - expected) / truth["measured_on_test_reviews"])
    assert abs(expected - truth["accuracy_of_that_predictor"]) < 3 * error
    assert expected < truth["best_accuracy_knowing_the_latents"]
    assert expected > np.bincount(label).max() / label.size + 0.05
