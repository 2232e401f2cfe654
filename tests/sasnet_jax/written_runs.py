"""Run folders as `train` leaves them, without training: for tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import jax
import msgspec
import numpy as np
from conftest import SMALL, World

from sasnet_jax import files
from sasnet_jax.features import regression, simple_models
from sasnet_jax.model import inputs, network
from sasnet_jax.model.checkpoint import Checkpoints
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.records import Epoch, Progress
from sasnet_jax.model.run import Run
from sasnet_jax.scores import metrics
from sasnet_jax.scores.predictions import Evaluation
from sasnet_jax.train import run_folder

# Every switch of the network, off and on, and of what it reads.
NETWORK_SWITCHES = {
    "cross_attention": ("pooled", "set"),
    "review_features": ("text", "text+stars"),
    "encoder": (False, True),
    "match": (False, True),
    "bias_term": (False, True),
    "crossed_bias": (False, True),
    "votes": (False, True),
    "offset": (False, True),
    "classes": (3, 5),
}
SWITCHES = NETWORK_SWITCHES | {"discriminants": (0, 4)}


def switched(switches: dict, base: int, name: str | None) -> dict:
    """All switches off (base 0) or on (1), and the other way round this one."""
    settings = {key: values[base ^ (key == name)] for key, values in switches.items()}
    if "discriminants" in switches and (settings["votes"] or settings["offset"]):
        settings["discriminants"] = 4  # which these need
    if "discriminants" in switches and (settings["crossed_bias"] or settings["offset"]):
        settings["empty_side"] = 0.0
    return settings


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
    transform = inputs.fit_transform(config, corpus, stores)
    with (  # which regression it is does not matter here
        mock.patch.object(regression, "PENALTIES", (0.01,)),
        mock.patch.object(simple_models, "TEXT", simple_models.TEXT[1:2]),
        mock.patch.object(simple_models, "TEXT_AND_STARS", simple_models.TEXT_AND_STARS[2:3]),
    ):
        models = inputs.fit_simple_models(config, corpus, stores, transform)
    run_folder.write_inputs(output, run_folder.describe(config, corpus, stores), transform, models)
    _, like = network.definition(config, transform.width)
    rng = np.random.default_rng(config.seed)
    params = jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), like)
    checkpoints = Checkpoints(output)
    curve = []
    for number, loss in enumerate(losses, 1):
        best_epoch = int(np.argmin(losses[:number])) + 1
        others = {"target_review": config.target_review, "factor": 0.5 if config.offset else None}
        curve.append(epoch_of(number, best_epoch, loss, **others))
    progress = Progress(
        epochs_evaluated=len(losses),
        best_epoch=curve[-1].best_epoch,
        best_log_loss=min(losses),
        curve=curve,
    )
    checkpoints.save(1, params, params, progress)
    checkpoints.close()
    run_folder.write_metrics(output, curve)
    return Run(output)


def epoch_of(epoch: int = 1, best_epoch: int = 1, loss: float = 1.0, **others) -> Epoch:
    """A line of metrics.jsonl."""
    known = {"train_loss": 1.0, "validation_accuracy": 0.5, "validation_macro_f1": 0.5}
    known |= {"target_review": "exclude", "step": 7 * epoch, "validation_log_loss": loss}
    return Epoch(epoch=epoch, best_epoch=best_epoch, **known | others)


def write_evaluation(run: Run, loss: float, **test: float) -> None:
    """An evaluation with this log-loss, and these metrics of its test reviews."""
    certain = np.array([[np.exp(-loss), 1 - np.exp(-loss), 0]])
    scores = metrics.summarize(np.zeros(1, np.int8), certain)
    evaluation = Evaluation(
        validation=scores,
        test=msgspec.structs.replace(scores, **test),
        target_review=run.config.target_review,
        corpus_sha256=run.corpus_sha256,
    )
    files.write_record(run.folder / "evaluation.json", evaluation)
