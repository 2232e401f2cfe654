"""Run folders as `train` leaves them, without training: for tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from conftest import SMALL, World

from sasnet_jax import files
from sasnet_jax.model import inputs, network
from sasnet_jax.model.checkpoint import Checkpoints, Progress
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.train import run_folder

# Every switch of the network, off and on, and of what it reads.
NETWORK_SWITCHES = {
    "cross_attention": ("pooled", "set"),
    "review_features": ("text", "text+stars"),
    "encoder": (False, True),
    "match": (False, True),
    "bias_term": (False, True),
    "classes": (3, 5),
}
SWITCHES = NETWORK_SWITCHES | {"discriminants": (0, 4)}


def write_run(
    world: World, output: Path, *, scale: float = 0.3, losses: Sequence[float] = (1.0,), **settings
) -> Run:
    """A run whose parameters are normal with this deviation: large enough to matter.

    It has an epoch for each of these validation losses, and is finished unless `settings` say
    otherwise.
    """
    paths = {"corpus": str(world.corpus_folder), "store": (str(world.store_folder),)}
    settings = SMALL | {"epochs": len(losses)} | settings
    config = TrainConfig(**paths | settings, output=str(output))
    corpus, stores = inputs.open_inputs(config)
    output.mkdir(parents=True)
    run_folder.write_description(output, run_folder.describe(output, config, corpus, stores))
    transform = inputs.fit_transform(config, corpus, stores)
    transform.save(output / "zscore.npz")
    _, like = network.definition(config, transform.width)
    rng = np.random.default_rng(config.seed)
    params = jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), like)
    checkpoints = Checkpoints(output)
    for epoch, loss in enumerate(losses, 1):
        best_epoch = int(np.argmin(losses[:epoch])) + 1
        record = {"epoch": epoch, "best_epoch": best_epoch, "validation_log_loss": loss}
        more = {"validation_accuracy": 0.5, "target_review": config.target_review}
        run_folder.append_metrics(output, record | more)
    progress = Progress(
        epochs_evaluated=len(losses), best_epoch=best_epoch, best_log_loss=min(losses)
    )
    checkpoints.save(1, params, params, progress)
    checkpoints.close()
    return Run(output)


def write_evaluation(run: Run, loss: float, **test: float) -> None:
    """An evaluation with this log-loss, and these metrics of its test reviews."""
    split = {"accuracy": 0.5, "log_loss": loss}
    evaluation = {"validation": split, "test": split | test, "corpus_sha256": run.corpus_sha256}
    evaluation["target_review"] = run.config.target_review
    files.write_json(run.folder / "evaluation.json", evaluation)
