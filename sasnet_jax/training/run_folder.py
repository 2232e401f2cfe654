"""The run folder (docs/formats.md): what was trained on what. Train writes, evaluate reads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sasnet_jax import __version__
from sasnet_jax.cli import UserError
from sasnet_jax.data import embeddings, interactions
from sasnet_jax.data.corpus import Corpus, read_corpus
from sasnet_jax.data.embeddings import Store, ZScore
from sasnet_jax.files import read_json, replacing, write_json
from sasnet_jax.training.config import RESUMABLE, TrainConfig
from sasnet_jax.training.step import Data

FORMAT_VERSION = 1


def load_data(config: TrainConfig) -> tuple[Corpus, Store, Data]:
    """Opens corpus and store, fits the z-score and builds the contexts; all on the host.

    Raises:
      UserError: they are unreadable or do not belong together.
    """
    corpus = read_corpus(Path(config.corpus))
    store = embeddings.open_store(Path(config.store[0]), corpus, config.pooling)
    every = np.arange(corpus.user.size, dtype=np.int32)
    zscore = embeddings.fit_zscore(
        store.table, every if config.fit_on == "all" else corpus.rows("train")
    )
    contexts = interactions.contexts_of(corpus, config.target_review)
    data = Data(store.table, zscore.mean, zscore.scale, corpus.stars, corpus.label, contexts)
    return corpus, store, data


def refuse_foreign(run: Path) -> None:
    """Refuses a folder that holds anything but a run."""
    if run.is_file() or (any(run.glob("[!.]*")) and not (run / "config.json").exists()):
        raise UserError(f"--output={run} holds other files: choose a new folder")


def describe(run: Path, config: TrainConfig, corpus: Corpus, store: Store) -> dict[str, Any]:
    """What config.json is to hold, checked against the run that is there, if any.

    Raises:
      UserError: the folder holds a run with other settings, which are named.
    """
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "program_version": __version__,
        "config": dataclasses.asdict(config)
        | {
            "corpus": str(Path(config.corpus).resolve()),
            "store": [str(Path(name).resolve()) for name in config.store],
        },
        "corpus_sha256": corpus.sha256,
        "store": store.identity,
    }
    if (run / "config.json").exists():
        before = read_description(run)
        settings = {k: v for k, v in before["config"].items() if k not in RESUMABLE}
        now = {k: v for k, v in description["config"].items() if k not in RESUMABLE}
        changed = [f"--{k}" for k in now if settings.get(k) != now[k]]
        changed += [k for k in ("corpus_sha256", "store") if before[k] != description[k]]
        if changed:
            raise UserError(
                f"{run} holds a run with other {', '.join(changed)}: choose another --output"
            )
    return description


def write_description(run: Path, description: dict[str, Any]) -> None:
    """Writes config.json."""
    write_json(run / "config.json", description)


def read_description(run: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
      UserError: it is absent, damaged or of another format version.
    """
    keys = ("format_version", "config", "corpus_sha256", "store")
    description = read_json(run / "config.json", "python -m sasnet_jax.train", keys)
    if description.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{run / 'config.json'} has format version {description.get('format_version')}, this "
            f"program reads {FORMAT_VERSION}: train again into a new folder"
        )
    return description


def config_of(description: dict[str, Any]) -> TrainConfig:
    """The settings in a config.json.

    Raises:
      UserError: they are not the settings of this version.
    """
    settings = description["config"]
    try:
        return TrainConfig(**settings | {"store": tuple(settings["store"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"config.json was written by another version ({error})") from None


def open_run(run: Path) -> tuple[TrainConfig, Corpus, Data]:
    """Opens a run's corpus and store, checked against what it was trained on.

    Raises:
      UserError: one of them is gone or is not the same any more.
    """
    description = read_description(run)
    config = config_of(description)
    corpus, store, data = load_data(config)
    if corpus.sha256 != description["corpus_sha256"]:
        raise UserError(f"corpus {config.corpus} is not the one that run {run} was trained on")
    if store.identity != description["store"]:
        raise UserError(f"store {config.store[0]} is not the one that run {run} was trained on")
    zscore = read_zscore(run)
    return config, corpus, data._replace(mean=zscore.mean, scale=zscore.scale)


def write_zscore(run: Path, data: Data) -> None:
    """Writes zscore.npz: `mean` and `scale` [e]."""
    with replacing(run / "zscore.npz") as file:
        np.savez(file, mean=data.mean, scale=data.scale)


def read_zscore(run: Path) -> ZScore:
    """Reads zscore.npz."""
    path = run / "zscore.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return ZScore(arrays["mean"], arrays["scale"])
    except (ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): train again into a new folder") from None


def cut_metrics(run: Path, epochs: int) -> None:
    """Cuts metrics.jsonl back to the first `epochs` epochs: what the checkpoint knows of."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    with replacing(path) as file:
        file.writelines(lines[:epochs])


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
