"""`python -m sasnet_jax.evaluate`: a run's best parameters on validation and test."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.evaluation import predictions
from sasnet_jax.training import compilation, devices, loop, run_folder, step
from sasnet_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Settings of `evaluate`."""

    run: tuple[str, ...] = setting(
        (), help="run folder written by train; repeatable", topic="input", required=True
    )
    baselines: str = setting("", help="output of baselines, shown beside", topic="input")


def run(config: EvaluateConfig) -> None:
    """Writes predictions.parquet and evaluation.json into each run, and prints the metrics."""
    for name in config.run:
        found = evaluate(Path(name))
        models: dict[str, Any] = {}
        if config.baselines:
            models |= _baselines(Path(config.baselines), found)
        print(predictions.table(models | {"sasnet": found}, found["target_review"]))
        print(predictions.confusion(found["test"]["confusion"]))
        print(f"written: {name}/evaluation.json, {name}/predictions.parquet")


def evaluate(folder: Path) -> dict[str, Any]:
    """Predicts validation and test with the best parameters; returns evaluation.json."""
    config, corpus, data = run_folder.open_run(folder)
    mesh = devices.mesh_for(config.batch_size)
    functions = step.build(config, mesh, data.embedding_dim, total_steps=1)
    checkpoints = Checkpoints(folder, read_only=True)
    params = checkpoints.restore_best(jax.device_get(functions.init().params))
    checkpoints.close()
    rows = np.concatenate([corpus.rows(split) for split in predictions.EVALUATED])
    params, data = devices.place(mesh, params), loop.on_devices(config, mesh, data)
    probability = loop.predict(functions, mesh, params, data, rows)
    predictions.write(folder / "predictions.parquet", corpus, rows, probability)
    found = predictions.summarize(corpus, rows, probability)
    found |= {"target_review": config.target_review, "corpus_sha256": corpus.sha256}
    files.write_json(folder / "evaluation.json", found)
    return found


def _baselines(folder: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    path = folder / "baselines.json"
    found = files.read_json(path, "python -m sasnet_jax.baselines", ("models",))
    for key in ("corpus_sha256", "target_review"):
        if found.get(key) != evaluation[key]:
            raise UserError(f"{path} has another {key} than the run: they cannot be compared")
    return found["models"]


if __name__ == "__main__":
    compilation.keep_compiled_programs()
    cli.main(EvaluateConfig, run, "Trained run -> metrics and predictions.")
