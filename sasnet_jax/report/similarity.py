"""Embedding quality as it is read: Tables 1 and 3, and similarity against the reference."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from sasnet_jax.cli import UserError
from sasnet_jax.embedding_quality import quality_tables
from sasnet_jax.embedding_quality.quality_tables import Table
from sasnet_jax.report import charts
from sasnet_jax.report.charts import Chart, Series
from sasnet_jax.report.sources import Output

_MOST_PAIRS = 500  # drawn; the numbers are over all pairs
_BESIDE = ("TF-IDF", "Gaussian noise 1")
_NEEDED = ("category", "other_category", "reference")


@dataclasses.dataclass(frozen=True, slots=True)
class Similarity:
    """What one output of `embedding_quality` says."""

    name: str
    tables: tuple[Table, ...]
    pictures: tuple[Chart, ...]


def similarity(quality: Output, seed: int) -> Similarity:
    """Tables 1 and 3, and a picture of the best method, of TF-IDF and of noise."""
    tables = quality_tables.table_1(quality.found), quality_tables.table_3(quality.found)
    return Similarity(quality.name, tables, _pictures(quality, seed))


def _pictures(quality: Output, seed: int) -> tuple[Chart, ...]:
    path = quality.folder / "category_pairs.parquet"
    if not path.is_file():
        return ()
    pairs = _read(path)
    methods = [one for one in (quality.found["compared"], *_BESIDE) if one in pairs.columns]
    rows = np.random.default_rng(seed).permutation(pairs.height)[:_MOST_PAIRS]
    drawn = pairs[np.sort(rows)]
    both = zip(drawn["category"], drawn["other_category"], strict=True)
    notes = [f"{one} · {other}" for one, other in both]
    values = drawn.select(methods).to_numpy()
    y_range = (min(-0.2, float(values.min())), max(0.2, float(values.max())))
    sampled = f", {_MOST_PAIRS:,} of them drawn" if pairs.height > _MOST_PAIRS else ""
    found = []
    for name in methods:
        r = np.corrcoef(pairs["reference"].to_numpy(), pairs[name].to_numpy())[0, 1]
        points = list(zip(drawn["reference"], drawn[name], strict=True))
        found.append(
            charts.chart(
                name,
                [Series(f"r = {r:.3f}", points, line=False, dots=True, notes=notes)],
                "cosine of the categories' names",
                "cosine of their mean embeddings",
                y_range=y_range,
                note=f"{pairs.height:,} pairs of categories{sampled}",
            )
        )
    return tuple(found)


def _read(path: Path) -> pl.DataFrame:
    try:
        found = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): measure the quality again") from None
    if not {*_NEEDED} <= {*found.columns}:
        raise UserError(f"{path} does not hold pairs of categories: {', '.join(found.columns)}")
    return found
