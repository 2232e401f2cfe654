"""`python -m sasnet_jax.baselines`: what SASNet must be compared with (paper section 2.5)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.data import embeddings
from sasnet_jax.data.corpus import CLASSES, Corpus, read_corpus
from sasnet_jax.data.interactions import TargetReview, contexts_of
from sasnet_jax.data.splits import SPLITS
from sasnet_jax.evaluation import predictions, svm

_TFIDF_TERMS = 5000  # the most frequent ones


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaselinesConfig:
    """Settings of `baselines`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting((), help="embedding store; repeatable", topic="files")
    output: str = setting("", help="folder to write", topic="files", required=True)
    target_review: TargetReview = setting(
        "exclude", help="the review to predict in the averages (leaky) or not", topic="protocol"
    )
    seed: int = setting(0, help="of the rows to tune on", topic="protocol")

    def __post_init__(self):
        """Refuses what cannot be meant."""
        if self.seed < 0:
            raise UserError(f"--seed={self.seed} must not be negative")


def run(config: BaselinesConfig) -> None:
    """Writes baselines.json and predictions/<model>.parquet, or finds them there."""
    corpus = read_corpus(Path(config.corpus))
    corpus.refuse_missing_class()
    stores = [embeddings.open_store(Path(name), corpus) for name in config.store]
    names = ["tfidf", *(store.name for store in stores)]
    if len(set(names)) < len(names):
        raise UserError("--store: folders need names of their own, and not tfidf")
    output = Path(config.output)
    settings = {
        "target_review": config.target_review,
        "corpus_sha256": corpus.sha256,
        "stores": {store.name: store.identity for store in stores},
        "seed": config.seed,
    }
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        if not (output / "baselines.json").exists():
            raise UserError(f"--output={output} holds other files: choose a new folder")
        found = files.read_json(output / "baselines.json", "python -m sasnet_jax.baselines")
        if any(found.get(name) != value for name, value in settings.items()):
            raise UserError(f"{output} holds baselines made otherwise: choose another --output")
        print(predictions.table(found["models"], config.target_review))
        print(f"baselines {output} are already complete: nothing to do")
        return
    rows = np.concatenate([corpus.rows(split) for split in predictions.EVALUATED])
    models: dict[str, Any] = {}
    with files.new_folder(output) as folder:
        for name, probability, chosen in _predict_all(config, corpus, stores):
            predictions.write(folder / "predictions" / f"{name}.parquet", corpus, rows, probability)
            models[name] = predictions.summarize(corpus, rows, probability) | chosen
        files.write_json(folder / "baselines.json", {"models": models, **settings})
    print(predictions.table(models, config.target_review))
    print(f"written: {output}/baselines.json")


def _predict_all(
    config: BaselinesConfig, corpus: Corpus, stores: list[embeddings.Store]
) -> Iterator[tuple[str, Float[np.ndarray, "n c"], dict[str, Any]]]:
    """Yields each baseline's name, its probabilities of the evaluated rows, and its settings."""
    train = corpus.rows("train")
    evaluated = sum(corpus.rows(split).size for split in predictions.EVALUATED)
    share = np.bincount(corpus.label[train], minlength=len(CLASSES)) / train.size
    yield "majority", np.tile(share, (evaluated, 1)), {}
    for name, features in _features(corpus, stores):
        print(f"fitting {name} on {train.size:,} reviews ...", flush=True)
        probability, penalty = _svm(config, corpus, features)
        yield name, probability, {"C": penalty}


def _features(corpus: Corpus, stores: list[embeddings.Store]) -> Iterator[tuple[str, svm.Features]]:
    """Features of every review, fitted on training reviews."""
    texts = corpus.texts().to_list()
    vectorizer = TfidfVectorizer(max_features=_TFIDF_TERMS, sublinear_tf=True, dtype=np.float32)
    train = corpus.rows("train")
    vectorizer.fit([texts[row] for row in train])
    yield "tfidf_svm", vectorizer.transform(texts)
    for store in stores:
        yield f"{store.name}_svm", embeddings.fit_zscore(store.table, train)(store.table)


def _svm(
    config: BaselinesConfig, corpus: Corpus, features: svm.Features
) -> tuple[Float[np.ndarray, "n c"], float]:
    contexts = contexts_of(corpus, config.target_review)
    pairs = {split: svm.pair_averages(features, contexts, corpus.rows(split)) for split in SPLITS}
    model = svm.fit(
        pairs["train"],
        corpus.label[corpus.rows("train")],
        pairs["validation"],
        corpus.label[corpus.rows("validation")],
        config.seed,
    )
    probability = [model.predict(pairs[split]) for split in predictions.EVALUATED]
    return np.concatenate(probability), model.penalty


if __name__ == "__main__":
    cli.main(BaselinesConfig, run, "Corpus + stores -> baselines.")
