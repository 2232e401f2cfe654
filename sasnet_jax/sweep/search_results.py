"""What a sweep found: in words, as trials.csv and as a flagfile (docs/formats.md)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from optuna.trial import FrozenTrial, TrialState

from sasnet_jax.files import replacing
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.sweep.search_space import INCIDENTAL

NAME = "trial-{:04d}"  # of a trial's run folder
# A trial's attributes that its metrics.jsonl has, at the best epoch.
OUTCOME = ("validation_log_loss", "validation_accuracy", "best_epoch")
_TRIALS_FOR_IMPORTANCE = 4


def listed(values: Mapping[str, Any]) -> str:
    """Names and values on one line."""
    texts = {k: f"{v:.4g}" if isinstance(v, float) else _flag(v) for k, v in values.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def outcome(trial: FrozenTrial) -> str:
    """What came of a trial, in words."""
    found = trial.user_attrs
    if trial.state == TrialState.FAIL:
        return f"failed, {found.get('problem', 'the loss is not finite')}"
    pruned = f", pruned after epoch {found['epochs']}" if trial.state == TrialState.PRUNED else ""
    return (
        f"validation log-loss {found['validation_log_loss']:.4f}, "
        f"accuracy {found['validation_accuracy']:.4f} at epoch {found['best_epoch']}{pruned}"
    )


def best(study: optuna.Study) -> str:
    """The best trial, in words."""
    trial = study.best_trial
    name, trials = NAME.format(trial.number), len(study.trials)
    return f"best of {trials} trials: {name}, {outcome(trial)}: {listed(trial.params)}"


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each setting in the loss's variance (fANOVA); empty if it cannot be told."""
    if len(study.get_trials(states=[TrialState.COMPLETE])) < _TRIALS_FOR_IMPORTANCE:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # all losses are the same
        return {}


def write_trials(path: Path, study: optuna.Study, base: TrainConfig) -> None:
    """Writes one line a trial: state, settings, outcome."""
    rows = []
    for trial in study.trials:
        row: dict[str, Any] = {
            "trial": NAME.format(trial.number),
            "state": trial.state.name.lower(),
        }
        row |= {"target_review": base.target_review} | trial.params
        rows.append(row | {n: trial.user_attrs.get(n) for n in (*OUTCOME, "epochs", "problem")})
    with replacing(path) as file:
        pl.DataFrame(rows, infer_schema_length=None).write_csv(file)


def write_flags(path: Path, config: TrainConfig, comment: Sequence[str]) -> None:
    """Writes a flagfile of train: every setting but where the data and the run lie."""
    command = f"python -m sasnet_jax.train --flagfile={path.name} "
    command += "--corpus=CORPUS --store=STORE --output=RUN"
    lines = [f"# {line}" for line in (command, *comment)]
    settings = dataclasses.asdict(config)
    lines += [f"--{k}={_flag(v)}" for k, v in settings.items() if k not in INCIDENTAL]
    with replacing(path) as file:
        file.write("\n".join([*lines, ""]).encode())


def _flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
