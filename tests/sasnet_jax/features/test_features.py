"""What simple models know of a pair: against brute-force loops, dense algebra and simulation."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import Contexts, contexts_of
from sasnet_jax.corpus.counts import class_shares
from sasnet_jax.features import averages, effects, out_of_fold, regression, simple_models, votes
from sasnet_jax.features.simple_models import Reader


def _heads(corpus, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(corpus.user.size, 16)).astype(np.float32) for _ in range(4)]


def _reader(corpus, heads) -> Reader:
    shares = class_shares(corpus.label[corpus.rows("train")], 3)
    return Reader(corpus=corpus, label=corpus.label, shares=shares, heads=heads)


def _rows_of(context, target) -> np.ndarray:
    """The reviews of a context, by its definition."""
    places = np.arange(context.size[target])
    return context.rows[context.start[target] + places + (places >= context.skip[target])]


def _fit(corpus, heads, **options):
    asked = {"crossed": True, "offset": True, "with_stars": True, "seed": 0} | options
    contexts = contexts_of(corpus, "exclude")
    return simple_models.fit(_reader(corpus, heads), contexts, **asked)


def test_votes_and_averages_equal_a_loop(world):
    corpus = world.corpus
    contexts, heads = contexts_of(corpus, "exclude"), _heads(corpus)
    shares = class_shares(corpus.label[corpus.rows("train")], 3)
    targets = np.concatenate([corpus.rows("test")[:15], corpus.rows("train")[:15]])
    voted = votes.features(contexts, targets, heads[:2], corpus.label, shares)
    averaged = averages.averages(contexts, targets, *heads[:2])
    multiplied = averages.products(averaged)
    for i, target in enumerate(targets):
        users, businesses = (_rows_of(context, target) for context in contexts)
        expected = []
        for voting, others in ((users, businesses), (businesses, users)):
            for head in heads[:2]:
                counts, mean = np.zeros(3), head[others].sum(axis=0)
                for row in voting:
                    lengths = np.linalg.norm(head[row]) * np.linalg.norm(mean)
                    cosine = head[row] @ mean / lengths if others.size else 0
                    counts[corpus.label[row]] += np.exp(4 * cosine)
                share = counts / counts.sum() if voting.size else counts
                expected.append(np.log((voting.size * share + 5 * shares) / (voting.size + 5)))
        np.testing.assert_allclose(voted[i], np.concatenate(expected), rtol=1e-4, atol=1e-5)
        user, business = (
            head[rows].sum(axis=0) / (rows.size + 4)
            for head, rows in zip(heads[:2], (users, businesses), strict=True)
        )
        np.testing.assert_allclose(averaged[i], np.r_[user, business], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(multiplied[i], np.outer(user, business).ravel(), atol=1e-5)


def _simulated(seed=0, users=400, businesses=60, reviews=4000, variances=(0.3, 0.2, 0.5)):
    """User, business and stars of reviews whose scores are the sum of three normals."""
    rng = np.random.default_rng(seed)
    user, business = rng.integers(users, size=reviews), rng.integers(businesses, size=reviews)
    deviations = np.sqrt(variances)
    kindness, quality = rng.normal(size=users), rng.normal(size=businesses)
    score = kindness[user] * deviations[0] + quality[business] * deviations[1]
    score += rng.normal(size=reviews) * deviations[2]
    return user, business, score, kindness * deviations[0]


def _corpus_of(world, user, business, stars):
    return dataclasses.replace(
        world.corpus,
        user=user.astype(np.int32),
        business=business.astype(np.int32),
        stars=stars.astype(np.float32),
        label=((stars > 3).astype(np.int8) + (stars >= 5)).astype(np.int8),
        date=np.zeros(user.size, np.int64),
        split=np.full(user.size, "train"),
    )


@pytest.mark.parametrize(("users", "levels"), [(400, 5), (800, None)])  # None: a continuous rating
def test_variances_and_effects_are_those_of_the_simulation(world, users, levels):
    user, business, score, kindness = _simulated(users=users)
    stars = 1 + np.digitize(score, norm.ppf([0.1, 0.3, 0.5, 0.8])) if levels else 4 + score
    corpus = _corpus_of(world, user, business, stars)
    fitted = effects.fit(corpus, corpus.label, np.arange(user.size, dtype=np.int32))
    # Five levels of a normal keep most of its variance, and scores are scaled to variance 1.
    np.testing.assert_allclose(fitted.variances, (0.3, 0.2, 0.5), atol=0.06)
    known = np.unique(user)
    expected = 0.75 if users == 400 else 0.6
    assert np.corrcoef(fitted.user[known], kindness[known])[0, 1] > expected
    assert (np.diff(fitted.scores) > 0).all()
    scores = fitted.score(corpus.stars)
    np.testing.assert_allclose([scores.mean(), scores.var()], (0, 1), atol=1e-6)


def test_effects_are_the_posterior_mean_of_the_normal_model(world):
    """Given the variances: against dense linear algebra over all effects at once."""
    user, business, score, _ = _simulated(users=30, businesses=8, reviews=150)
    stars = 1 + np.digitize(score, [-1, 0, 1, 1.5])
    corpus = _corpus_of(world, user, business, stars)
    fitted = effects.fit(corpus, corpus.label, np.arange(user.size, dtype=np.int32))
    design = np.hstack([np.eye(30)[user], np.eye(8)[business]])
    prior = np.repeat(1 / fitted.variances[:2], [30, 8])
    precision = design.T @ design / fitted.variances[2] + np.diag(prior)
    expected = np.linalg.solve(precision, design.T @ fitted.score(corpus.stars))
    expected /= fitted.variances[2]
    np.testing.assert_allclose(np.r_[fitted.user, fitted.business], expected, atol=2e-3)


def test_an_unknown_entity_has_the_prior_and_probabilities_sum_to_one(world):
    corpus = world.corpus
    fitted = effects.fit(corpus, corpus.label, corpus.rows("train"))
    nobody = fitted.of_set(np.zeros(0), np.zeros(0), 0)
    np.testing.assert_allclose(nobody, [0, fitted.variances[0]])
    pair = np.stack([nobody, fitted.of_set(np.array([5.0, 5.0]), np.zeros(2), 1)])[None]
    found = effects.of_pair(pair.astype(np.float32), fitted.thresholds, fitted.variances[2])
    assert found.shape == (1, 7)
    assert np.exp(found[0, 4:]).sum() == pytest.approx(1, abs=1e-5)


def test_features_of_training_reviews_ignore_their_whole_fold(world):
    """Neither a target's rating nor that of another review in its fold matters to it."""
    corpus, heads = world.corpus, _heads(world.corpus)
    train = corpus.rows("train")
    held_out = np.setdiff1d(np.arange(corpus.user.size), train).astype(np.int32)
    fold = out_of_fold.folds_of(corpus.label, train, 0)
    inside = train[fold[train] == 2]

    def read(corpus):
        reader = dataclasses.replace(
            _reader(world.corpus, heads), corpus=corpus, label=corpus.label
        )
        contexts = contexts_of(corpus, "exclude")
        return out_of_fold.compute(contexts, train, held_out, fold, reader.texts_and_ratings)

    before = read(corpus)
    stars, label = corpus.stars.copy(), corpus.label.copy()
    stars[inside], label[inside] = 6 - stars[inside], 2 - label[inside]
    after = read(dataclasses.replace(corpus, stars=stars, label=label))
    for name in ("counts", "effects", "votes"):
        np.testing.assert_array_equal(after[name][inside], before[name][inside])
        others = np.setdiff1d(train, inside)
        assert np.abs(after[name][others] - before[name][others]).max() > 1e-3


def test_the_regression_of_a_fold_never_sees_the_labels_of_its_targets(world, monkeypatch):
    """On text alone, whose features no label enters; with the same folds and the same penalty."""
    corpus, heads = world.corpus, _heads(world.corpus)
    train = corpus.rows("train")
    fold = out_of_fold.folds_of(corpus.label, train, 0)
    monkeypatch.setattr(out_of_fold, "folds_of", lambda *_: fold)
    monkeypatch.setattr(regression, "PENALTIES", (0.1,))
    monkeypatch.setattr(simple_models, "TEXT", simple_models.TEXT[:1])
    inside = train[fold[train] == 1]
    label = corpus.label.copy()
    label[inside] = 2 - label[inside]
    options = {"crossed": False, "with_stars": False}
    before = _fit(corpus, heads, **options).logits
    after = _fit(dataclasses.replace(corpus, label=label), heads, **options).logits
    np.testing.assert_array_equal(after[inside], before[inside])
    others = np.setdiff1d(np.arange(label.size), inside)
    assert (np.abs(after[others] - before[others]).max(axis=1) > 0).all()


def test_no_held_out_target_is_read_from_its_own_rating(world):
    corpus, heads = world.corpus, _heads(world.corpus)
    fitted = _fit(corpus, heads)
    targets = corpus.rows("test")[:4]

    def predicted(corpus, heads):
        reader = _reader(corpus, heads)
        part = out_of_fold.Part(targets, contexts_of(corpus, "exclude"), corpus.rows("train"))
        found = simple_models.predict_again(fitted, reader, part, with_stars=True)
        return np.hstack([found.logits, found.crossed])

    before = predicted(corpus, heads)
    np.testing.assert_allclose(before[:, :3], fitted.logits, rtol=1e-5, atol=1e-5)
    for target in targets:
        stars, label = corpus.stars.copy(), corpus.label.copy()
        stars[target], label[target] = 6 - stars[target], (label[target] + 1) % 3
        noisy = [head.copy() for head in heads]
        for head in noisy:
            head[target] = 9
        after = predicted(dataclasses.replace(corpus, stars=stars, label=label), noisy)
        np.testing.assert_array_equal(after[target], before[target])


def test_a_regression_on_votes_finds_what_only_likeness_tells(world):
    """Users of two kinds, who write differently; a business pleases one of the kinds."""
    corpus, rng = world.corpus, np.random.default_rng(3)
    kind = rng.integers(2, size=corpus.user.max() + 1)
    pleases = rng.integers(2, size=corpus.business.max() + 1)
    label = np.where(kind[corpus.user] == pleases[corpus.business], 2, 0).astype(np.int8)
    label[rng.random(label.size) < 0.1] = 1
    heads = _heads(corpus)
    heads[0][:, 0] = 4 * (2 * kind[corpus.user] - 1) + rng.normal(size=label.size)
    stars = np.array([2, 4, 5], np.float32)[label]
    corpus = dataclasses.replace(corpus, label=label, stars=stars)
    test = corpus.rows("test")
    votes_help = {}
    for with_stars in (False, True):
        found = _fit(corpus, heads, crossed=False, with_stars=with_stars)
        votes_help[with_stars] = (found.logits[test].argmax(axis=1) == label[test]).mean()
    assert votes_help[True] > votes_help[False] + 0.1, votes_help


@pytest.mark.parametrize("reviews", [1, 2, 3])
def test_a_class_of_two_training_reviews_is_in_the_other_folds_of_every_fold(world, reviews):
    corpus = world.corpus
    train = corpus.rows("train")
    label = np.where(corpus.label == 2, 1, 0).astype(np.int8)
    label[train[7 : 7 + reviews]] = 2
    corpus = dataclasses.replace(corpus, label=label)
    if reviews < 2:
        with pytest.raises(UserError, match="two training reviews of every class"):
            _fit(corpus, _heads(corpus))
        return
    fold = out_of_fold.folds_of(label, train, 0)
    sizes = np.bincount(fold[train])
    assert sizes.max() - sizes.min() <= 3  # of each class they differ by one at most
    fitted = _fit(corpus, _heads(corpus))
    assert fitted.logits.shape == (label.size, 3) and np.isfinite(fitted.logits).all()
    assert np.isfinite(fitted.crossed).all()


def test_simple_models_are_read_as_they_were_written(world, tmp_path):
    fitted = _fit(world.corpus, _heads(world.corpus))
    path = tmp_path / "simple_models.npz"
    path.write_bytes(fitted.to_npz())
    found = simple_models.SimpleModels.load(path, "train again")
    for name in ("effects", "regression"):
        for mine, other in zip(getattr(found, name), getattr(fitted, name), strict=True):
            np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(found.logits, fitted.logits)
    np.testing.assert_array_equal(found.crossed, fitted.crossed)


def test_the_logits_of_training_reviews_are_not_those_of_a_regression_that_has_seen_them(world):
    corpus, heads = world.corpus, _heads(world.corpus)
    fitted = _fit(corpus, heads)
    contexts = contexts_of(corpus, "exclude")
    assert isinstance(contexts, Contexts)
    train, test = corpus.rows("train"), corpus.rows("test")

    def loss(rows):
        return -fitted.logits[rows, corpus.label[rows]].mean()

    np.testing.assert_allclose(np.exp(fitted.logits[[*train, *test]]).sum(axis=1), 1, rtol=1e-5)
    assert loss(train) > loss(test) - 0.15  # no better on training reviews than on others
