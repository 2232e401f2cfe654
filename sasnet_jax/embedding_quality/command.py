"""`python -m sasnet_jax.embedding_quality`: the paper's Tables 1 and 3 (sections 2.3, 3.1, 4.1)."""

import dataclasses
from pathlib import Path
from typing import Any

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus import categories
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.store import Store, open_poolings, open_store
from sasnet_jax.embedding_quality import quality_study, quality_tables
from sasnet_jax.embedding_quality.quality_tables import EmbeddingQuality
from sasnet_jax.scores import paper

_JSON, _TABLES, _PAIRS = "embedding_quality.json", "embedding_quality.md", "category_pairs.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingQualityConfig:
    """Settings of `embedding_quality`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting(
        (), help="embedding store; repeatable", topic="files", required=True
    )
    reference: str = setting(
        "", help="store whose category names are the reference; empty = MiniLM's", topic="files"
    )
    output: str = setting("", help="folder to write", topic="files", required=True)
    pooling: tuple[str, ...] = setting(
        (), help="pooling to compare; repeatable; empty = all of each store", topic="methods"
    )
    against: str = setting(
        "", help="STORE/POOLING that Table 3 compares; empty = best score", topic="methods"
    )
    min_reviews: int = setting(
        5, help="fewest reviews of a category that is compared", topic="methods", minimum=1
    )
    draws: int = setting(
        1000,
        help="bootstrap resamples of categories, and permutations of their names",
        topic="methods",
        minimum=100,
    )
    seed: int = setting(
        0, help="seed of noise, permutations and bootstrap", topic="methods", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)


def run(config: EmbeddingQualityConfig) -> None:
    """Writes the tables and what they are made from, or finds them there."""
    corpus = read_corpus(Path(config.corpus))
    stores = _open(config, corpus)
    if config.against and config.against not in stores:
        raise UserError(f"--against={config.against} is none of {', '.join(stores)}")
    reference = _reference(config, corpus, stores)
    known = categories.read_categories(corpus)
    settings: dict[str, Any] = {
        "corpus_sha256": corpus.sha256,
        "categories_sha256": known.sha256,
        "stores": {name: store.identity for name, store in stores.items()},
        "reference": reference.identity,
        "against": config.against,
        "min_reviews": config.min_reviews,
        "draws": config.draws,
        "seed": config.seed,
    }
    output = Path(config.output)
    if files.claim(output, _JSON):
        quality = files.read_record(output / _JSON, EmbeddingQuality)
        made_with = {name: getattr(quality, name) for name in settings}
        files.refuse_other_settings(output, made_with, settings)
        print(quality_tables.render(quality))
        files.say_complete(output)
        return
    groups = quality_study.groups_of(corpus, known, reference, config.min_reviews)
    methods = quality_study.measure(corpus, stores, groups, config.seed)
    compared = quality_study.compare(
        stores, groups, methods, against=config.against, draws=config.draws, seed=config.seed
    )
    quality = EmbeddingQuality(**settings, **compared)
    with files.naming(output), files.new_folder(output) as folder:
        quality_study.pairs(groups, methods).write_parquet(folder / _PAIRS)
        (folder / _TABLES).write_text(quality_tables.render(quality))
        files.write_record(folder / _JSON, quality)
    print(quality_tables.render(quality))
    print(f"written: {output}/{_JSON}, {_TABLES}, {_PAIRS}")


def _open(config: EmbeddingQualityConfig, corpus: Corpus) -> dict[str, Store]:
    """The stores' poolings by the name of the method, STORE/POOLING."""
    opened: dict[str, Store] = {}
    for folder in config.store:
        for store in open_poolings(Path(folder), corpus, config.pooling):
            name = f"{store.name}/{store.pooling}"
            if name in opened:
                raise UserError(f"--store: two folders are called {store.name}: rename one")
            opened[name] = store
    return opened


def _reference(config: EmbeddingQualityConfig, corpus: Corpus, stores: dict[str, Store]) -> Store:
    if config.reference:
        return open_store(Path(config.reference), corpus)
    for store in stores.values():
        if paper.is_minilm(store.identity):
            return store
    raise UserError(
        "no --store is of MiniLM, whose category names are the reference: give --reference=STORE"
    )
