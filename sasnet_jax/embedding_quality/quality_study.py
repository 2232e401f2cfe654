"""Compares methods of embedding: what `embedding_quality` writes (docs/formats.md).

Two kinds of methods stand outside the normalization: TF-IDF, and controls that know nothing, which
are Gaussian noise in place of embeddings, and permuted category names.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
from jaxtyping import Float32, Float64
from sklearn.feature_extraction.text import TfidfVectorizer

from sasnet_jax.cli import ProgressBar, UserError
from sasnet_jax.corpus import categories
from sasnet_jax.corpus.categories import Categories
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import CHUNK, Store
from sasnet_jax.embedding_quality import quality, significance
from sasnet_jax.embedding_quality.quality import Blocks, Measures, Scores, Similarity, Undefined
from sasnet_jax.embedding_quality.quality_tables import (
    Difference,
    Measured,
    Noise,
    Permuted,
    Scored,
)
from sasnet_jax.scores import paper

_TFIDF = "TF-IDF"
_TFIDF_TERMS = 5000  # the most frequent ones
_NOISE = tuple(f"Gaussian noise {number}" for number in range(1, 6))
_SENTIMENTS = ("bad", "excellent")
_PERMUTING, _DRAWING, _FIRST_NOISE = 1, 2, 3  # streams of random numbers, folded with the seed
_FEWEST_CATEGORIES = 3  # with 2 there is one pair, and no correlation


@dataclasses.dataclass(frozen=True, slots=True)
class Groups:
    """What is compared: k categories with each other, and bad with excellent reviews."""

    names: list[str]  # of the categories
    matrix: scipy.sparse.csr_matrix  # [k + 2, reviews] of 0 and 1: categories, bad, excellent
    reference: Similarity  # cosines of the categories' names
    reference_store: Store
    left_out: list[str]  # categories of every review

    @property
    def shared_reviews(self) -> Float64[np.ndarray, "k k"]:
        """How many reviews are in both categories."""
        of_categories = self.matrix[: len(self.names)]
        return (of_categories @ of_categories.T).toarray()


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """The results of one method of embedding."""

    predicted: Similarity  # cosines of the categories' mean embeddings
    measures: Measures


def groups_of(corpus: Corpus, known: Categories, reference: Store, min_reviews: int) -> Groups:
    """The categories that have enough reviews, and the cosines of their names.

    Raises:
      UserError: there are too few, a class has no review, or the names' embeddings do not fit.
    """
    reviews = known.membership.getnnz(axis=1)
    # The z-score removes what all reviews have in common, so such a mean embedding is zero.
    of_every_review = reviews == corpus.user.size
    chosen = np.flatnonzero((reviews >= min_reviews) & ~of_every_review)
    if chosen.size < _FEWEST_CATEGORIES:
        raise UserError(
            f"corpus {corpus.folder} has {chosen.size} categories of at least {min_reviews} "
            f"reviews, without those of every review, but a correlation over pairs of categories "
            f"needs {_FEWEST_CATEGORIES}: lower --min_reviews, or prepare it with --businesses"
        )
    classes = categories.classes(corpus, _SENTIMENTS)
    vectors = reference.category_embeddings(known.names)[chosen]
    try:
        similarity = quality.cosines(vectors)
        quality.refuse_one_value(similarity)
    except Undefined as reason:
        raise UserError(f"{reference.folder / 'categories.npy'}: {reason}") from None
    return Groups(
        [known.names[i] for i in chosen],
        scipy.sparse.vstack([known.membership[chosen], classes], format="csr"),
        similarity,
        reference,
        [known.names[i] for i in np.flatnonzero(of_every_review)],
    )


def measure(
    corpus: Corpus, stores: dict[str, Store], groups: Groups, seed: int
) -> dict[str, Method]:
    """Measures the stores' methods, TF-IDF, and noise of several seeds.

    Raises:
      UserError: a measure is undefined for the embeddings of a method.
    """
    dim = groups.reference_store.table.shape[1]
    sources: dict[str, Blocks] = {name: store.blocks for name, store in stores.items()}
    sources[_TFIDF] = functools.partial(_blocks_of_sparse, _tfidf(corpus))
    for stream, name in enumerate(_NOISE, _FIRST_NOISE):
        sources[name] = functools.partial(quality.noise, corpus.user.size, dim, [seed, stream])
    methods, k = {}, len(groups.names)
    with ProgressBar(sources.items(), "measuring", leave=False, unit="method", delay=5) as bar:
        for name, blocks in bar:
            bar.set_postfix_str(name, refresh=False)
            try:
                similarity = quality.cosines(quality.group_means(blocks, groups.matrix))
                predicted, sentiment = similarity[:k, :k], float(similarity[k, k + 1])
                measures = quality.measure(predicted, groups.reference, sentiment)
            except Undefined as reason:
                raise UserError(f"{name}: {reason}") from None
            methods[name] = Method(predicted, measures)
    return methods


def compare(
    stores: dict[str, Store],
    groups: Groups,
    methods: dict[str, Method],
    *,
    against: str,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Tables 1 and 3, and the controls.

    Args:
      stores: by the name of their method.
      groups: what was compared.
      methods: of `measure`.
      against: the method that Table 3 compares with the others; empty for the best score.
      draws: number of draws of categories, and of permutations.
      seed: seed of these draws.
    """
    scores, undefined = _scores({name: methods[name].measures for name in stores})
    compared = against or next(iter(scores))
    shared = quality.pairs_of(groups.shared_reviews)
    reference = groups.reference_store
    return {
        "reviews": groups.matrix.shape[1],
        "categories": len(groups.names),
        "categories_of_every_review": groups.left_out,
        "pairs": shared.size,
        "pairs_sharing_reviews": int((shared > 0).sum()),
        "reference_name": f"{reference.name} ({reference.manifest.encoder})",
        "methods": {
            name: Scored(
                **methods[name].measures._asdict(),
                **row,
                paper=paper.method_of(stores[name].identity, stores[name].pooling),
            )
            for name, row in scores.items()
        },
        "scores_undefined": undefined,
        "tfidf": Measured(**methods[_TFIDF].measures._asdict()),
        "noise": _noise(methods, reference.table.shape[1]),
        "permuted_names": _permuted(list(scores), groups, methods, draws, seed),
        "compared": compared,
        "significance": _significance(
            compared,
            [name for name in (*scores, _TFIDF, _NOISE[0]) if name != compared],
            groups,
            methods,
            draws,
            seed,
        ),
    }


def pairs(groups: Groups, methods: dict[str, Method]) -> pl.DataFrame:
    """One row per pair of categories: shared reviews, reference and predicted cosines."""
    first, second = np.triu_indices(len(groups.names), 1)
    names = np.array(groups.names)
    columns = {
        "category": names[first].tolist(),
        "other_category": names[second].tolist(),
        "shared_reviews": groups.shared_reviews[first, second].astype(np.int64),
        "reference": groups.reference[first, second],
    }
    columns |= {name: method.predicted[first, second] for name, method in methods.items()}
    return pl.DataFrame(columns)


def _tfidf(corpus: Corpus) -> scipy.sparse.csr_matrix:
    vectorizer = TfidfVectorizer(max_features=_TFIDF_TERMS, sublinear_tf=True, dtype=np.float32)
    return vectorizer.fit_transform(corpus.texts())


def _blocks_of_sparse(table: scipy.sparse.csr_matrix) -> Iterator[Float32[np.ndarray, "n e"]]:
    for first in range(0, table.shape[0], CHUNK):
        yield table[first : first + CHUNK].toarray()


def _scores(measures: dict[str, Measures]) -> tuple[dict[str, dict[str, Any]], str]:
    """The scores of each method, the best first; or None for each, and the reason."""
    try:
        rows = [row._asdict() for row in quality.scores(list(measures.values()))]
    except Undefined as reason:
        return {name: dict.fromkeys(Scores._fields) for name in measures}, str(reason)
    ranked = sorted(zip(measures, rows, strict=True), key=lambda row: -row[1]["score"])
    return dict(ranked), ""


def _noise(methods: dict[str, Method], dim: int) -> Noise:
    table = np.array([methods[name].measures for name in _NOISE])
    spread = _spread(dict(zip(Measures._fields, table.T, strict=True)))
    return Noise(**spread, seeds=len(_NOISE), dim=dim)


def _spread(samples: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Mean and standard deviation."""
    return {
        name: [float(values.mean()), float(values.std(ddof=1))] for name, values in samples.items()
    }


def _permuted(
    names: list[str], groups: Groups, methods: dict[str, Method], draws: int, seed: int
) -> dict[str, Permuted]:
    """Each method's mean and deviation with permuted names, and how many correlate as well."""
    mse, pearson = quality.with_permuted_names(
        [methods[name].predicted for name in names],
        groups.reference,
        draws,
        np.random.default_rng([seed, _PERMUTING]),
    )
    permuted = {}
    for i, name in enumerate(names):
        as_well = (pearson[:, i] >= methods[name].measures.pearson).sum()
        spread = _spread({"mse": mse[:, i], "pearson": pearson[:, i]})
        permuted[name] = Permuted(**spread, p_pearson=float((1 + as_well) / (1 + draws)))
    return permuted


def _significance(
    against: str,
    others: list[str],
    groups: Groups,
    methods: dict[str, Method],
    draws: int,
    seed: int,
) -> dict[str, Difference]:
    """One method against others: tests over pairs, and the bootstrap over categories."""
    mse, pearson = significance.bootstrap(
        [methods[name].predicted for name in (against, *others)],
        groups.reference,
        draws,
        np.random.default_rng([seed, _DRAWING]),
    )
    ours = methods[against].measures
    count = len(groups.names) * (len(groups.names) - 1) // 2
    differences = {}
    for i, name in enumerate(others, start=1):
        theirs = methods[name].measures
        differences[name] = Difference(
            mse_difference=theirs.mse - ours.mse,
            p_mse=significance.f_test(ours.mse, theirs.mse, count),
            mse_interval=np.quantile(mse[:, i] - mse[:, 0], (0.025, 0.975)).tolist(),
            pearson_difference=theirs.pearson - ours.pearson,
            p_pearson=significance.fisher_z_test(ours.pearson, theirs.pearson, count),
            pearson_interval=np.quantile(pearson[:, i] - pearson[:, 0], (0.025, 0.975)).tolist(),
        )
    return differences
