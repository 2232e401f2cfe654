"""Another split of the users of a corpus, as a corpus of its own.

It has the same reviews in the same rows, so every store of the corpus is also a store of it.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import write_grouped
from sasnet_jax.corpus.corpus import Corpus, CorpusRecord, hash_files
from sasnet_jax.corpus.splits import SPLITS

_UNCHANGED = ("users.parquet", "businesses.parquet", "categories.parquet")


def resplit(corpus: Corpus, split_of_user: np.ndarray, folder: Path) -> Corpus:
    """The corpus with another split, as `write` puts it into `folder`.

    Args:
      corpus: the corpus, split in any way.
      split_of_user: str [users], of SPLITS. What may be seen of a target is then what the table of
        docs/design.md 5 says of `by_user`.
      folder: of the new corpus.
    """
    of_review = split_of_user[corpus.user]
    split = np.select([of_review == name for name in SPLITS], SPLITS, default="")
    return dataclasses.replace(corpus, split=split, split_scheme="by_user", folder=folder)


def is_written(changed: Corpus) -> bool:
    """Whether its folder holds this corpus, undamaged."""
    try:
        record = files.read_record(changed.folder / "corpus.json", CorpusRecord)
        whole = hash_files(changed.folder) == record.files_sha256
    except (UserError, OSError):
        return False
    return whole and record.columns_sha256 == changed.columns_sha256


def write(corpus: Corpus, changed: Corpus, boundaries: dict[str, Any]) -> None:
    """Writes what `resplit` made of a corpus, in place of anything in its folder.

    Args:
      corpus: the original.
      changed: the same, with the new split.
      boundaries: how it was split, for corpus.json.

    Raises:
      UserError: the original was damaged.
    """
    record = files.read_record(corpus.folder / "corpus.json", CorpusRecord)
    for name in ("reviews.parquet", *_UNCHANGED):
        files.require_file(corpus.folder / name, corpus.remedy, record.files_sha256.get(name))
    shutil.rmtree(changed.folder, ignore_errors=True)
    with files.naming(changed.folder), files.new_folder(changed.folder) as folder:
        for name in _UNCHANGED:
            _link(corpus.folder / name, folder / name)
        _write_reviews(corpus, changed, folder)
        write_grouped(dataclasses.replace(changed, folder=folder))
        changes = {
            "settings": record.settings | {"split": changed.split_scheme, "resplit": boundaries},
            "columns_sha256": changed.columns_sha256,
            "files_sha256": hash_files(folder),
            "split_reviews": {name: int(changed.rows(name).size) for name in SPLITS},
            "split_boundaries": boundaries,
        }
        files.write_record(folder / "corpus.json", msgspec.structs.replace(record, **changes))


def _write_reviews(corpus: Corpus, changed: Corpus, folder: Path) -> None:
    """Writes reviews.parquet without ever holding all texts."""
    table = pl.scan_parquet(corpus.folder / "reviews.parquet", glob=False)
    of_user = pl.LazyFrame({"user": changed.user, "split": changed.split.tolist()}).unique()
    joined = table.drop("split").join(of_user, on="user", how="left", maintain_order="left")
    joined.select(table.collect_schema().names()).sink_parquet(folder / "reviews.parquet")


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, to)
