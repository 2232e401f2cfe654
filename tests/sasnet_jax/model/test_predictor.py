"""Any two sets of reviews, scored without a corpus: as the network does, and as `evaluate`."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import polars as pl
import pytest
import scipy.stats
from conftest import PATIENCE_SECONDS, ROOT, edit_json
from flax import nnx
from written_runs import SWITCHES, switched, write_run

import sasnet_jax
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import contexts_of
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.model import inputs, network, sampling, sets
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.sasnet import Known, ReviewSet
from sasnet_jax.train import run_folder

# Each switch alone, all of them, and (longer) all but one.
EVERY_SWITCH = pytest.mark.parametrize(
    ("base", "name"),
    [
        *((0, name) for name in (None, *SWITCHES)),
        (1, None),
        *(pytest.param(1, name, marks=pytest.mark.stress) for name in SWITCHES),
    ],
)


def _people(world, sizes=(0, 1, 2, 5)) -> list[sasnet_jax.Reviews]:
    """People who are in no corpus."""
    rng = np.random.default_rng(4)
    return [
        sasnet_jax.Reviews(rng.normal(size=(n, 16)), rng.integers(2, 11, n) / 2, rng.normal(size=n))
        for n in sizes
    ]


def _bias_features(sides, classes, shares) -> np.ndarray:
    """Smoothed log class frequencies and log(1 + n) of both sides, by the definition."""
    features = []
    for side in sides:
        counts = np.bincount(RatingScale().labels(side.stars, classes), minlength=classes)
        smoothed = (counts + 5 * shares) / (counts.sum() + 5)
        features += [*np.log(smoothed), np.log1p(counts.sum())]
    return np.array(features, np.float32)


def _crossed_features(sides, effects) -> np.ndarray:
    """Both effects, each given the other's, and the log class probabilities, by the definition."""
    *priors, residual = effects.variances
    features, mean, variance = [], 0.0, residual
    for side, prior in zip(sides, priors, strict=True):
        scores = np.interp(side.stars, effects.levels, effects.scores) - side.other_effect
        spread = 1 / (1 / prior + len(side) / residual)
        features += [spread * scores.sum() / residual, spread]
        mean, variance = mean + features[-2], variance + spread
    below = scipy.stats.norm.cdf([*effects.thresholds, np.inf], mean, np.sqrt(variance))
    return np.array([*features, *np.log(np.diff(below, prepend=0))], np.float32)


def _votes(voting, other, heads, shares) -> list[np.ndarray]:
    """The log-shares by which one side votes in each head, a review at a time."""
    logs, label = [], RatingScale().labels(voting[0].stars, shares.size)
    for head in heads:
        counts = np.zeros(shares.size)
        for vector, of_class in zip(voting[1][:, head], label, strict=True):
            mean = other[1][:, head].sum(axis=0)
            cosine = vector @ mean / np.linalg.norm(vector) / (np.linalg.norm(mean) or 1)
            counts[of_class] += np.exp(4 * cosine)
        share = counts / counts.sum() if label.size else counts
        logs.append(np.log((label.size * share + 5 * shares) / (label.size + 5)))
    return logs


def _offset_logits(run, pair) -> np.ndarray:
    """The regression's logits of one pair, from features computed review by review."""
    models, shares, kept = run.simple_models(), run.class_shares(), run.config.discriminants
    sides = [(side, run.transform().apply(side.vectors)) for side in pair]
    user, business = (texts.sum(axis=0) / (len(texts) + 4) for _, texts in sides)
    user, business = user[:kept], business[kept:]
    features = [user, business, np.outer(user[:16], business).ravel()]
    if run.config.sees_stars:
        heads = [slice(0, min(kept, 12)), slice(kept, kept + min(kept, 12))]
        votes = [*_votes(*sides, heads, shares), *_votes(*sides[::-1], heads, shares)]
        counts = _bias_features(pair, run.config.classes, shares)
        features = [counts, _crossed_features(pair, models.effects), *votes, *features]
    mean, scale, kernel, bias = models.regression
    return (np.concatenate(features) - mean) * scale @ kernel + bias


def _by_the_network(run, pairs, size=8) -> np.ndarray:
    """The whole network over whole sets of every pair: [pairs, c]."""
    transform, config = run.transform(), run.config
    graphdef, like = network.definition(config, transform.width)
    merged = nnx.merge(graphdef, run.best_params(like))
    sides = []
    for side in zip(*pairs, strict=True):
        read = [np.pad(transform.apply(x.vectors), ((0, size - len(x)), (0, 0))) for x in side]
        stars = [np.pad(2 * x.stars, (0, size - len(x))) for x in side]  # in half stars
        mask = [np.arange(size) < len(x) for x in side]
        label = [np.maximum(RatingScale().labels(x / 2, config.classes), 0) for x in stars]
        sides.append(
            ReviewSet(*(jnp.asarray(np.stack(part)) for part in (read, stars, mask, label)))
        )
    features = []
    if config.bias_term:
        features.append([_bias_features(p, config.classes, run.class_shares()) for p in pairs])
    if config.crossed_bias:
        features.append([_crossed_features(p, run.simple_models().effects) for p in pairs])
    bias = jnp.asarray(np.hstack([np.stack(part) for part in features])) if features else None
    logits = jax.jit(merged)(*sides, Known(bias, jnp.asarray(run.class_shares())))
    if config.offset:  # half of the network counts; see `write_run`
        logits = np.stack([_offset_logits(run, pair) for pair in pairs]) + 0.5 * logits
    return np.asarray(jax.nn.softmax(logits))


@EVERY_SWITCH
@pytest.mark.filterwarnings("ignore:the run reads texts alone")
def test_a_score_is_what_the_network_says_of_the_two_sets(world, tmp_path, base, name):
    settings = switched(SWITCHES, base, name)
    run = write_run(world, tmp_path / "run", eval_set_size=8, **settings)
    users = _people(world)
    businesses = _people(world, (3, 0, 7))
    scores = run.predictor().score(users, businesses)
    assert scores.shape == (4, 3, settings["classes"]) and scores.dtype == np.float32
    expected = _by_the_network(run, list(itertools.product(users, businesses)))
    np.testing.assert_allclose(scores.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, switched(SWITCHES, 1, None)])
def test_scores_are_those_of_an_evaluation_that_sees_the_same(world, tmp_path, settings):
    """A test user's other reviews against a business's training reviews, all of them in one set."""
    run = write_run(world, tmp_path / "run", eval_set_size=90, eval_sets=1, **settings)
    evaluate.evaluate(run)
    table = pl.read_parquet(run.folder / "predictions.parquet").filter(pl.col("split") == "test")
    targets = table["row"].to_numpy()[::20]
    expected = table.drop("row", "split", "label").to_numpy()[::20]
    corpus, users = world.corpus, run.users()
    businesses, predictor = run.businesses(context="train"), run.predictor()
    assert max(len(side) for sides in (users, businesses) for side in sides) <= 90
    for target, probability in zip(targets, expected, strict=True):
        rows = users.rows(corpus.user[target])
        person = users[corpus.user[target]]
        others = rows != target
        known = (None if x is None else x[others] for x in (person.stars, person.other_effect))
        person = sasnet_jax.Reviews(person.vectors[others], *known)
        business = businesses[corpus.business[target]]
        found = predictor.score([person], [business])[0, 0]
        np.testing.assert_allclose(found, probability, rtol=1e-4, atol=1e-5)


def test_stored_reviews_are_those_of_the_contexts(world, tmp_path):
    run = write_run(world, tmp_path / "run", review_features="text+stars")
    corpus = world.corpus
    for side, stored in (("user", run.users()), ("business", run.businesses())):
        entity = getattr(corpus, side)
        assert len(stored) == stored.table.height == entity.max() + 1
        for i in (0, 3, len(stored) - 1):
            assert set(stored.rows(i)) == set(np.flatnonzero(entity == i))
            np.testing.assert_array_equal(stored[i].stars, corpus.stars[stored.rows(i)])
    trained = run.businesses(context="train")
    contexts = contexts_of(corpus, "exclude")
    for target in corpus.rows("test")[:10]:
        assert len(trained[corpus.business[target]]) == contexts.business.size[target]


def test_the_same_reviews_score_the_same_whoever_owns_them_in_whatever_order(world, tmp_path):
    """More reviews than a set holds, so that they are drawn; the store has hashes of its texts."""
    store = shutil.copytree(world.store_folder, tmp_path / "store")
    hashes = np.random.default_rng(0).integers(1 << 60, size=(world.corpus.user.size, 2))
    np.save(store / "text_hashes.npy", hashes.astype(np.uint64))
    world = dataclasses.replace(world, store_folder=store)
    run = write_run(world, tmp_path / "run", set_size=3, eval_sets=4)
    predictor, stored = run.predictor(), run.users()
    i = int(np.argmax([len(stored.rows(i)) for i in range(len(stored))]))
    known = stored[i]
    assert len(known) > 6
    order = np.random.default_rng(0).permutation(len(known))
    pasted = sasnet_jax.Reviews(known.vectors[order])
    businesses = run.businesses()[:5]
    people = [known, pasted, *_people(world, (2, 9))]
    people[2:] = [sasnet_jax.Reviews(one.vectors) for one in people[2:]]
    scores = predictor.score(people, businesses)
    np.testing.assert_array_equal(scores[0], scores[1])
    alone = predictor.score([pasted], businesses)
    np.testing.assert_allclose(alone[0], scores[0], rtol=1e-5, atol=1e-6)
    other = sasnet_jax.Reviews(np.r_[pasted.vectors[:-1], pasted.vectors[:1] + 1])
    assert np.abs(predictor.score([other], businesses) - alone).max() > 1e-4


@pytest.mark.parametrize("sizes", [(7, 5), (2, 5), (7, 0)], ids=str)
def test_a_score_is_the_mean_over_draws_that_meet_each_other(world, tmp_path, sizes):
    """Draw i of the person meets draw i of the place; what fits into a set is every draw."""
    settings = {"match": True, "cross_attention": "set", "seed": 5, "scale": 0.15}
    run = write_run(world, tmp_path / "run", set_size=3, eval_sets=4, **settings)
    people = [sasnet_jax.Reviews(one.vectors) for one in _people(world, sizes)]
    stream = sampling.stream(5, "recommend")
    drawn = []
    for person in people:
        members = sets.members_of(person, False)
        digest, count = np.tile(members.digest, (4, 1)), np.full(4, len(person), np.int32)
        found = sets.draw(stream, digest, count, np.arange(4, dtype=np.int32), 3)
        rows = [np.asarray(p)[np.asarray(m)] for p, m in zip(*found, strict=True)]
        drawn.append([sasnet_jax.Reviews(members.vectors[r], np.full(r.size, 3.0)) for r in rows])
    expected = _by_the_network(run, list(zip(*drawn, strict=True)))
    score = run.predictor().score(people[:1], people[1:])[0, 0]
    np.testing.assert_allclose(score, expected.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert np.abs(expected - expected[0]).max() > 1e-3


@pytest.mark.parametrize("bias_term", [False, True])
def test_an_ensemble_is_the_mean_of_its_runs(world, tmp_path, bias_term):
    settings = {"set_size": 3, "eval_sets": 2, "bias_term": bias_term}
    runs = [write_run(world, tmp_path / str(s), seed=s, **settings) for s in (0, 1, 2)]
    users, businesses = runs[0].users()[:6], runs[0].businesses()[:9]
    each = [run.predictor().score(users, businesses) for run in runs]
    together = sasnet_jax.Predictor(runs).score(users, businesses)
    np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 0.01


def test_runs_that_differ_in_more_than_their_seed_are_no_ensemble(world, tmp_path):
    runs = [write_run(world, tmp_path / str(width), width=width) for width in (16, 32)]
    with pytest.raises(UserError, match=r"16 and .*32 differ in --width: .* only in --seed"):
        sasnet_jax.Predictor(runs)
    with pytest.raises(UserError, match="names a run twice"):
        sasnet_jax.Predictor([runs[0], runs[0]])
    with pytest.raises(UserError, match="takes a list of runs"):
        sasnet_jax.Predictor([])


def test_a_predictor_needs_no_corpus(world, tmp_path):
    """Not even for the class shares of a bias term are they read; nor are the stores."""
    run = write_run(world, tmp_path / "run", bias_term=True, match=True, discriminants=4)
    people = _people(world)
    before = run.predictor().score(people, people)
    path = run.folder / "config.json"
    settings = json.loads(path.read_text())["config"]
    edit_json(path, config=settings | {"corpus": "/nowhere", "store": ["/nowhere"]})
    again = sasnet_jax.load_run(run.folder).predictor().score(people, people)
    np.testing.assert_array_equal(again, before)


def test_a_run_without_class_shares_is_refused_where_its_bias_term_needs_them(world, tmp_path):
    for bias_term in (False, True):
        run = write_run(world, tmp_path / f"run_{bias_term}", bias_term=bias_term)
        edit_json(run.folder / "config.json", class_shares=None)
    sasnet_jax.load_run(tmp_path / "run_False").predictor()
    with pytest.raises(sasnet_jax.UserError, match="lacks class_shares: train again"):
        sasnet_jax.load_run(tmp_path / "run_True").predictor()


def test_reviews_that_a_run_cannot_read_are_refused(world, tmp_path):
    rated = write_run(world, tmp_path / "rated", review_features="text+stars").predictor()
    people = _people(world)
    with pytest.raises(sasnet_jax.WrongEncoder, match="17 dimensions, but the run reads 16"):
        rated.score([sasnet_jax.Reviews(np.zeros((2, 17)), [3, 4])], people)
    for stars in (None, [3, None]):
        with pytest.raises(sasnet_jax.NeedsStars, match="stars of every review"):
            rated.score(people, [sasnet_jax.Reviews(np.zeros((2, 16)), stars)])
    text = write_run(world, tmp_path / "text").predictor()
    with pytest.warns(UserWarning, match="ignores the stars"):
        found = text.score(people[2:], [])
        found = text.score(people[2:], people[2:])
    plain = [sasnet_jax.Reviews(one.vectors) for one in people[2:]]
    np.testing.assert_array_equal(found, text.score(plain, plain))


def test_a_run_knows_the_scale_of_its_corpus(world, tmp_path):
    """Doubled stars on a doubled scale mean the same; its own end is the run's, and not 5."""
    scale = RatingScale(high=10.0, bad_up_to=6.0, excellent_from=10.0)
    people = _people(world)
    doubled = [sasnet_jax.Reviews(one.vectors, 2 * one.stars) for one in people]
    settings = {"review_features": "text+stars", "bias_term": True, "eval_set_size": 8}
    stars = write_run(world, tmp_path / "stars", **settings).predictor()
    run = write_run(world, tmp_path / "doubled", **settings)
    edit_json(run.folder / "config.json", ratings=msgspec.to_builtins(scale))
    others = sasnet_jax.load_run(run.folder).predictor()
    np.testing.assert_array_equal(others.score(doubled, doubled), stars.score(people, people))
    for predictor, rating, range_ in (
        (stars, 7, "above 0 and at most 5, not 7"),
        (stars, 0, "above 0 and at most 5, not 0"),
        (others, 10.5, r"at least 0 and at most 10, not 10.5: .* ratings of 0\.\.10"),
        (others, np.inf, "not inf"),
    ):
        with pytest.raises(UserError, match=range_):
            predictor.score([sasnet_jax.Reviews(np.zeros((1, 16)), [rating])], people)


def test_training_reads_and_records_the_scale_of_its_corpus(world):
    config = TrainConfig(
        corpus=str(world.corpus_folder), store=(str(world.store_folder),), output="x"
    )
    corpus, stores = inputs.open_inputs(config)
    transform = inputs.fit_transform(config, corpus, stores)
    scale = RatingScale(low=-5.0)
    moved = dataclasses.replace(corpus, ratings=scale)
    assert run_folder.describe(config, moved, stores).ratings == scale
    data = inputs.build_data(config, moved, stores, transform)
    np.testing.assert_array_equal(data.stars, corpus.stars + 5)  # eleven steps from -5 to 5


def test_a_run_older_than_ratings_reads_stars(world, tmp_path):
    run = write_run(world, tmp_path / "run", review_features="text+stars")
    people = _people(world)
    scores = run.predictor().score(people, people)
    path = run.folder / "config.json"
    values = {name: value for name, value in edit_json(path).items() if name != "ratings"}
    path.write_text(json.dumps(values))
    older = sasnet_jax.load_run(run.folder).predictor()
    np.testing.assert_array_equal(older.score(people, people), scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, np.nan]],), "finite"),
        (([1.0, 2.0],), r"of shape \[n, e\]"),
        (([[1e300]],), "finite"),
        ((["The soup was cold."],), "must be numbers"),
        (([[1.0], [1.0, 2.0]],), "must be numbers in rows of equal length"),
        (([[1.0, 2.0]], [3, 4]), r"1 vectors, but stars of shape \(2,\)"),
        (([[1.0, 2.0]], ["good"]), "stars of reviews must be numbers"),
    ],
)
def test_what_are_no_reviews_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        sasnet_jax.Reviews(*arguments)


MISUSES = """
import sys
import sasnet_jax
run = sasnet_jax.load_run(sys.argv[1])
person = sasnet_jax.Reviews([[0.0] * 16])
score = run.predictor().score
for misuse in (
    lambda: score(person, [person]),
    lambda: score([person], person),
    lambda: score([person.vectors], [person]),
    lambda: sasnet_jax.Predictor(run),
    lambda: sasnet_jax.Predictor(sys.argv[1]),
    lambda: sasnet_jax.Predictor([sys.argv[1]]),
    lambda: sasnet_jax.Reviews([[0.0]], 3),
    lambda: run.users(context="Train"),
):
    try:
        misuse()
    except sasnet_jax.UserError as error:
        print(error)
"""


def test_what_is_meant_otherwise_is_refused(world, tmp_path):
    """Runs without the type checks of the tests, as for a user."""
    run = write_run(world, tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "-c", MISUSES, str(run.folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    *scores, _, _, _, stars, context = lines = result.stdout.splitlines()
    assert len(lines) == 8
    assert all("must be " in line and "sasnet_jax.Reviews" in line for line in scores)
    assert all("takes a list of runs" in line for line in lines[3:6])
    assert "stars of shape ()" in stars and "context='Train' is none of all, train" in context


def test_a_run_that_saw_its_targets_is_said_to_be_leaky(world, tmp_path):
    run = write_run(world, tmp_path / "run", target_review="include")
    with pytest.warns(UserWarning, match=r"run was trained with the target included \(leaky\)"):
        run.predictor()


def test_nobody_and_nothing_give_empty_scores(world, tmp_path):
    predictor = write_run(world, tmp_path / "run").predictor()
    assert predictor.score([], [sasnet_jax.Reviews([])]).shape == (0, 1, 3)
    nobody = predictor.score([sasnet_jax.Reviews([])], [sasnet_jax.Reviews([])])
    assert nobody.sum() == pytest.approx(1)
