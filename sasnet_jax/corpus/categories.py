"""Which reviews form a group whose mean embedding means something: a category, or a class.

A review is in the categories of its business (docs/formats.md).
"""

import dataclasses
import hashlib

import numpy as np
import polars as pl
import scipy.sparse

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import CLASSES, Corpus


@dataclasses.dataclass(frozen=True, slots=True)
class Categories:
    """The categories of a corpus, in the order of `categories.parquet`."""

    names: list[str]
    membership: scipy.sparse.csr_matrix  # [categories, reviews] of 0 and 1

    @property
    def sha256(self) -> str:
        """The SHA-256 over the names and their reviews."""
        digest = hashlib.sha256(repr(self.names).encode())
        for array in (self.membership.indptr, self.membership.indices):
            digest.update(array.astype(np.int64).tobytes())
        return digest.hexdigest()


def read_categories(corpus: Corpus) -> Categories:
    """Reads the categories of a corpus; there are none if it was prepared without businesses.

    Raises:
      UserError: the tables are unreadable or do not belong together.
    """
    names = corpus.table("categories")["category"]
    businesses = corpus.table("businesses").select("business", "categories")
    index = pl.DataFrame({"category": names}).with_row_index("index")
    pairs = (
        businesses.rename({"categories": "category"})
        .explode("category")
        .drop_nulls()
        .join(index, on="category", how="left")
        .unique()
    )
    if pairs["index"].null_count() or corpus.business.max() >= businesses.height:
        raise UserError(f"the tables of {corpus.folder} do not belong together: {corpus.remedy}")
    of_business = scipy.sparse.csc_matrix(
        (np.ones(pairs.height), (pairs["index"], pairs["business"])),
        shape=(names.len(), businesses.height),
    )
    membership = of_business[:, corpus.business].tocsr()
    membership.sort_indices()
    return Categories(names.to_list(), membership)


def classes(corpus: Corpus, names: tuple[str, ...]) -> scipy.sparse.csr_matrix:
    """The reviews of each class, [classes, reviews] of 0 and 1.

    Raises:
      UserError: a class has no review.
    """
    members = np.array([corpus.label == CLASSES.index(name) for name in names])
    for name, of_class in zip(names, members, strict=True):
        if not of_class.any():
            raise UserError(
                f"corpus {corpus.folder} has no review that is {name}, so the cosine of the mean "
                f"embeddings of {' and '.join(names)} reviews is undefined"
            )
    return scipy.sparse.csr_matrix(members, dtype=np.float64)
