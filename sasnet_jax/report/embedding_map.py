"""A map of the embeddings: a sample of reviews in two dimensions (PCA; UMAP if installed)."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int32
from sklearn.decomposition import PCA

from sasnet_jax.corpus import categories
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store, fit_zscore
from sasnet_jax.report import corpus_facts
from sasnet_jax.report.charts import PALETTE

WIDTH, HEIGHT, MARGIN = 640, 480, 10
_OTHER = "other"
_MOST_CATEGORIES = len(PALETTE) - 1
_EXCERPT = 200  # characters
_FAR = 0.005  # quantile; points beyond it would leave little room for the others


@dataclasses.dataclass(frozen=True, slots=True)
class Projection:
    """One picture of the sample."""

    store: str
    method: str
    note: str
    points: tuple[tuple[float, float], ...]  # pixels


@dataclasses.dataclass(frozen=True, slots=True)
class Map:
    """The sample, and its pictures."""

    projections: tuple[Projection, ...]
    label: tuple[int, ...]  # of each point, into CLASSES
    category: tuple[int, ...]  # of each point, into `categories`
    categories: tuple[str, ...]  # the last is "other"; empty if the corpus has none
    reviews: tuple[corpus_facts.Example, ...]  # of each point; empty if texts are not shown

    def color(self, category: int) -> str:
        """The color of a category; the muted last one of "other"."""
        return PALETTE[-1] if category == len(self.categories) - 1 else PALETTE[category]

    def drawn(self, of: Projection) -> Iterator[tuple[tuple[float, float], int, int | None]]:
        """Place, class and category of every point."""
        return zip(of.points, self.label, self.category or [None] * len(self.label), strict=True)

    @property
    def readable(self) -> list[dict[str, str]]:
        """What is shown for a point under the pointer."""
        names = [self.categories[category] for category in self.category] or [""] * len(
            self.reviews
        )
        return [
            {
                "stars": review.stars,
                "label": review.label,
                "split": review.split,
                "text": review.text,
            }
            | {"category": name}
            for review, name in zip(self.reviews, names, strict=bool(self.reviews))
        ]


def map_of(
    corpus: Corpus,
    stores: Sequence[Store],
    sample: int,
    seed: int,
    texts: pl.Series | None,
) -> Map | None:
    """Draws the stores' default poolings; None if there is no store.

    Args:
      corpus: the corpus.
      stores: its embedding stores.
      sample: largest number of reviews.
      seed: seed of the sample and of UMAP.
      texts: texts of all reviews, or None to show none.
    """
    rows = np.random.default_rng(seed).permutation(corpus.user.size)[:sample]
    rows = np.sort(rows).astype(np.int32)
    if not stores or rows.size < 3:
        return None
    projections = [one for store in stores for one in _project(store, rows, seed)]
    names, category = _main_categories(corpus, rows)
    reviews = (
        ()
        if texts is None
        else tuple(
            corpus_facts.example(corpus, int(row), texts[int(row)], _EXCERPT) for row in rows
        )
    )
    return Map(tuple(projections), tuple(corpus.label[rows].tolist()), category, names, reviews)


def _project(store: Store, rows: Int32[np.ndarray, "n"], seed: int) -> list[Projection]:
    """PCA, and UMAP if it is installed, of z-scored embeddings."""
    table = fit_zscore(store.table, rows)(store.table[rows])
    name = f"{store.name}/{store.pooling}"
    pca = PCA(2, random_state=seed)
    projections = [_place(name, "PCA", pca.fit_transform(table), "")]
    share = pca.explained_variance_ratio_.sum()
    note = f"two principal components, {share:.0%} of the variance"
    projections[0] = dataclasses.replace(projections[0], note=note.replace("%", " %"))
    if umap := _umap():
        placed = umap(random_state=seed, n_jobs=1).fit_transform(table)
        projections.append(_place(name, "UMAP", placed, "distances between groups mean little"))
    return projections


def _umap() -> Callable | None:
    try:
        from umap import UMAP
    except ImportError:  # an extra
        return None
    return UMAP


def _place(store: str, method: str, points: Float[np.ndarray, "n 2"], note: str) -> Projection:
    """Scales points to the picture; puts the few that lie far out on its edge."""
    low, high = np.quantile(points, (_FAR, 1 - _FAR), axis=0)
    share = ((points - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    size = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    pixels = (MARGIN + share * size).round(1)
    return Projection(store, method, note, tuple(map(tuple, pixels.tolist())))


def _main_categories(
    corpus: Corpus, rows: Int32[np.ndarray, "n"]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Each row's rarest category among the most reviewed ones, or "other"."""
    known = categories.read_categories(corpus)
    reviews = known.membership.getnnz(axis=1)
    frequent = np.flatnonzero(reviews < corpus.user.size)[:_MOST_CATEGORIES]
    if not frequent.size:
        return (), ()
    member = known.membership[frequent][:, rows].toarray().astype(bool)  # [categories, n]
    rarest = len(frequent) - 1 - member[::-1].argmax(axis=0)
    category = np.where(member.any(axis=0), rarest, len(frequent))
    names = tuple(known.names[i] for i in frequent)
    return (*names, _OTHER), tuple(category.tolist())
