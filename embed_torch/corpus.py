"""Reads the parts of a corpus that are embedded (docs/formats.md): reviews, category names."""

import dataclasses
from pathlib import Path

import polars as pl

from embed_torch.cli import UserError
from embed_torch.files import read_json, texts_sha256


@dataclasses.dataclass(frozen=True, slots=True)
class Texts:
    """Texts in row order, and the hash that binds a store to them."""

    reviews: pl.Series  # of str: half the memory of a list, at millions of reviews
    categories: list[str]
    sha256: str


def read_texts(folder: Path) -> Texts:
    """Reads and verifies the texts of a corpus.

    Raises:
      UserError: the corpus is absent or unreadable, or its texts do not match their hash.
    """
    description = read_json(folder / "corpus.json", "python -m sasnet_jax.prepare")
    try:
        reviews = pl.read_parquet(folder / "reviews.parquet", columns=["text"], glob=False)["text"]
        categories = pl.read_parquet(folder / "categories.parquet", glob=False)[
            "category"
        ].to_list()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"corpus {folder} cannot be read ({error}): run prepare again") from None
    sha256 = texts_sha256(reviews)
    if sha256 != description.get("texts_sha256"):
        raise UserError(
            f"the texts of {folder} are not those of its corpus.json: run prepare again"
        )
    return Texts(reviews, categories, sha256)
