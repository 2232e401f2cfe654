"""What a run reads: corpus and stores, and from them everything that a step reads."""

from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int32

from sasnet_jax.corpus.contexts import Contexts, contexts_of
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.counts import class_shares, context_counts
from sasnet_jax.corpus.store import Store, open_store
from sasnet_jax.corpus.transform import InputTransform
from sasnet_jax.features import simple_models
from sasnet_jax.features.out_of_fold import Part
from sasnet_jax.features.simple_models import SimpleModels
from sasnet_jax.model import devices
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.draws import Data
from sasnet_jax.model.run import Run


def open_inputs(config: TrainConfig) -> tuple[Corpus, tuple[Store, ...]]:
    """Opens corpus and stores.

    Raises:
      UserError: they are unreadable or do not belong together.
    """
    corpus = read_corpus(Path(config.corpus))
    stores = [open_store(Path(name), corpus, config.pooling) for name in config.store]
    return corpus, tuple(stores)


def fit_transform(config: TrainConfig, corpus: Corpus, stores: tuple[Store, ...]) -> InputTransform:
    """How a new run reads its stores.

    Raises:
      UserError: discriminants cannot be fitted.
    """
    rows = corpus.rows("train")
    if config.fit_on == "all":
        rows = np.arange(corpus.user.size, dtype=np.int32)
    return InputTransform.fit(stores, corpus, rows, config.discriminants)


def fit_simple_models(
    config: TrainConfig, corpus: Corpus, stores: tuple[Store, ...], transform: InputTransform
) -> SimpleModels:
    """What the network of a new run builds on."""
    if not (config.crossed_bias or config.offset):
        return SimpleModels()
    return simple_models.fit(
        _reader(config, corpus, stores, transform),
        contexts_of(corpus, config.target_review),
        crossed=config.crossed_bias,
        offset=config.offset,
        with_stars=config.sees_stars,
        seed=config.seed,
    )


def models_for_contexts(
    run: Run,
    corpus: Corpus,
    stores: tuple[Store, ...],
    contexts: Contexts,
    rows: Int32[np.ndarray, "n"],
) -> SimpleModels:
    """A run's simple models, asked anew about held-out reviews whose contexts are others."""
    models, config = run.simple_models(), run.config
    if models.crossed is None and models.logits is None:
        return models
    reader = _reader(config, corpus, stores, run.transform())
    part = Part(rows, contexts, corpus.rows("train"))
    return simple_models.predict_again(models, reader, part, with_stars=config.sees_stars)


def _reader(
    config: TrainConfig, corpus: Corpus, stores: tuple[Store, ...], transform: InputTransform
) -> simple_models.Reader:
    return simple_models.Reader(
        corpus=corpus,
        label=corpus.labels(config.classes),
        shares=training_shares(config, corpus),
        heads=transform.heads(stores) if config.offset else (),
    )


def build_data(
    config: TrainConfig,
    corpus: Corpus,
    stores: tuple[Store, ...],
    transform: InputTransform,
    models: SimpleModels | None = None,
) -> Data:
    """Everything that a step reads, on the host; `models` are those that the network builds on."""
    models = models or SimpleModels()
    assert (config.crossed_bias, config.offset) == (
        models.crossed is not None,
        models.logits is not None,
    )
    contexts = contexts_of(corpus, config.target_review)
    label = corpus.labels(config.classes)
    counts = None
    if config.bias_term:
        counts = context_counts(contexts, label, config.classes)
    return Data(
        tables=transform.tables(stores),
        scalings=tuple(store.scaling() for store in transform.stores),
        stars=corpus.ratings.steps(corpus.stars),
        label=label,
        contexts=contexts,
        counts=counts,
        shares=training_shares(config, corpus),
        crossed=models.crossed,
        offset=models.logits,
    )


def on_devices(config: TrainConfig, mesh: Mesh, data: Data) -> Data:
    """The data where `--table` wants them; everything but the tables is on every device."""
    tables = data.tables
    if config.table == "device":
        tables = devices.place(mesh, tables)
    elif config.table == "sharded":
        tables = tuple(devices.place_table(mesh, np.asarray(table)) for table in tables)
    return devices.place(mesh, data._replace(tables=()))._replace(tables=tables)


def training_shares(config: TrainConfig, corpus: Corpus) -> Float[np.ndarray, "c"]:
    """The share of each class among the training reviews."""
    label = corpus.labels(config.classes)[corpus.rows("train")]
    return class_shares(label, config.classes)
