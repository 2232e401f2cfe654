import numpy as np
import pytest

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import (
    averaging_matrix,
    contexts_of,
    read_grouped,
    restrict,
    truncate_histories,
)
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.counts import context_counts, out_of_fold_counts
from sasnet_jax.prepare import command as prepare
from sasnet_jax.synthetic.world import generate

SCHEMES = ("by_user", "by_review", "within_user", "by_time")


@pytest.fixture(scope="module", params=SCHEMES)
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "corpus"
    settings = {"split": request.param, "held_out": 2}
    prepare.run(prepare.PrepareConfig(synthetic=600, output=str(folder), **settings))
    found = read_corpus(folder)
    assert found.split_scheme == request.param
    return found


def _brute_force(corpus, target, side, target_review):
    """The context of one target by looking at every review (the table of docs/design.md 5)."""
    entity = getattr(corpus, side)
    rows = set()
    for row in range(entity.size):
        if entity[row] != entity[target]:
            continue
        if target_review == "exclude":
            same_pair = corpus.user[row] == corpus.user[target]
            same_pair &= corpus.business[row] == corpus.business[target]
            if same_pair:
                continue
            if corpus.split_scheme == "by_time":
                visible = corpus.date[row] < corpus.date[target]
            elif corpus.split_scheme == "by_user" and side == "user":
                visible = corpus.split[row] == corpus.split[target]
            else:
                visible = corpus.split[row] == "train"
            if not visible:
                continue
        rows.add(row)
    return rows


def _members(context, target):
    positions = np.arange(context.size[target])
    positions = positions + (positions >= context.skip[target])
    return context.rows[context.start[target] + positions].tolist()


@pytest.mark.parametrize("target_review", ["exclude", "include"])
@pytest.mark.parametrize("side", ["user", "business"])
def test_contexts_equal_a_brute_force_loop(corpus, side, target_review):
    context = getattr(contexts_of(corpus, target_review), side)
    sizes = set()
    for target in range(corpus.user.size):
        members = _members(context, target)
        assert len(members) == len(set(members))
        assert set(members) == _brute_force(corpus, target, side, target_review)
        assert (target in members) == (target_review == "include")
        sizes.add(len(members))
    assert len(sizes) > 5  # the world has short and long lists


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_averages_equal_a_loop(corpus, target_review):
    features = np.random.default_rng(0).normal(size=(corpus.user.size, 3))
    targets = corpus.rows("test")
    contexts = contexts_of(corpus, target_review)
    for side, context in zip(("user", "business"), contexts, strict=True):
        expected = np.zeros((targets.size, 3))
        for i, target in enumerate(targets):
            rows = sorted(_brute_force(corpus, target, side, target_review))
            if rows:
                expected[i] = features[rows].mean(axis=0)
        found = averaging_matrix(context, targets) @ features
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_restricted_contexts_hold_what_is_kept_and_no_more(corpus, target_review):
    kept = np.random.default_rng(0).random(corpus.user.size) < 0.4
    whole = contexts_of(corpus, target_review)
    for before, after in zip(whole, restrict(whole, kept), strict=True):
        for target in range(corpus.user.size):
            expected = [row for row in _members(before, target) if kept[row]]
            assert _members(after, target) == expected


@pytest.mark.parametrize("target_review", ["exclude", "include"])
@pytest.mark.parametrize("reviews", [0, 1, 3])
def test_truncated_histories_are_the_first_reviews(corpus, target_review, reviews):
    whole = contexts_of(corpus, target_review)
    found = truncate_histories(whole, reviews)
    assert found.business is whole.business
    counts = context_counts(found, corpus.label, 3)[:, 0]
    for target in range(corpus.user.size):
        members = _members(found.user, target)
        assert members == _members(whole.user, target)[:reviews]
        expected = np.bincount(corpus.label[members], minlength=3)
        np.testing.assert_array_equal(counts[target], expected)


@pytest.mark.parametrize("target_review", ["exclude", "include"])
def test_out_of_fold_counts_equal_a_loop(corpus, target_review):
    contexts = contexts_of(corpus, target_review)
    fold = np.random.default_rng(1).integers(4, size=corpus.user.size)
    found = out_of_fold_counts(contexts, corpus.label, 3, fold)
    for side, context in enumerate(contexts):
        for target in range(corpus.user.size):
            others = [row for row in _members(context, target) if fold[row] != fold[target]]
            expected = np.bincount(corpus.label[others], minlength=3)
            np.testing.assert_array_equal(found[target, side], expected)


def test_reviews_of_one_moment_do_not_see_each_other(tmp_path):
    """Dates are to the day, as Amazon's are, so that many are equal."""
    lines = [
        f'{{"user_id": "u{i % 7}", "business_id": "b{i}", "stars": 4, "text": "t", '
        f'"date": "2020-01-{1 + i // 7 % 10:02}"}}'
        for i in range(140)
    ]
    (tmp_path / "reviews.ndjson").write_text("\n".join(lines))
    settings = {"reviews": (str(tmp_path / "reviews.ndjson"),), "split": "by_time"}
    prepare.run(prepare.PrepareConfig(output=str(tmp_path / "corpus"), **settings))
    corpus = read_corpus(tmp_path / "corpus")
    context = contexts_of(corpus, "exclude").user
    for target in range(corpus.user.size):
        expected = _brute_force(corpus, target, "user", "exclude")
        assert set(_members(context, target)) == expected
    assert np.unique(corpus.date).size == 10


@pytest.mark.parametrize("change", [{"synthetic": 500}, {"seed": 1}, {"split": "by_review"}])
def test_grouped_reviews_of_another_corpus_are_refused(tmp_path, change):
    """The same reviews split otherwise are refused too: held-out reviews would be seen."""
    reviews = tmp_path / "dump"
    reviews.mkdir()
    generate(600, 0, reviews)
    settings = {"reviews": (str(reviews / "review.ndjson"),)}
    folders = []
    for name, changed in (("one", {}), ("other", change)):
        folders.append(tmp_path / name)
        used = ({} if "synthetic" in changed else settings) | changed
        prepare.run(prepare.PrepareConfig(output=str(folders[-1]), **used))
    one, other = map(read_corpus, folders)
    assert isinstance(read_grouped(other, "user").rows, np.memmap)
    for path in (one.folder / "interactions").iterdir():
        (other.folder / "interactions" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="belongs to another corpus"):
        contexts_of(other, "exclude")
