"""Pools the predictions of all folds: every review once per model and seed.

In: complete folds. Out: the models, among them those that are chosen anew in each fold, by
validation only, and their probabilities of every test review.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float, Int32

from sasnet_jax import files
from sasnet_jax.baselines import results as baselines
from sasnet_jax.baselines.registry import Sees
from sasnet_jax.baselines.results import Baselines
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.crossvalidate.fold import Fold
from sasnet_jax.crossvalidate.results import BEST, BEST_ON_TEXTS, CHOSEN, Model
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions
from sasnet_jax.scores.predictions import Predictions


class Predicted(NamedTuple):
    """What the models of one fold predict."""

    models: dict[str, Model]
    validation: dict[str, float | None]  # log-loss in nats, the mean over seeds
    probability: dict[str, Float[np.ndarray, "seeds n c"]]  # of the test reviews, in row order


class Pooled(NamedTuple):
    """What the models predict over all folds."""

    models: dict[str, Model]
    rows: Int32[np.ndarray, "n"]  # ascending
    fold: Int32[np.ndarray, "n"]
    probability: dict[str, Float[np.ndarray, "seeds n c"]]


def pool(folds: Sequence[Fold], nested: bool) -> Pooled:
    """Reads and pools complete folds.

    Args:
      folds: the folds.
      nested: whether to add the model that is chosen in each fold.

    Raises:
      UserError: predictions were damaged, or folds have different baselines.
    """
    plan = folds[0].plan
    predicted = [_predicted(fold) for fold in folds]
    models = dict(predicted[0].models)
    for fold, one in zip(folds, predicted, strict=True):
        if one.models != models:
            raise UserError(
                f"{fold.baselines_folder} has other baselines than {folds[0].baselines_folder}: "
                f"remove both and run the same command again"
            )
    for name, among in _candidates(models, nested).items():
        chosen = [choose(one.validation, among) for one in predicted]
        for one, model in zip(predicted, chosen, strict=True):
            one.probability[name] = one.probability[model]
        sees_stars = any("stars" in models[model].sees for model in among)
        models[name] = Model(
            kind="choice",
            label=name,
            sees="text+stars" if sees_stars else "text",
            seeds=models[among[0]].seeds,
            choices={str(f.number): model for f, model in zip(folds, chosen, strict=True)},
        )
    rows = np.concatenate([fold.corpus().rows("test") for fold in folds])
    order = np.argsort(rows)
    probability = {
        name: np.concatenate([one.probability[name] for one in predicted], axis=1)[:, order]
        for name in models
    }
    for name in plan.bases if plan.seeds > 1 else ():
        ensemble = f"{name} ensemble"
        models[ensemble] = msgspec.structs.replace(
            models[name], kind="ensemble", label=ensemble, seeds=1
        )
        probability[ensemble] = probability[name].mean(axis=0, keepdims=True)
    kinds = ("baseline", "choice", "model", "ensemble")
    models = dict(sorted(models.items(), key=lambda item: kinds.index(item[1].kind)))
    rows = rows[order]
    return Pooled(models, rows, plan.fold_of_user[plan.corpus.user[rows]], probability)


def choose(validation: Mapping[str, float | None], among: Sequence[str]) -> str:
    """The model with the best validation log-loss; the first of equals."""
    losses = {name: validation[name] for name in among}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    return min(known, key=lambda name: known[name])


def write(pooled: Pooled, corpus: Corpus, folder: Path) -> dict[str, Model]:
    """Writes a file per model and seed; returns the models with the hashes of their files."""
    models = {}
    for name, model in pooled.models.items():
        written = []
        for seed, probability in enumerate(pooled.probability[name]):
            stem = f"{name}-seed{seed}" if model.seeds > 1 or model.kind == "model" else name
            path = folder / f"{stem.replace(' ', '_')}.parquet"
            columns = {"row": pooled.rows, "fold": pooled.fold}
            written.append(predictions.write_columns(path, corpus, columns, probability))
        models[name] = msgspec.structs.replace(model, predictions_sha256=written)
    return models


def _candidates(models: Mapping[str, Model], nested: bool) -> dict[str, list[str]]:
    """The models that each choice is among."""
    fitted = [name for name, model in models.items() if model.kind == "baseline"]
    on_texts = [name for name in fitted if models[name].sees in ("nothing", "text")]
    trained = [name for name, model in models.items() if model.kind == "model"]
    candidates = {BEST: fitted, BEST_ON_TEXTS: on_texts, CHOSEN: trained if nested else []}
    return {name: among for name, among in candidates.items() if among}


def _predicted(fold: Fold) -> Predicted:
    plan, corpus = fold.plan, fold.corpus()
    predicted = Predicted({}, {}, {})
    if plan.baselines:
        fitted = files.read_record(fold.baselines_folder / baselines.COMPLETE, Baselines)
        for one in fitted.described:
            if one.is_ceiling:
                continue
            read = baselines.read_predictions(fold.baselines_folder, fitted, one.name, corpus)
            model = Model(kind="baseline", label=one.label, sees=one.sees, seeds=1)
            predicted.models[one.name] = model
            predicted.validation[one.name] = fitted.models[one.name].validation.log_loss
            predicted.probability[one.name] = _on_test(corpus, [read])
    for name, base in plan.bases.items():
        losses, runs = [], []
        for seed in range(plan.seeds):
            run = Run(fold.run(name, seed))
            evaluation = run.evaluation
            assert evaluation is not None and evaluation.validation.log_loss is not None
            losses.append(evaluation.validation.log_loss)
            runs.append(run.predictions(corpus, evaluation))
        sees: Sees = "text+stars" if base.sees_stars else "text"
        predicted.models[name] = Model(kind="model", label=name, sees=sees, seeds=plan.seeds)
        predicted.validation[name] = float(np.mean(losses))
        predicted.probability[name] = _on_test(corpus, runs)
    return predicted


def _on_test(corpus: Corpus, models: Sequence[Predictions]) -> Float[np.ndarray, "seeds n c"]:
    parts = []
    for rows, probability in models:
        test = corpus.split[rows] == "test"
        assert np.array_equal(rows[test], corpus.rows("test"))
        parts.append(probability[test].astype(np.float64))
    return np.stack(parts)
