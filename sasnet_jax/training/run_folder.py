"""The run folder (docs/formats.md): what was trained on what. Train writes, evaluate reads."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sasnet_jax import __version__
from sasnet_jax.cli import UserError
from sasnet_jax.data import embeddings, frequencies, interactions, reading
from sasnet_jax.data.corpus import Corpus, read_corpus
from sasnet_jax.data.embeddings import Store, ZScore
from sasnet_jax.data.reading import Reading
from sasnet_jax.files import read_json, replacing, write_json
from sasnet_jax.training import devices
from sasnet_jax.training.batches import Data, Scaling
from sasnet_jax.training.config import RESUMABLE, TrainConfig, with_defaults

FORMAT_VERSION = 2


def load_data(config: TrainConfig) -> tuple[Corpus, tuple[Store, ...], Data]:
    """Opens corpus and stores, and fits on them what a new run reads.

    Raises:
      UserError: they are unreadable or do not belong together.
    """
    corpus, stores = open_inputs(config)
    return corpus, stores, build_data(config, corpus, fit_readings(config, corpus, stores))


def open_inputs(config: TrainConfig) -> tuple[Corpus, tuple[Store, ...]]:
    """Opens corpus and stores.

    Raises:
      UserError: they are unreadable or do not belong together.
    """
    corpus = read_corpus(Path(config.corpus))
    stores = [embeddings.open_store(Path(name), corpus, config.pooling) for name in config.store]
    return corpus, tuple(stores)


def fit_readings(
    config: TrainConfig, corpus: Corpus, stores: tuple[Store, ...]
) -> tuple[Reading, ...]:
    """How a new run reads its stores.

    Raises:
      UserError: discriminants cannot be fitted.
    """
    rows = corpus.rows("train")
    if config.fit_on == "all":
        rows = np.arange(corpus.user.size, dtype=np.int32)
    return tuple(reading.fit(store, corpus, rows, config.discriminants) for store in stores)


def as_the_writer(readings: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """The writer's readings in every process: fitted on another machine, a last bit may differ,
    and with it which way a direction points.
    """
    fitted = [(one.zscore.mean, one.zscore.scale, one.directions) for one in readings]
    agreed = devices.from_writer(fitted)
    return tuple(
        Reading(one.store, ZScore(mean, scale), directions)
        for one, (mean, scale, directions) in zip(readings, agreed, strict=True)
    )


def build_data(config: TrainConfig, corpus: Corpus, readings: tuple[Reading, ...]) -> Data:
    """Everything that a step reads, on the host."""
    contexts = interactions.contexts_of(corpus, config.target_review)
    label = corpus.labels(config.classes)
    counts = None
    if config.bias_term:
        counts = frequencies.context_counts(contexts, label, config.classes)
    return Data(
        tables=tuple(one.table() for one in readings),
        scalings=tuple(Scaling(*one.scaling()) for one in readings),
        stars=corpus.stars,
        label=label,
        contexts=contexts,
        counts=counts,
        shares=frequencies.class_shares(label[corpus.rows("train")], config.classes),
    )


def refuse_foreign(run: Path) -> None:
    """Refuses a folder that holds anything but a run."""
    if run.is_file() or (any(run.glob("[!.]*")) and not (run / "config.json").exists()):
        raise UserError(f"--output={run} holds other files: choose a new folder")


def describe(
    run: Path, config: TrainConfig, corpus: Corpus, stores: tuple[Store, ...]
) -> dict[str, Any]:
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
        "stores": [store.identity for store in stores],
    }
    # Before its first checkpoint a run has nothing to lose: a mistake may be mended in its place.
    if has_checkpoint(run):
        before = read_description(run)
        settings, now = before["config"], description["config"]
        resumable = set(RESUMABLE)
        if config.schedule != "constant":
            resumable.remove("epochs")  # the learning rate falls towards the last of them
        changed = [f"--{k}" for k in now if k not in resumable and settings.get(k) != now[k]]
        changed += [k for k in ("corpus_sha256", "stores") if before.get(k) != description[k]]
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
    made_by = "python -m sasnet_jax.train"
    keys = ("format_version", "config", "corpus_sha256")
    description = read_json(run / "config.json", made_by, keys)
    if description.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{run / 'config.json'} has format version {description.get('format_version')}, this "
            f"program reads {FORMAT_VERSION}: train again into a new folder"
        )
    return description | {"config": with_defaults(description["config"])}


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
    corpus, stores = open_inputs(config)
    if corpus.sha256 != description["corpus_sha256"]:
        raise UserError(f"corpus {config.corpus} is not the one that run {run} was trained on")
    for store, identity in zip(stores, description["stores"], strict=True):
        if store.identity != identity:
            raise UserError(f"store {store.folder} is not the one that run {run} was trained on")
    readings = read_zscore(run, stores, config)
    return config, corpus, build_data(config, corpus, readings)


def has_checkpoint(run: Path) -> bool:
    """Whether a run has something to go on with."""
    return any((run / "checkpoints").glob("[0-9]*"))


def write_zscore(run: Path, readings: tuple[Reading, ...]) -> None:
    """Writes zscore.npz: `mean` and `scale` [e], of all stores side by side, and with
    `--discriminants` the `directions_0`, `directions_1`, ... [e, k] of each.
    """
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(one.zscore, name) for one in readings])
        for name in ("mean", "scale")
    }
    for number, one in enumerate(readings):
        if one.directions is not None:
            arrays[f"directions_{number}"] = one.directions
    with replacing(run / "zscore.npz") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_zscore(run: Path, stores: tuple[Store, ...], config: TrainConfig) -> tuple[Reading, ...]:
    """Reads zscore.npz, for these stores.

    Raises:
      UserError: it is absent, damaged, or of other stores.
    """
    path = run / "zscore.npz"
    dims = [store.table.shape[1] for store in stores]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            mean, scale = arrays["mean"], arrays["scale"]
            directions = [
                arrays[f"directions_{number}"] if config.discriminants else None
                for number in range(len(stores))
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): train again into a new folder") from None
    wanted = [(dim, 2 * config.discriminants) for dim in dims]
    fits = mean.shape == scale.shape == (sum(dims),) and all(
        one is None or one.shape == shape for one, shape in zip(directions, wanted, strict=True)
    )
    if not fits:
        raise UserError(f"{path} is of other stores: train again into a new folder")
    parts = (np.split(array, np.cumsum(dims)[:-1]) for array in (mean, scale))
    zscores = [ZScore(*both) for both in zip(*parts, strict=True)]
    return tuple(Reading(*one) for one in zip(stores, zscores, directions, strict=True))


def cut_metrics(run: Path, epochs: int) -> None:
    """Cuts metrics.jsonl back to the first `epochs` epochs: what the checkpoint knows of."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    with replacing(path) as file:
        file.writelines(lines[:epochs])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, one an epoch; a last one that is being written is left out.

    Raises:
      UserError: it is damaged.
    """
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        raise UserError(f"{path} is damaged: train again into a new folder") from None


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
