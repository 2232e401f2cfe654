"""Writes a run folder (docs/formats.md); `sasnet_jax.model.run` reads it."""

import dataclasses
import hashlib
from pathlib import Path

import msgspec

from sasnet_jax import __version__, files
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store
from sasnet_jax.corpus.transform import InputTransform
from sasnet_jax.features.simple_models import SimpleModels
from sasnet_jax.model import inputs
from sasnet_jax.model.config import RESUMABLE, TrainConfig
from sasnet_jax.model.records import SIMPLE_MODELS, Epoch, RunRecord


def describe(config: TrainConfig, corpus: Corpus, stores: tuple[Store, ...]) -> RunRecord:
    """The contents of config.json, except the hash of zscore.npz."""
    settings = dataclasses.asdict(config) | {
        "corpus": str(Path(config.corpus).resolve()),
        "store": [str(Path(name).resolve()) for name in config.store],
    }
    return RunRecord(
        program_version=__version__,
        config=settings,
        corpus_sha256=corpus.sha256,
        stores=[store.identity for store in stores],
        class_shares=inputs.training_shares(config, corpus).tolist(),
        ratings=corpus.ratings,
    )


def refuse_other_run(run: Path, before: RunRecord, now: RunRecord) -> None:
    """Refuses to resume a run with settings that decide its results, naming them."""
    may_differ = {f"--{name}" for name in RESUMABLE}
    if now.config["schedule"] != "constant":
        may_differ.remove("--epochs")  # the learning rate falls toward the last of them
    files.refuse_other_settings(run, before.bound_to(run), now.bound_to(run), may_differ)


def write_inputs(
    run: Path, record: RunRecord, transform: InputTransform, models: SimpleModels | None = None
) -> None:
    """Writes config.json, by which a command knows a run, and what was fitted, with its hashes.

    A run that is killed between these files has no checkpoint yet, and writes them again.
    """
    fitted = {"zscore.npz": transform.to_npz()}
    if models is not None and any(part is not None for part in models):
        fitted[SIMPLE_MODELS] = models.to_npz()
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in fitted.items()}
    bound = msgspec.structs.replace(
        record,
        zscore_sha256=sha256["zscore.npz"],
        simple_models_sha256=sha256.get(SIMPLE_MODELS),
    )
    files.write_record(run / "config.json", bound)
    for name, content in fitted.items():
        with files.replacing(run / name) as file:
            file.write(content)


def write_resumed(run: Path, record: RunRecord, before: RunRecord) -> None:
    """Writes config.json again: epochs or patience may have grown."""
    zscore_sha256 = before.zscore_sha256 or files.file_sha256(run / "zscore.npz")
    sha256 = {"zscore_sha256": zscore_sha256, "simple_models_sha256": before.simple_models_sha256}
    files.write_record(run / "config.json", msgspec.structs.replace(record, **sha256))


def write_metrics(run: Path, curve: list[Epoch]) -> None:
    """Writes metrics.jsonl as the checkpoint has it."""
    with files.replacing(run / "metrics.jsonl") as file:
        file.writelines(epoch.line for epoch in curve)


def append_metrics(run: Path, epoch: Epoch) -> None:
    """Adds one line to metrics.jsonl."""
    path = run / "metrics.jsonl"
    with files.naming(path), path.open("ab") as file:
        file.write(epoch.line)
