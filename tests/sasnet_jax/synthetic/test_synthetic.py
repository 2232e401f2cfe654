import hashlib

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.files import read_record, write_json
from sasnet_jax.synthetic import text as texts_of
from sasnet_jax.synthetic.families import (
    _STAR_SHARES,
    FAMILIES,
    STAR_NOISE,
    VISIT_NOISE,
    YELP,
    draw_tastes,
    star_cuts,
)
from sasnet_jax.synthetic.text import (
    LEVEL_CUTS,
    NoisyWriter,
    ReviewWriter,
    StyleWriter,
    read_facts,
    read_style,
)
from sasnet_jax.synthetic.vocabulary import ASPECTS, CUISINES, STYLES
from sasnet_jax.synthetic.world import Truth, generate, make_world, true_probabilities

WORLDS = list(FAMILIES)


def _visits(world, latent, rng, n):
    """Users, businesses, and the class probabilities of their visits, latents known."""
    user = rng.integers(latent.taste.shape[0], size=n)
    business = rng.integers(latent.quality.shape[0], size=n)
    bias = latent.user_bias[user] + latent.business_bias[business]
    known = (bias, latent.taste[user], latent.quality[business])
    return user, business, FAMILIES[world].class_probabilities(*known)


def _write(rng, taste, experience, small_talk=0.0):
    """Texts of visits, with what was put into them."""
    stars = rng.integers(1, 6, size=len(taste))
    cuisine = rng.integers(len(CUISINES), size=len(taste))
    texts = ReviewWriter(rng, small_talk).write(taste, experience, stars, cuisine)
    return texts, stars, cuisine


@pytest.mark.parametrize("world", WORLDS)
def test_class_probabilities_equal_simulated_visits(world):
    rng = np.random.default_rng(0)
    latent = make_world(4000, 0, world=world)
    user, business, expected = _visits(world, latent, rng, 40)
    draws = 20_000
    simulated = np.zeros((40, 3))
    bias = latent.user_bias[user] + latent.business_bias[business]
    for i in range(40):
        quality = latent.quality[business[i]]
        felt = quality + VISIT_NOISE * rng.normal(size=(draws, quality.size))
        taste = np.tile(latent.taste[user[i]], (draws, 1))
        match = FAMILIES[world].match(taste, felt)
        stars = 1 + np.searchsorted(
            star_cuts(), bias[i] + match + STAR_NOISE * rng.normal(size=draws)
        )
        simulated[i] = (stars <= 3).mean(), (stars == 4).mean(), (stars == 5).mean()
    np.testing.assert_allclose(expected, simulated, atol=5 * 0.5 / np.sqrt(draws))


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "null"])
def test_the_match_matters(world):
    """Knowing what users and businesses are like on average only is clearly worse."""
    rng = np.random.default_rng(1)
    latent = make_world(20_000, 1, world=world)
    user, business, truth = _visits(world, latent, rng, 50_000)
    knowing = truth.max(axis=1).mean()
    everyone = latent.taste[rng.permutation(len(latent.taste))[:200]]
    mean_match = [
        FAMILIES[world].match(everyone, np.tile(quality, (200, 1))).mean()
        for quality in latent.quality
    ]
    bias_only = latent.user_bias[user] + latent.business_bias[business]
    bias_only += np.array(mean_match)[business]
    bins = np.digitize(bias_only, np.quantile(bias_only, np.linspace(0, 1, 101)[1:-1]))
    guess = np.array([truth[bins == b].mean(axis=0).argmax() for b in range(100)])[bins]
    biased = truth[np.arange(len(truth)), guess].mean()
    majority = truth.mean(axis=0).max()
    assert majority + 0.05 < biased < knowing - 0.05


def _matches(world, users, businesses):
    """The expected match of every user with every business, visit noise averaged out."""
    latent = make_world(20_000, 2, world=world)
    taste, quality = latent.taste[:users], latent.quality[:businesses]
    noise = np.random.default_rng(0).normal(size=(200, quality.shape[1]))
    match = np.empty((users, businesses))
    for u in range(users):
        for v in range(businesses):
            felt = quality[v] + VISIT_NOISE * noise
            match[u, v] = FAMILIES[world].match(np.tile(taste[u], (200, 1)), felt).mean()
    return taste, quality, match


@pytest.mark.parametrize(("world", "share"), [("null", 0.0), ("kinds", 0.7), ("veto", 0.4)])
def test_interactions_are_what_the_family_says(world, share):
    """What is left of every pair's match when both main effects are taken off."""
    _, _, match = _matches(world, 30, 60)
    main = match.mean(axis=0) + match.mean(axis=1, keepdims=True) - match.mean()
    left = (match - main).var() / match.var()
    if share == 0:
        assert left < 0.02  # visit noise, averaged over 200 draws
    else:
        assert left > 0.8 * share


def test_kinds_agree_within_and_not_between():
    taste, _, match = _matches("kinds", 24, 200)
    same = taste.argmax(axis=1)[:, None] == taste.argmax(axis=1)
    agreement = np.corrcoef(match)
    assert agreement[same].min() > 0.95
    assert abs(agreement[~same]).max() < 4 / np.sqrt(200)


def test_the_worst_explains_a_veto_and_the_mean_does_not_as_well():
    taste, quality, match = _matches("veto", 40, 60)
    cared = np.where(taste[:, None] > 0, quality, np.nan)  # [u, v, k]
    explained = [
        np.corrcoef(match.ravel(), summary.ravel())[0, 1] ** 2
        for summary in (np.nanmin(cared, axis=2), np.nanmean(cared, axis=2))
    ]
    assert explained[0] > 0.9 > 0.75 > explained[1]


@pytest.mark.parametrize("world", WORLDS)
def test_shares_of_stars_and_histories_are_like_real_ones(world, tmp_path):
    generate(6000, 3, tmp_path, world=world)
    reviews = pl.read_ndjson(tmp_path / "review.ndjson")
    stars = reviews["stars"].to_numpy()
    shares = np.array([(stars == s).mean() for s in (1, 2, 3, 4, 5)])
    # The mix depends on which users and businesses are frequent, so it is near the plan only.
    np.testing.assert_allclose(shares, _STAR_SHARES, atol=0.07)
    histories = reviews["user_id"].value_counts()["count"].to_numpy()
    if world != "aspects":
        assert (histories <= 3).mean() > 0.5
        assert histories.max() > 40


@pytest.mark.parametrize("world", WORLDS)
def test_the_true_probabilities_of_a_pair_are_those_of_its_reviews(world, tmp_path):
    """By the stars that were generated, at every probability of an excellent or a bad visit."""
    generate(4000, 5, tmp_path, world=world)
    truth = read_record(tmp_path / "truth.json", Truth)
    reviews = pl.read_ndjson(tmp_path / "review.ndjson")
    ids, rows = zip(
        *(np.unique(reviews[f"{side}_id"], return_inverse=True) for side in ("user", "business")),
        strict=True,
    )
    probability = true_probabilities(truth, *(names.tolist() for names in ids))[rows]
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    best = probability.max(axis=1).mean()
    assert best == pytest.approx(truth.best_accuracy_knowing_the_latents, abs=1e-12)
    stars = reviews["stars"].to_numpy()
    assert (stars == 5).mean() + 0.1 < best < 0.8
    for p, happened in ((probability[:, 0], stars <= 3), (probability[:, 2], stars == 5)):
        for part in np.array_split(p.argsort(), 8):
            error = np.sqrt((p * (1 - p))[part].sum())
            assert abs(happened[part].sum() - p[part].sum()) < 4 * error


def test_a_world_that_numpy_draws_otherwise_is_refused(tmp_path):
    generate(200, 5, tmp_path)
    truth = read_record(tmp_path / "truth.json", Truth)
    changed = msgspec.structs.replace(truth, latents_sum=truth.latents_sum + 1)
    with pytest.raises(UserError, match="draws another world"):
        true_probabilities(changed, ["u0000000"], ["b0000000"])


def test_a_truth_from_before_the_families_is_of_aspects(tmp_path):
    values = {"reviews": 200, "seed": 5, "best_accuracy_knowing_the_latents": 0.7}
    values |= {"best_accuracy_knowing_the_other_reviews": 0.6, "measured_on_test_reviews": 20}
    write_json(tmp_path / "truth.json", values)
    truth = read_record(tmp_path / "truth.json", Truth)
    assert (truth.world, truth.inference) == ("aspects", {})
    assert true_probabilities(truth, ["u0000000"], ["b0000000"]).shape == (1, 1, 3)


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_seed_gives_the_same_dump(world, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        generate(200, seed, tmp_path / name, world=world)
    dumps = [(tmp_path / name / "review.ndjson").read_bytes() for name in "abc"]
    assert dumps[0] == dumps[1] != dumps[2]


def test_the_reviews_of_aspects_are_those_of_all_earlier_figures(tmp_path):
    generate(1500, 0, tmp_path)
    digest = hashlib.sha256((tmp_path / "review.ndjson").read_bytes()).hexdigest()
    assert digest == "db4846487eb51bfd0cf03dd7535a90daaf15b99aead532a70732dbbd52cb0366"


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
        if facts.favorite is not None:
            favorites += 1
            assert facts.favorite == taste[row].argmax()
    assert 100 < favorites < 200  # 30 %


def test_what_a_user_cares_for_is_mentioned_more():
    rng = np.random.default_rng(0)
    taste = np.zeros((400, len(ASPECTS)))
    taste[:, ASPECTS.index("clean")] = 1
    texts, _, _ = _write(rng, taste, rng.normal(size=taste.shape))
    mentioned = [aspect for text in texts for aspect, _ in read_facts(text).mentions]
    shares = np.bincount(mentioned, minlength=len(ASPECTS)) / 400
    assert shares[ASPECTS.index("clean")] > 0.9 > 0.5 > np.delete(shares, 6).max()


def test_a_noisy_text_tells_what_was_put_into_it():
    rng = np.random.default_rng(0)
    taste, experience = draw_tastes(800, rng), rng.normal(size=(800, len(ASPECTS)))
    stars = rng.integers(1, 6, size=800)
    cuisine = rng.integers(len(CUISINES), size=800)
    texts = NoisyWriter(rng, 3.0).write(taste, experience, stars, cuisine)
    levels = np.searchsorted(LEVEL_CUTS, experience)
    facts = [read_facts(text) for text in texts]
    for row, fact in enumerate(facts):
        assert fact.cuisine == cuisine[row]
        assert 1 <= len(fact.mentions) == len(dict(fact.mentions)) <= 3
        assert all(level == levels[row, aspect] for aspect, level in fact.mentions)
        assert fact.favorite in (None, taste[row].argmax())
        assert fact.stars in (0, stars[row])
    assert 0.5 < np.mean([fact.stars > 0 for fact in facts]) < 0.7


def test_a_text_in_shuffled_words_shows_kind_and_stars():
    rng = np.random.default_rng(0)
    kind, stars = rng.integers(len(STYLES), size=800), rng.integers(1, 6, size=800)
    taste = np.eye(len(STYLES))[kind]
    texts = StyleWriter(rng, 3.0).write(taste, taste, stars, stars)
    facts = [read_style(text) for text in texts]
    style = np.array([fact.style for fact in facts])
    assert 0.55 < style[np.arange(800), kind].sum() / style.sum() < 0.65
    told = np.array([fact.stars for fact in facts])
    assert ((told == 0) | (told == stars)).all() and 0.5 < (told > 0).mean() < 0.7


def test_no_sentence_or_word_has_two_meanings():
    """Every list of synonyms is disjoint from the others that stand in its place."""
    lists = [texts_of._habits(kind) for kind in range(len(STYLES))]
    lists += [texts_of._verdicts(stars) for stars in range(1, 6)]
    lists += [texts_of._names(), tuple(set(texts_of.FILLERS))]
    words = [word for each in lists for word in each]
    assert len(words) == len(set(words))
    for aspect in range(len(ASPECTS)):
        words = [word for level in range(5) for word in set(texts_of._synonyms(aspect, level))]
        assert len(words) == len(set(words))


def test_rare_words_stay_rare(tmp_path):
    generate(4000, 0, tmp_path, world="kinds")
    texts = pl.read_ndjson(tmp_path / "review.ndjson")["text"]
    counts = texts.str.split(" ").explode().value_counts()["count"].to_numpy()
    assert np.median(counts) < 10 < 1000 < counts.max()


@pytest.mark.stress
@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_own_text_tells_as_much_as_a_real_one(world, tmp_path):
    """TF-IDF and logistic regression, on the text of the review to be predicted: about 0.75."""
    generate(9400, 1, tmp_path, world=world)
    reviews = pl.read_ndjson(tmp_path / "review.ndjson")
    label = RatingScale().labels(reviews["stars"].to_numpy().astype(np.float32), 3)
    reader = make_pipeline(
        TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=300)
    )
    assert 0.72 < cross_val_score(reader, reviews["text"].to_numpy(), label, cv=5).mean() < 0.78
