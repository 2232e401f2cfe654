"""embedding_quality.json -> Tables 1 and 3, the paper's numbers beside ours; as Markdown too."""

import functools
import textwrap
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from sasnet_jax import files
from sasnet_jax.corpus.corpus import Count
from sasnet_jax.scores import paper

_NONE = "-"
_SMALLEST_P = 1e-20  # as the paper prints it


Pair: TypeAlias = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]


class Measured(msgspec.Struct, kw_only=True, frozen=True):
    """A method's columns in Table 1 (`quality.Measures`)."""

    mse: float
    pearson: float
    ae: float


class Scored(Measured, kw_only=True, frozen=True):
    """A method and its scores (`quality.Scores`), None if they are undefined."""

    nmse: float | None
    npearson: float | None
    nae: float | None
    score: float | None
    normalized: float | None
    paper: str | None  # the paper's name of it


class Noise(msgspec.Struct, kw_only=True, frozen=True):
    """The mean and the standard deviation of each measure over tables of noise."""

    mse: Pair
    pearson: Pair
    ae: Pair
    seeds: Count
    dim: Count


class Permuted(msgspec.Struct, kw_only=True, frozen=True):
    """The mean and the standard deviation with permuted names."""

    mse: Pair
    pearson: Pair
    p_pearson: float  # the share of permutations that correlate as well


class Difference(msgspec.Struct, kw_only=True, frozen=True):
    """Another method's values minus those of the compared method."""

    mse_difference: float
    p_mse: float | None
    mse_interval: Pair
    pearson_difference: float
    p_pearson: float | None
    pearson_interval: Pair


class EmbeddingQuality(files.Record, kw_only=True, frozen=True):
    """embedding_quality.json; the fields that the tables depend on come first."""

    made_by = "python -m sasnet_jax.embedding_quality"
    version = 0
    corpus_sha256: str
    categories_sha256: str
    stores: dict[str, dict[str, Any]]  # the identity of each, by the name of its method
    reference: dict[str, Any]
    against: str
    min_reviews: Count
    draws: Count
    seed: int
    reviews: Count
    categories: Count
    categories_of_every_review: list[str]
    pairs: Count
    pairs_sharing_reviews: Count
    reference_name: str
    methods: dict[str, Scored]  # the best first
    scores_undefined: str
    tfidf: Measured
    noise: Noise
    permuted_names: dict[str, Permuted]
    compared: str
    significance: dict[str, Difference]


class Table(NamedTuple):
    """A table as it is read: every cell is text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def render(quality: EmbeddingQuality) -> str:
    """Both tables with their notes, as Markdown."""
    return "\n".join([*_markdown(table_1(quality)), "", *_markdown(table_3(quality)), ""])


def table_1(found: EmbeddingQuality) -> Table:
    """The methods' measures and scores, the paper's scores, and the controls."""
    header = ["method", "MSE_c", "r_c", "p of r_c", "AE_s", "NMSE/NPR/NAE", "score/norm."]
    header += ["the paper's", "the paper's"]
    rows = []
    for name, row in found.methods.items():
        printed = paper.TABLE_1.get(row.paper or "")
        ours = [row.nmse, row.npearson, row.nae, row.score, row.normalized]
        p = found.permuted_names[name].p_pearson
        rows.append([name, *_measures(row, p), *_as_printed(ours), *_as_printed(printed)])
    rows.append(["TF-IDF (not normalized)", *_measures(found.tfidf)])
    noise, permuted = found.noise, found.permuted_names[found.compared]
    controls = {
        "control: Gaussian noise": (noise.mse, noise.pearson, noise.ae),
        "control: permuted names": (permuted.mse, permuted.pearson, None),
    }
    for name, spreads in controls.items():
        mse, pearson, ae = (
            "{:.3f}±{:.3f}".format(*spread) if spread else _NONE for spread in spreads
        )
        rows.append([name, mse, pearson, _NONE, ae])
    title = (
        f"Table 1: {found.reviews:,} reviews, {found.categories} categories of at least "
        f"{found.min_reviews} reviews, {found.pairs:,} pairs; reference: the categories' "
        f"names by {found.reference_name}"
    )
    return _table(title, header, rows, _notes_1(found))


def _notes_1(quality: EmbeddingQuality) -> list[str]:
    notes, methods, noise = [], quality.methods, quality.noise
    if quality.scores_undefined:
        notes.append(f"No score: {quality.scores_undefined}.")
    if any(row.paper for row in methods.values()):
        notes.append(
            "The paper's numbers are normalized over its own ten methods on its Yelp sample: they "
            "compare with ours only if those ten are compared here."
        )
    notes.append(
        f"Controls, mean±standard deviation of {noise.seeds} noise embeddings (width "
        f"{noise.dim}), and of {quality.draws:,} permutations of the categories' names under "
        f"{quality.compared}. Categories share reviews ({quality.pairs_sharing_reviews:,} of "
        f"{quality.pairs:,} pairs), and the z-score makes the classes' means sum to zero, so "
        f"noise too reaches r_c {noise.pearson[0]:.2f} and AE_s {noise.ae[0]:.2f}: read every "
        "row against these. p of r_c: the share of permutations that correlate as well."
    )
    mean, deviation = noise.pearson
    as_noise = [name for name, row in methods.items() if row.pearson <= mean + 2 * deviation]
    if as_noise:
        named = "every method here" if len(as_noise) == len(methods) else ", ".join(as_noise)
        notes.append(f"No better than noise in r_c, by its mean and two deviations: {named}.")
    if left_out := quality.categories_of_every_review:
        notes.append(
            f"Left out: {', '.join(left_out)}; every review has it, so after the z-score its mean "
            "embedding is zero."
        )
    return notes


def table_3(quality: EmbeddingQuality) -> Table:
    """One method against the others: differences, their intervals, and p values."""
    compared, methods = quality.compared, quality.methods
    header = ["against", "MSE_c difference, 95 %", "p (F-test)", "r_c difference, 95 %"]
    header += ["p (Fisher z)", "paper: p of MSE", "paper: p of r"]
    rows = []
    for name, row in quality.significance.items():
        printed: Sequence[str] = ()
        if methods[compared].paper == paper.TABLE_3_AGAINST and name in methods:
            printed = paper.TABLE_3.get(methods[name].paper or "", ())
        mse = _difference(row.mse_difference, row.mse_interval)
        pearson = _difference(row.pearson_difference, row.pearson_interval)
        rows.append([name, mse, _p(row.p_mse), pearson, _p(row.p_pearson), *printed])
    note = (
        f"Differences: the other's minus {compared}'s; their intervals are by bootstrap over the "
        f"{quality.categories} categories ({quality.draws:,} draws). The F-test and Fisher's "
        f"z-test, the paper's, take the {quality.pairs:,} pairs of categories as independent. "
        "They are not independent, because each category is in many pairs, and neither are the "
        "methods, which share reviews and reference: trust the intervals."
    )
    title = f"Table 3: {compared} against the others, two-sided"
    return _table(title, header, rows, [note])


def _measures(row: Measured, p: float | None = None) -> list[str]:
    mse, pearson, ae = (f"{value:.3f}" for value in (row.mse, row.pearson, row.ae))
    return [mse, pearson, _NONE if p is None else _p(p), ae]


def _as_printed(scores: Sequence[float | None] | None) -> list[str]:
    """`NMSE/NPR/NAE` and `score/normalized`, as the paper prints them."""
    cells = [_NONE if score is None else f"{score:.2f}" for score in scores or [None] * 5]
    return ["/".join(cells[:3]), "/".join(cells[3:])] if cells.count(_NONE) < 5 else [_NONE] * 2


def _difference(value: float, interval: Iterable[float]) -> str:
    low, high = interval
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(p: float | None) -> str:
    if p is None:
        return "undefined"
    return f"<= {_SMALLEST_P:.0e}" if p <= _SMALLEST_P else f"{p:.2g}"


def _table(title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> Table:
    """Fills up short rows, and drops empty columns."""
    full = [row + [_NONE] * (len(header) - len(row)) for row in rows]
    kept = [i for i in range(len(header)) if i < 2 or any(row[i] != _NONE for row in full)]
    header, *full = ([line[i] for i in kept] for line in [header, *full])
    return Table(title, header, full, notes)


def _markdown(table: Table) -> list[str]:
    """A table that also reads well unrendered."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    cells = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
    wrap = functools.partial(textwrap.fill, width=100, initial_indent="- ", subsequent_indent="  ")
    return [table.title, "", *cells, "", *map(wrap, table.notes)]
