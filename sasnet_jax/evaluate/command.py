"""`python -m sasnet_jax.evaluate`: runs on validation and test, beside baselines."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from sasnet_jax import cli, files
from sasnet_jax.baselines import registry
from sasnet_jax.baselines.registry import Baseline
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import truncate_histories
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.counts import context_counts
from sasnet_jax.evaluate import comparison
from sasnet_jax.model import devices, inputs, network, step
from sasnet_jax.model.draws import Data
from sasnet_jax.model.run import Run
from sasnet_jax.scores import metrics, predictions

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
    seed: int = setting(
        0, help="of the bootstrap over users", topic="protocol", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if len({Path(name).resolve() for name in self.run}) < len(self.run):
            raise UserError("--run: a run is named twice")


def run(config: EvaluateConfig) -> None:
    """Writes predictions.parquet and evaluation.json into each run; compares and prints."""
    output = Path(config.output)
    foreign = output.is_file() or any(output.glob("[!.]*"))
    if config.output and foreign and not (output / "comparison.json").exists():
        raise UserError(f"--output={output} holds other files: choose a new folder")
    opened = {name: _finished(name) for name in config.run}
    about = _same(opened)
    if config.truncate_histories and about["target_review"] == "include":
        raise UserError("--truncate_histories: the runs have the target among their histories")
    made = _baselines(Path(config.baselines), about) if config.baselines else {}
    groups = comparison.groups_of({name: run.description for name, run in opened.items()})
    comparison.refuse_shared_names(groups, made.values())
    found = {}
    for name in config.run:
        found[name] = evaluate(opened[name], config.truncate_histories)
        print(f"written: {name}/evaluation.json, {name}/predictions.parquet")
    corpus = read_corpus(Path(opened[config.run[0]].config.corpus))
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


def evaluate(run: Run, truncate_histories: bool = False) -> dict[str, Any]:
    """Predicts validation and test with the best parameters; returns evaluation.json."""
    folder, config = run.folder, run.config
    corpus, stores = run.open_inputs()
    data = inputs.build_data(config, corpus, stores, run.transform())
    rows = np.concatenate([corpus.rows(split) for split in predictions.EVALUATED])
    remedy = f"evaluate {folder} on a device like the one that trained it"
    with devices.enough_memory(data.tables, remedy):
        predict = _RowPredictor(run, data)
        probability = predict(rows)
        predictions.write(folder / "predictions.parquet", corpus, rows, probability)
        history = predictions.history_lengths(corpus)
        found = predictions.summarize(corpus, rows, probability, history)
        found |= {"target_review": config.target_review, "corpus_sha256": corpus.sha256}
        if truncate_histories:
            found["truncated_histories"] = _truncated(folder, corpus, data, predict)
    files.write_json(folder / "evaluation.json", found)
    return found


class _RowPredictor:
    """The best parameters of a run over the reviews of its corpus, compiled once."""

    def __init__(self, run: Run, data: Data):
        self.mesh = devices.mesh_of_all()
        self.functions = step.build(run.config, self.mesh, data.embedding_dim, total_steps=1)
        _, like = network.definition(run.config, data.embedding_dim)
        self.params = devices.place(self.mesh, run.best_params(like))
        self.data = inputs.on_devices(run.config, self.mesh, data)

    def __call__(self, rows: Int32[np.ndarray, "n"], **changed: Any) -> Float[np.ndarray, "n c"]:
        """Probabilities, with some of the data changed."""
        data = self.data._replace(**devices.place(self.mesh, changed))
        return step.predict(self.functions, self.mesh, self.params, data, rows)


def _truncated(
    folder: Path, corpus: Corpus, data: Data, predict: _RowPredictor
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
            contexts = truncate_histories(contexts, kept)
        changed: dict[str, Any] = {"contexts": contexts}
        if data.counts is not None:
            classes = data.counts.shape[2]
            counts = context_counts(contexts, np.asarray(data.label), classes)
            changed["counts"] = counts
        probability = predict(rows, **changed)
        name = "all" if kept is None else str(kept)
        predictions.write(folder / "truncated" / f"{name}.parquet", corpus, rows, probability)
        found[name] = {
            "every_user": metrics.brief(label, probability),
            "long_histories": metrics.brief(label[long], probability[long]),
        }
    return found


def _finished(name: str) -> Run:
    """Opens a run; refuses, by a UserError, one whose training is not at its end."""
    run = Run(name)
    if not run.finished:
        raise UserError(
            f"run {run} is unfinished, after {run.epochs} of at most {run.config.epochs} epochs: "
            "run train again"
        )
    return run


def _same(runs: dict[str, Run]) -> dict[str, Any]:
    """What all runs have in common, so that they can be compared.

    Raises:
      UserError: they have not.
    """
    about = [
        {
            "corpus_sha256": run.corpus_sha256,
            "target_review": run.config.target_review,
            "classes": run.config.classes,
        }
        for run in runs.values()
    ]
    for name, one in zip(runs, about, strict=True):
        for key, value in one.items():
            if value != about[0][key]:
                raise UserError(
                    f"run {name} has another {key} than run {next(iter(runs))}: evaluate them apart"
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
