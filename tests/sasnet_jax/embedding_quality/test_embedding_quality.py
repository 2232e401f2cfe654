import itertools
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from conftest import (
    ROOT,
    assert_one_line_mistake,
    change_store,
    edit_json,
    run_command,
    write_store,
)
from scipy import special, stats
from sklearn.feature_extraction.text import TfidfVectorizer

from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.embedding_quality import command as embedding_quality
from sasnet_jax.embedding_quality import quality, significance
from sasnet_jax.embedding_quality.command import EmbeddingQualityConfig
from sasnet_jax.embedding_quality.quality import Measures, Undefined
from sasnet_jax.manifest import read_manifest
from sasnet_jax.prepare import command as prepare
from sasnet_jax.scores import paper

_MINILM = {"encoder": "minilm"}
_DIM = 16


def _add_to(store: Path, categories: np.ndarray | None = None, **manifest) -> Path:
    """Gives a store category names, and changes its manifest."""
    if categories is not None:
        dtype = read_manifest(store).dtype
        np.save(store / "categories.npy", categories.astype(dtype))
    return change_store(store, **manifest)


def _names(corpus: Corpus) -> list[str]:
    return pl.read_parquet(corpus.folder / "categories.parquet")["category"].to_list()


@pytest.fixture(scope="module")
def stores(world, tmp_path_factory) -> dict[str, Path]:
    """A "MiniLM" with category names, and a "Phi-3" of two poolings."""
    folder, corpus = tmp_path_factory.mktemp("stores"), world.corpus
    rng = np.random.default_rng(7)
    cuisine = rng.normal(size=(corpus.business.max() + 1, _DIM))[corpus.business]
    table = rng.normal(size=(corpus.user.size, _DIM)) + cuisine + 0.5 * corpus.stars[:, None]
    minilm = write_store(folder / "minilm", corpus, table.astype(np.float16))
    _add_to(minilm, rng.normal(size=(len(_names(corpus)), _DIM)) + 0.3, **_MINILM)
    phi3 = write_store(folder / "phi3", corpus, (3 + 0.1 * cuisine).astype(np.float16))
    np.save(phi3 / "last.npy", rng.normal(size=(corpus.user.size, _DIM)).astype(np.float16))
    _add_to(phi3, encoder="microsoft/Phi-3-mini", poolings=["mean", "last"])
    return {"minilm": minilm, "phi3": phi3}


def _run(world, output: Path, *store: Path, **settings) -> dict:
    config = EmbeddingQualityConfig(
        corpus=str(world.corpus_folder),
        store=tuple(map(str, store)),
        output=str(output),
        **{"draws": 200, **settings},
    )
    embedding_quality.run(config)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((output / "embedding_quality.json").read_text(), parse_constant=refuse)


def _by_loops(corpus: Corpus, table: np.ndarray, reference: np.ndarray, min_reviews: int) -> list:
    """MSE, Pearson r and AE, review by review and pair by pair, in float64."""
    table = table.astype(np.float64)
    table = (table - table.mean(axis=0)) / np.where(table.std(axis=0) < 1e-6, 1, table.std(axis=0))
    listed = pl.read_parquet(corpus.folder / "businesses.parquet")["categories"].to_list()
    means, vectors = [], []
    for name, vector in zip(_names(corpus), reference.astype(np.float64), strict=True):
        rows = [row for row in range(len(table)) if name in listed[corpus.business[row]]]
        if min_reviews <= len(rows) < len(table):
            means.append(sum(table[row] for row in rows) / len(rows))
            vectors.append(vector)

    def cosine(a, b):
        return math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))

    pairs = list(itertools.combinations(range(len(means)), 2))
    predicted = [cosine(means[i], means[j]) for i, j in pairs]
    truth = [cosine(vectors[i], vectors[j]) for i, j in pairs]
    mse = sum((p - q) ** 2 for p, q in zip(predicted, truth, strict=True)) / len(pairs)
    bad, excellent = (table[corpus.stars <= 3].mean(axis=0), table[corpus.stars == 5].mean(axis=0))
    return [mse, stats.pearsonr(predicted, truth).statistic, abs(cosine(bad, excellent) + 1)]


def _measures(row: dict) -> list[float]:
    return [row[name] for name in Measures._fields]


@pytest.mark.parametrize("min_reviews", [5, 60])
def test_measures_equal_loops_over_reviews_and_pairs(world, stores, tmp_path, min_reviews):
    found = _run(world, tmp_path / "out", *stores.values(), min_reviews=min_reviews)
    corpus, reference = world.corpus, np.load(stores["minilm"] / "categories.npy")
    methods = {"minilm/mean": "minilm", "phi3/mean": "phi3", "phi3/last": "phi3"}
    assert set(found["methods"]) == set(methods)
    for name, store in methods.items():
        table = np.load(stores[store] / f"{name.split('/')[1]}.npy")
        expected = _by_loops(corpus, table, reference, min_reviews)
        np.testing.assert_allclose(_measures(found["methods"][name]), expected, atol=1e-5)
    tfidf = TfidfVectorizer(max_features=5000, sublinear_tf=True).fit_transform(corpus.texts())
    expected = _by_loops(corpus, tfidf.toarray(), reference, min_reviews)
    np.testing.assert_allclose(_measures(found["tfidf"]), expected, atol=1e-5)


def test_a_category_of_every_review_is_left_out_and_said(world, stores, tmp_path, capsys):
    found = _run(world, tmp_path / "out", *stores.values())
    reviews = pl.read_parquet(world.corpus_folder / "categories.parquet")
    everywhere = reviews.filter(pl.col("reviews") == world.corpus.user.size)["category"].to_list()
    assert everywhere and found["categories_of_every_review"] == everywhere
    assert f"Left out: {', '.join(everywhere)}" in capsys.readouterr().out


def test_measures_do_not_depend_on_the_scale_and_origin_of_a_dimension(world, stores, tmp_path):
    rng = np.random.default_rng(2)
    table = np.load(stores["minilm"] / "mean.npy").astype(np.float32)
    moved = table * rng.uniform(0.1, 10, _DIM) + rng.normal(size=_DIM) * 100
    other = write_store(tmp_path / "moved", world.corpus, moved.astype(np.float32))
    found = _run(world, tmp_path / "out", stores["minilm"], other)["methods"]
    np.testing.assert_allclose(
        _measures(found["moved/mean"]), _measures(found["minilm/mean"]), atol=1e-4
    )


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_means_of_groups_do_not_depend_on_the_size_of_blocks(rows_at_once):
    rng = np.random.default_rng(0)
    table = rng.normal(50, 3, size=(100, 4)).astype(np.float32)
    groups = scipy.sparse.csr_matrix((rng.random((3, 100)) < 0.4).astype(np.float64))
    found = quality.group_means(
        lambda: (table[first : first + rows_at_once] for first in range(0, 100, rows_at_once)),
        groups,
    )
    z = stats.zscore(table.astype(np.float64), axis=0)
    expected = [z[row > 0].mean(axis=0) for row in groups.toarray()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_papers_columns_give_the_papers_scores():
    """Its columns are printed with two digits, so its last two cannot be met more closely."""
    printed = list(paper.TABLE_1.values())
    found = quality.scores([Measures(*row[:3]) for row in printed])
    for row, scores in zip(printed, found, strict=True):
        np.testing.assert_allclose(scores[3:], row[3:], atol=0.01)
    assert max(found, key=lambda row: row.normalized) == found[0]


def test_the_papers_tables_are_as_given():
    path = ROOT.parent / "shared" / "paper_tables.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    given = json.loads(path.read_text())
    assert {name: list(row) for name, row in paper.TABLE_1.items()} == given["table_1"]["rows"]
    assert {name: list(row) for name, row in paper.TABLE_3.items()} == given["table_3"]["rows"]
    assert given["table_3"]["against"] == paper.TABLE_3_AGAINST


def test_scores_equal_their_definition():
    measures = [Measures(0.1, 0.5, 1.0), Measures(0.3, 0.9, 0.2), Measures(0.2, -0.1, 0.4)]
    found = quality.scores(measures)
    assert found[0][:3] == pytest.approx((0, 0.6, 1))
    assert found[1][:3] == pytest.approx((1, 1, 0))
    assert found[2][:3] == pytest.approx((0.5, 0, 0.25))
    expected = np.array([-0.5 + 0.25 * 0.6, 0.0, -0.125 - 0.125])
    np.testing.assert_allclose([row.score for row in found], expected)
    np.testing.assert_allclose(
        [row.normalized for row in found], (expected - expected.min()) / np.ptp(expected)
    )


@pytest.mark.parametrize(
    ("measures", "reason"),
    [
        ([Measures(0.1, 0.5, 1.0)], "there is only one"),
        ([Measures(0.1, 0.5, 1.0), Measures(0.2, 0.5, 0.9)], "one pearson"),
        ([Measures(1, 0, 0), Measures(0, 1, 1)], "one score"),
    ],
)
def test_scores_that_normalization_does_not_define_are_refused(measures, reason):
    with pytest.raises(Undefined, match=reason):
        quality.scores(measures)


def test_similarities_that_define_no_measure_are_refused():
    same = np.full((4, 4), 0.3)
    for predicted, reference in [(same, _similarity(4, 0)), (_similarity(4, 0), same)]:
        with pytest.raises(Undefined, match="all the same"):
            quality.measure(predicted, reference, 0.0)
    with pytest.raises(Undefined, match="no cosine"):
        quality.cosines(np.array([[1.0, 2.0], [0.0, 0.0]]))


def test_one_method_has_measures_and_no_score(world, stores, tmp_path, capsys):
    found = _run(world, tmp_path / "out", stores["minilm"])
    row = found["methods"]["minilm/mean"]
    assert None not in _measures(row) and row["score"] is row["normalized"] is None
    assert (
        "No score" in capsys.readouterr().out and "there is only one" in found["scores_undefined"]
    )
    assert found["compared"] == "minilm/mean" and set(found["significance"]) == {
        "TF-IDF",
        "Gaussian noise 1",
    }


def test_noise_shows_what_shared_reviews_and_the_z_score_do_by_themselves():
    """Means of independent noise, minus the mean of all, have known covariances."""
    rng = np.random.default_rng(1)
    membership = (rng.random((6, 3000)) < 0.1).astype(np.float64)
    membership[1] = np.maximum(membership[0], membership[1])  # shares many reviews with the first
    dim, n = 4000, membership.shape[1]
    groups = scipy.sparse.csr_matrix(membership)
    found = quality.cosines(quality.group_means(lambda: quality.noise(n, dim, [3, 0]), groups))
    size = membership.sum(axis=1)
    covariance = membership @ membership.T / np.outer(size, size) - 1 / n
    deviation = np.sqrt(covariance.diagonal())
    np.testing.assert_allclose(
        found, covariance / np.outer(deviation, deviation), atol=5 / dim**0.5
    )
    assert found[0, 1] > 0.5


def test_the_noise_of_the_table_is_that_of_its_classes(world, stores, tmp_path):
    found = _run(world, tmp_path / "out", stores["minilm"])["noise"]
    size = np.bincount(world.corpus.label)
    others = size.sum() / size - 1
    expected = 1 - 1 / math.sqrt(others[0] * others[2])
    assert found["ae"][0] == pytest.approx(expected, abs=4 / math.sqrt(_DIM * 5))
    assert found["seeds"] == 5 and found["dim"] == _DIM
    assert all(found[name][1] > 0 for name in Measures._fields)  # five seeds differ


def _similarity(k: int, seed: int, dim: int = 5) -> np.ndarray:
    return quality.cosines(np.random.default_rng(seed).normal(size=(k, dim)))


def test_permuted_names_equal_renaming_the_categories():
    predicted, reference = [_similarity(9, 0), _similarity(9, 1)], _similarity(9, 2)
    mse, pearson = quality.with_permuted_names(predicted, reference, 20, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    for draw in range(20):
        order = rng.permutation(9)
        for i, similarity in enumerate(predicted):
            pairs = list(itertools.combinations(range(9), 2))
            p = [similarity[a, b] for a, b in pairs]
            q = [reference[order[a], order[b]] for a, b in pairs]
            assert mse[draw, i] == pytest.approx(np.square(np.subtract(p, q)).mean())
            assert pearson[draw, i] == pytest.approx(stats.pearsonr(p, q).statistic)


def test_a_method_that_knows_the_names_beats_permuted_names_and_noise_does_not(world, tmp_path):
    """Each business's embedding is the mean of its categories' names, which is the reference."""
    corpus = world.corpus
    listed = pl.read_parquet(corpus.folder / "businesses.parquet")["categories"].to_list()
    names = np.random.default_rng(0).normal(size=(len(_names(corpus)), _DIM))
    index = {name: i for i, name in enumerate(_names(corpus))}
    table = np.stack([names[[index[name] for name in listed[b]]].sum(0) for b in corpus.business])
    knows = write_store(tmp_path / "knows", corpus, table.astype(np.float32))
    _add_to(knows, names, **_MINILM)
    noise = np.random.default_rng(5).normal(size=table.shape)
    ignorant = write_store(tmp_path / "ignorant", corpus, noise.astype(np.float32))
    found = _run(world, tmp_path / "out", knows, ignorant, draws=1000)
    p = {name: row["p_pearson"] for name, row in found["permuted_names"].items()}
    assert p["knows/mean"] <= 0.01 < 0.05 < p["ignorant/mean"]
    assert abs(found["permuted_names"]["knows/mean"]["pearson"][0]) < 0.1


def test_f_test_equals_the_incomplete_beta_function():
    for small, large, n in [(0.1, 0.11, 861), (0.2, 0.5, 10), (0.03, 0.3, 45)]:
        tail = special.betainc(n / 2, n / 2, small / (small + large))  # P(F(n, n) > large / small)
        for pair in ((small, large), (large, small)):
            assert significance.f_test(*pair, n) == pytest.approx(2 * tail)
    assert significance.f_test(0.2, 0.2, 10) == 1
    assert significance.f_test(0.0, 0.2, 10) == 0


def test_fisher_z_test_equals_its_definition():
    for r, other, n in [(0.5, 0.1, 861), (-0.3, 0.2, 20)]:
        z = (math.atanh(r) - math.atanh(other)) / math.sqrt(2 / (n - 3))
        assert significance.fisher_z_test(r, other, n) == pytest.approx(
            math.erfc(abs(z) / math.sqrt(2))
        )
    assert significance.fisher_z_test(0.2, 0.2, 20) == 1
    assert significance.fisher_z_test(1.0, 0.2, 20) == 0
    assert significance.fisher_z_test(0.9, 0.2, 3) is None


def test_both_tests_reject_a_true_hypothesis_as_often_as_they_say():
    rng = np.random.default_rng(0)
    errors, other = rng.normal(size=(2, 2000, 50))
    p = [
        significance.f_test(float((a**2).mean()), float((b**2).mean()), 50)
        for a, b in zip(errors, other, strict=True)
    ]
    assert 0.035 < np.mean(np.array(p) < 0.05) < 0.065
    truth, q = rng.normal(size=(2, 2000, 50))
    p = [
        significance.fisher_z_test(
            float(np.corrcoef(a + t, t)[0, 1]), float(np.corrcoef(b + u, u)[0, 1]), 50
        )
        for a, t, b, u in zip(errors, truth, other, q, strict=True)
    ]
    assert 0.035 < np.mean(np.array(p) < 0.05) < 0.065


@pytest.mark.parametrize("k", [3, 8])
def test_bootstrap_equals_a_loop_over_the_pairs_of_drawn_categories(k):
    predicted, reference = [_similarity(k, 0), _similarity(k, 1)], _similarity(k, 2)
    mse, pearson = significance.bootstrap(predicted, reference, 30, np.random.default_rng(4))
    times = np.random.default_rng(4).multinomial(k, np.full(k, 1 / k), size=30)
    drawn = [np.repeat(np.arange(k), row) for row in times if (row > 0).sum() > 2]
    assert 0 < len(drawn) == len(mse) <= 30
    for draw, categories in enumerate(drawn):
        pairs = [(a, b) for a, b in itertools.combinations(categories, 2) if a != b]
        q = [reference[a, b] for a, b in pairs]
        for i, similarity in enumerate(predicted):
            p = [similarity[a, b] for a, b in pairs]
            assert mse[draw, i] == pytest.approx(np.square(np.subtract(p, q)).mean())
            assert pearson[draw, i] == pytest.approx(stats.pearsonr(p, q).statistic)


def test_table_3_compares_the_best_or_the_method_named(world, stores, tmp_path):
    found = _run(world, tmp_path / "best", *stores.values())
    scores = {name: row["score"] for name, row in found["methods"].items()}
    best = max(scores, key=scores.get)
    assert list(scores)[0] == found["compared"] == best and best not in found["significance"]
    other = next(name for name in scores if name != best)
    named = _run(world, tmp_path / "named", *stores.values(), against=other)
    ours, theirs = found["significance"][other], named["significance"][best]
    assert ours["p_mse"] == theirs["p_mse"] and ours["p_pearson"] == theirs["p_pearson"]
    assert ours["mse_difference"] == -theirs["mse_difference"]
    np.testing.assert_allclose(ours["mse_interval"], np.negative(theirs["mse_interval"])[::-1])
    assert ours["mse_interval"][0] <= ours["mse_difference"] <= ours["mse_interval"][1]


def test_the_papers_numbers_stand_beside_the_methods_that_correspond(world, stores, tmp_path):
    corpus = world.corpus
    wide = np.random.default_rng(0).normal(size=(corpus.user.size, 3072)).astype(np.float16)
    phi3 = _add_to(write_store(tmp_path / "wide", corpus, wide), encoder="x/Phi-3-mini-gptq")
    told = _add_to(
        write_store(tmp_path / "told", corpus, wide[::-1].copy()),
        encoder="phi3",
        instruction="look for sentiment",
    )
    found = _run(world, tmp_path / "out", stores["minilm"], stores["phi3"], phi3, told)
    assert {name: row["paper"] for name, row in found["methods"].items()} == {
        "minilm/mean": "all_minilm",
        "phi3/mean": None,  # 16 wide: not Phi-3-mini
        "phi3/last": None,
        "wide/mean": "phi3_plain/mean",
        "told/mean": "phi3_instructed/mean",
    }
    lines = (tmp_path / "out" / "embedding_quality.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| told/mean")][:1]
    assert "0.89/0.97/0.02" in line and "0.01/0.78" in line


def test_pairs_of_categories_are_kept_and_give_the_measures_again(world, stores, tmp_path):
    found = _run(world, tmp_path / "out", *stores.values())
    table = pl.read_parquet(tmp_path / "out" / "category_pairs.parquet")
    assert table.height == found["pairs"] == math.comb(found["categories"], 2)
    for name, row in found["methods"].items():
        q, p = table["reference"].to_numpy(), table[name].to_numpy()
        assert ((p - q) ** 2).mean() == pytest.approx(row["mse"])
        assert stats.pearsonr(p, q).statistic == pytest.approx(row["pearson"])
    listed = pl.read_parquet(world.corpus_folder / "businesses.parquet")["categories"].to_list()
    row = table.row(0, named=True)
    pair = {row["category"], row["other_category"]}
    shared = sum(pair <= set(listed[business]) for business in world.corpus.business)
    assert row["shared_reviews"] == shared
    assert found["pairs_sharing_reviews"] == (table["shared_reviews"] > 0).sum()


def test_the_same_command_finds_its_tables_and_another_is_refused(world, stores, tmp_path, capsys):
    _run(world, tmp_path / "out", *stores.values())
    before = (tmp_path / "out" / "embedding_quality.json").read_bytes()
    tables = (tmp_path / "out" / "embedding_quality.md").read_text()
    assert capsys.readouterr().out.startswith(tables)
    _run(world, tmp_path / "out", *stores.values())
    again = capsys.readouterr().out
    assert again.startswith(tables) and "already complete" in again
    assert (tmp_path / "out" / "embedding_quality.json").read_bytes() == before
    _run(world, tmp_path / "elsewhere", *stores.values())
    assert (tmp_path / "elsewhere" / "embedding_quality.json").read_bytes() == before
    result = run_command(*_command(world, tmp_path / "out", *stores.values()), "--seed=1")
    assert_one_line_mistake(result, "seed", "another --output")


def _command(world, output: Path, *stores: Path, corpus: Path | None = None) -> list:
    return [
        "sasnet_jax.embedding_quality",
        f"--corpus={corpus or world.corpus_folder}",
        *(f"--store={store}" for store in stores),
        f"--output={output}",
        "--draws=200",
    ]


def _written_corpus(folder: Path, stars: tuple[float, ...], categories: str) -> Path:
    businesses = [{"business_id": f"b{i}", "name": "", "categories": categories} for i in range(4)]
    reviews = [
        {
            "review_id": f"r{i}",
            "user_id": f"u{i}",
            "business_id": f"b{i % 4}",
            "stars": stars[i % len(stars)],
            "text": f"words {i}",
            "date": "2020-01-01 00:00:00",
        }
        for i in range(40)
    ]
    for name, records in (("business", businesses), ("review", reviews)):
        path = folder / f"{name}.ndjson"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare.run(
        prepare.PrepareConfig(
            reviews=(str(folder / "review.ndjson"),),
            businesses=str(folder / "business.ndjson"),
            output=str(folder / "corpus"),
        )
    )
    return folder / "corpus"


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("too few categories", ("categories of at least 100000 reviews", "--min_reviews")),
        ("constant embeddings", ("odd/mean", "constant")),
        ("no MiniLM", ("--reference",)),
        ("reference without categories", ("categories.npy", "store")),
        ("names of another width", ("categories.npy", "shape")),
        ("names of another corpus", ("categories.npy", "does not embed the category names")),
        ("constant names", ("categories.npy", "the same")),
        ("names not finite", ("categories.npy", "not finite")),
        ("table of another width", ("mean.npy", "shape")),
        ("unknown pooling", ("no pooling attentional", "mean")),
        ("unknown method", ("--against=phi3/nothing", "minilm/mean")),
        ("the same store twice", ("two folders are called minilm",)),
        ("output in use", ("holds other files",)),
    ],
)
def test_a_mistake_is_one_line(world, stores, tmp_path, case, mentions):
    corpus, output, minilm = world.corpus, tmp_path / "out", stores["minilm"]
    rows, names = corpus.user.size, len(_names(corpus))
    rng = np.random.default_rng(0)

    def odd(table=None, categories=None, **manifest) -> Path:
        table = rng.normal(size=(rows, 4)) if table is None else table
        store = write_store(tmp_path / "odd", corpus, table.astype(np.float32))
        return _add_to(store, categories, **manifest)

    shapes = {"dim": 4, **_MINILM}
    chosen = {
        "constant embeddings": lambda: [minilm, odd(np.full((rows, 4), 0.1))],
        "no MiniLM": lambda: [stores["phi3"]],
        "reference without categories": lambda: [minilm, f"--reference={stores['phi3']}"],
        "names of another width": lambda: [odd(None, rng.normal(size=(names, 5)), **shapes)],
        "names of another corpus": lambda: [
            odd(None, rng.normal(size=(names, 4)), category_names_sha256="0" * 64, **shapes)
        ],
        "constant names": lambda: [odd(None, np.ones((names, 4)), **shapes)],
        "names not finite": lambda: [odd(None, np.full((names, 4), np.nan), **shapes)],
        "table of another width": lambda: [minilm, odd(dim=5)],
        "the same store twice": lambda: [minilm, minilm],
    }.get(case, lambda: [*stores.values()])()
    extra = {
        "too few categories": ["--min_reviews=100000"],
        "unknown pooling": ["--pooling=attentional"],
        "unknown method": ["--against=phi3/nothing"],
    }.get(case, [])
    if case == "output in use":
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    folders = [store for store in chosen if isinstance(store, Path)]
    flags = [flag for flag in chosen if not isinstance(flag, Path)]
    result = run_command(*_command(world, output, *folders), *flags, *extra)
    assert_one_line_mistake(result, *mentions)
    assert sorted(path.name for path in output.glob("*")) == (
        ["thesis.txt"] if case == "output in use" else []
    )


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("a class is missing", ("no review that is bad",)),
        ("no categories", ("0 categories", "--businesses")),
        ("store of another corpus", ("does not embed the texts",)),
    ],
)
def test_a_corpus_that_defines_no_table_is_one_line(world, stores, tmp_path, case, mentions):
    stars = (4.0, 5.0) if case == "a class is missing" else (1.0, 4.0, 5.0)
    folder = _written_corpus(tmp_path, stars, "" if case == "no categories" else "A, B, C, D")
    if case == "a class is missing":  # not every review may have every category
        path = folder / "businesses.parquet"
        table = pl.read_parquet(path)
        lists = [["A", "B"], ["B", "C"], ["C", "D"], ["D"]]
        table.with_columns(categories=pl.Series(lists)).write_parquet(path)
        edit_json(folder / "corpus.json", files_sha256={})
    corpus = read_corpus(folder)
    names = max(len(_names(corpus)), 1)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(corpus.user.size, 4)).astype(np.float32)
    store = write_store(tmp_path / "store", corpus, table)
    _add_to(store, rng.normal(size=(names, 4)), **_MINILM)
    chosen = stores["minilm"] if case == "store of another corpus" else store
    result = run_command(*_command(world, tmp_path / "out", chosen, corpus=folder))
    assert_one_line_mistake(result, *mentions)
    assert not (tmp_path / "out").exists()
