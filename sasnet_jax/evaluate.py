"""`python -m sasnet_jax.evaluate`: runs on validation and test, beside baselines."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int32

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.data import frequencies, interactions
from sasnet_jax.data.corpus import Corpus, read_corpus
from sasnet_jax.evaluation import comparison, metrics, predictions, registry
from sasnet_jax.evaluation.registry import Baseline
from sasnet_jax.training import compilation, devices, loop, run_folder, step
from sasnet_jax.training.batches import Data
from sasnet_jax.training.checkpoint import Checkpoints
from sasnet_jax.training.config import TrainConfig

_TRUNCATED = (0, 1, 2, 4)  # reviews kept of a history


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Settings of `evaluate`."""

    run: tuple[str, ...] = setting(
        (), help="run folder written by train; repeatable", topic="input", required=True
    )
    baselines: str = setting("", help="output of baselines, to compare with", topic="input")
    output: str = setting(
        "", help="folder for comparison.json and the ensembles' predictions", topic="output"
    )
    truncate_histories: bool = setting(
        False, help="also predict from each user's first 0, 1, 2 and 4 reviews", topic="protocol"
    )
    seed: int = setting(0, help="of the bootstrap over users", topic="protocol")

    def __post_init__(self):
        """Refuses what cannot be meant."""
        if self.seed < 0:
            raise UserError(f"--seed={self.seed} must not be negative")
        if len({Path(name).resolve() for name in self.run}) < len(self.run):
            raise UserError("--run: a run is named twice")


def run(config: EvaluateConfig) -> None:
    """Writes predictions.parquet and evaluation.json into each run; compares and prints."""
    output = Path(config.output)
    foreign = output.is_file() or any(output.glob("[!.]*"))
    if config.output and foreign and not (output / "comparison.json").exists():
        raise UserError(f"--output={output} holds other files: choose a new folder")
    descriptions = {name: _finished(Path(name)) for name in config.run}
    about = _same(descriptions)
    if config.truncate_histories and about["target_review"] == "include":
        raise UserError("--truncate_histories: the runs have the target among their histories")
    made = _baselines(Path(config.baselines), about) if config.baselines else {}
    found = {}
    for name in config.run:
        found[name] = evaluate(Path(name), config.truncate_histories)
        print(f"written: {name}/evaluation.json, {name}/predictions.parquet")
    corpus = read_corpus(Path(descriptions[config.run[0]]["config"]["corpus"]))
    groups = comparison.groups_of(descriptions)
    runs = {name: predictions.read(Path(name) / "predictions.parquet", corpus) for name in found}
    folder = Path(config.baselines) / "predictions"
    baselines = {
        one: predictions.read(folder / f"{name}.parquet", corpus) for name, one in made.items()
    }
    compared = comparison.compare(corpus, groups, runs, baselines, config.seed) | about
    models = compared["models"]
    order = [*made, *config.run, *(name for name in models if name not in {*made, *config.run})]
    shown = {name: models[name] for name in order}
    print(predictions.table(shown, about["target_review"]))
    print(predictions.history_table(shown))
    for name in config.run:
        print(f"{name}\n{predictions.confusion(models[name]['test']['confusion'])}")
        if config.truncate_histories:
            print(predictions.truncated_table(found[name]["truncated_histories"]))
    if spread := comparison.spread_table(compared):
        print(spread)
    if made:
        print(comparison.table(compared))
    if config.output:
        _write(output, compared, corpus, groups, runs)


def evaluate(folder: Path, truncate_histories: bool = False) -> dict[str, Any]:
    """Predicts validation and test with the best parameters; returns evaluation.json."""
    config, corpus, data = run_folder.open_run(folder)
    rows = np.concatenate([corpus.rows(split) for split in predictions.EVALUATED])
    remedy = f"evaluate {folder} on a device like the one that trained it"
    with devices.enough_memory(data.tables, remedy):
        predictor = _Predictor(folder, config, data)
        probability = predictor(rows)
        predictions.write(folder / "predictions.parquet", corpus, rows, probability)
        history = predictions.history_lengths(corpus)
        found = predictions.summarize(corpus, rows, probability, history)
        found |= {"target_review": config.target_review, "corpus_sha256": corpus.sha256}
        if truncate_histories:
            found["truncated_histories"] = _truncated(folder, corpus, data, predictor)
    files.write_json(folder / "evaluation.json", found)
    return found


class _Predictor:
    """The best parameters of a run, compiled once."""

    def __init__(self, folder: Path, config: TrainConfig, data: Data):
        self.config, self.mesh = config, devices.mesh_of_all()
        self.functions = step.build(config, self.mesh, data.embedding_dim, total_steps=1)
        checkpoints = Checkpoints(folder, read_only=True)
        params = checkpoints.restore_best(jax.device_get(self.functions.init().params))
        checkpoints.close()
        self.params = devices.place(self.mesh, params)
        self.data = loop.on_devices(config, self.mesh, data)

    def __call__(self, rows: Int32[np.ndarray, "n"], **changed: Any) -> Float[np.ndarray, "n c"]:
        """Probabilities, with some of the data changed."""
        data = self.data._replace(**devices.place(self.mesh, changed))
        return loop.predict(self.functions, self.mesh, self.params, data, rows)


def _truncated(
    folder: Path, corpus: Corpus, data: Data, predict: _Predictor
) -> dict[str, dict[str, Any]]:
    """Metrics of the test reviews, by how much of the users' histories is seen.

    Of all of them, and of those whose users have histories long enough to be cut every time.
    """
    rows = corpus.rows("test")
    label = np.asarray(data.label)[rows]
    long = np.asarray(data.contexts.user.size)[rows] >= max(_TRUNCATED)
    found = {}
    for kept in (*_TRUNCATED, None):
        contexts = data.contexts
        if kept is not None:
            contexts = interactions.truncate_histories(contexts, kept)
        changed: dict[str, Any] = {"contexts": contexts}
        if data.counts is not None:
            classes = data.counts.shape[2]
            counts = frequencies.context_counts(contexts, np.asarray(data.label), classes)
            changed["counts"] = counts
        probability = predict(rows, **changed)
        name = "all" if kept is None else str(kept)
        predictions.write(folder / "truncated" / f"{name}.parquet", corpus, rows, probability)
        found[name] = {
            "every_user": metrics.brief(label, probability),
            "long_histories": metrics.brief(label[long], probability[long]),
        }
    return found


def _finished(run: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
      UserError: it is absent, or its training is not at its end.
    """
    description = run_folder.read_description(run)
    config = run_folder.config_of(description)
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    last = json.loads(lines[-1]) if lines else {"epoch": 0, "best_epoch": 0}
    if last["epoch"] < config.epochs and last["epoch"] - last["best_epoch"] < config.patience:
        raise UserError(
            f"run {run} is unfinished, after {last['epoch']} of at most {config.epochs} epochs: "
            "run train again"
        )
    return description


def _same(descriptions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What all runs have in common, so that they can be compared.

    Raises:
      UserError: they have not.
    """
    keys = {name: (one["corpus_sha256"], one["config"]) for name, one in descriptions.items()}
    about = [
        {"corpus_sha256": sha256, **{k: config[k] for k in ("target_review", "classes")}}
        for sha256, config in keys.values()
    ]
    for name, one in zip(descriptions, about, strict=True):
        for key, value in one.items():
            if value != about[0][key]:
                raise UserError(
                    f"run {name} has another {key} than run {next(iter(descriptions))}: "
                    "evaluate them apart"
                )
    return about[0]


def _baselines(folder: Path, about: dict[str, Any]) -> dict[str, Baseline]:
    """The baselines of the same protocol as the runs, by name."""
    path = folder / "baselines.json"
    found = files.read_json(path, "python -m sasnet_jax.baselines", ("models",))
    baselines = registry.read(path, found["models"])
    for key, value in (about | {"subset": 0}).items():
        if found.get(key) != value:
            raise UserError(f"{path} has another {key} than the run: they cannot be compared")
    return baselines


def _write(
    output: Path,
    compared: dict[str, Any],
    corpus: Corpus,
    groups: list[comparison.Group],
    runs: dict[str, predictions.Predictions],
) -> None:
    """comparison.json, and the ensembles' predictions."""
    output.mkdir(parents=True, exist_ok=True)
    for group in groups:
        if len(group.runs) > 1:
            one = comparison.ensemble(group, runs)
            file = output / "predictions" / f"{group.name.replace('/', '-')}.parquet"
            predictions.write(file, corpus, *one)
    files.write_json(output / "comparison.json", compared)
    print(f"written: {output}/comparison.json")


if __name__ == "__main__":
    compilation.set_up()
    cli.main(EvaluateConfig, run, "Trained runs -> metrics, predictions, comparison.")
