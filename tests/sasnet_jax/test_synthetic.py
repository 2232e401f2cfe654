import json

import numpy as np
import polars as pl

from sasnet_jax.data import synthetic
from sasnet_jax.data.synthetic_text import ASPECTS, ReviewWriter


def _visits(world, rng, n):
    user = rng.integers(world.taste.shape[0], size=n)
    business = rng.integers(world.quality.shape[0], size=n)
    liking = world.user_bias[user] + world.business_bias[business]
    return user, business, liking + (world.taste[user] * world.quality[business]).sum(axis=1)


def test_class_probabilities_equal_simulated_visits():
    rng = np.random.default_rng(0)
    world = synthetic.make_world(4000, rng)
    _, _, liking = _visits(world, rng, 40)
    draws = 20_000
    visit_noise = synthetic._VISIT_NOISE * rng.normal(size=(draws, 40))  # tastes have length 1
    felt = liking + visit_noise + synthetic._STAR_NOISE * rng.normal(size=(draws, 40))
    stars = 1 + np.searchsorted(synthetic._star_cuts(), felt)
    simulated = np.stack([(stars <= 3).mean(0), (stars == 4).mean(0), (stars == 5).mean(0)], axis=1)
    error = 5 * 0.5 / np.sqrt(draws)
    np.testing.assert_allclose(synthetic.class_probabilities(liking), simulated, atol=error)


def test_taste_matters():
    """Knowing the biases only (each business's mean liking included) is clearly worse."""
    rng = np.random.default_rng(1)
    world = synthetic.make_world(20_000, rng)
    user, business, liking = _visits(world, rng, 50_000)
    truth = synthetic.class_probabilities(liking)
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
    synthetic.generate(3000, 5, tmp_path)
    truth = json.loads((tmp_path / "truth.json").read_text())
    stars = pl.read_ndjson(tmp_path / "review.ndjson")["stars"].to_numpy()
    shares = np.array([(stars == s).mean() for s in (1, 2, 3, 4, 5)])
    # The mix depends on which users and businesses are frequent, so it is near the plan only.
    np.testing.assert_allclose(shares, synthetic._STAR_SHARES, atol=0.1)
    assert shares[4] + 0.1 < truth["best_accuracy_knowing_the_latents"] < 0.8


def test_the_same_seed_gives_the_same_dump(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        synthetic.generate(200, seed, tmp_path / name)
    dumps = [(tmp_path / name / "review.ndjson").read_bytes() for name in "abc"]
    assert dumps[0] == dumps[1] != dumps[2]


def test_texts_tell_the_experience_of_what_the_user_cares_for():
    taste = np.zeros((200, len(ASPECTS)))
    taste[:, ASPECTS.index("clean")] = 1
    texts = {}
    for name, felt in (("bad", -2.0), ("good", 2.0)):
        writer = ReviewWriter(np.random.default_rng(0))
        experience = np.full(taste.shape, felt)
        stars = np.full(200, 3)
        texts[name] = " ".join(writer.write(taste, experience, stars, np.zeros(200, int)))
    assert texts["bad"].count("filthy") > 20 and "filthy" not in texts["good"]
    assert texts["good"].count("spotless") > 20 and "spotless" not in texts["bad"]
