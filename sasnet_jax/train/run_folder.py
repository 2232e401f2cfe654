"""Writes a run folder (docs/formats.md); `sasnet_jax.model.run` reads it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sasnet_jax import __version__
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.store import Store
from sasnet_jax.files import replacing, write_json
from sasnet_jax.model import inputs
from sasnet_jax.model.config import RESUMABLE, TrainConfig
from sasnet_jax.model.run import FORMAT_VERSION, Run, has_checkpoint


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
        "class_shares": inputs.training_shares(config, corpus).tolist(),
    }
    # Before its first checkpoint a run has nothing to lose: a mistake may be mended in its place.
    if has_checkpoint(run):
        before = Run(run).description
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
