"""`python -m sasnet_jax.evaluate`: evaluates runs on validation and test, beside baselines."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float, Int32

from sasnet_jax import cli, files
from sasnet_jax.baselines import results
from sasnet_jax.baselines.results import Baselines
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import TargetReview, truncate_histories
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.counts import context_counts
from sasnet_jax.corpus.store import Store
from sasnet_jax.evaluate import comparison
from sasnet_jax.evaluate.results import Comparison
from sasnet_jax.model import devices, inputs, network, step
from sasnet_jax.model.draws import Data
from sasnet_jax.model.run import Run
from sasnet_jax.scores import metrics, predictions
from sasnet_jax.scores.predictions import Evaluation, Predictions, Truncated

_TRUNCATED = (0, 1, 2, 4)  # reviews kept of a history


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Settings of `evaluate`."""

    run: tuple[str, ...] = setting(
        (), help="run folder written by train; repeatable", topic="input", required=True
    )
    baselines: str = setting("", help="output folder of baselines to compare with", topic="input")
    output: str = setting(
        "", help="folder for comparison.json and the ensembles' predictions", topic="output"
    )
    truncate_histories: bool = setting(
        False, help="also predict from each user's first 0, 1, 2 and 4 reviews", topic="protocol"
    )
    seed: int = setting(
        0, help="seed of the bootstrap over users", topic="protocol", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if len({Path(name).resolve() for name in self.run}) < len(self.run):
            raise UserError("--run names a run twice: name each run once")


class _Protocol(NamedTuple):
    """What runs and baselines must have in common to be compared."""

    corpus_sha256: str
    target_review: TargetReview
    classes: int


def run(config: EvaluateConfig) -> None:
    """Writes predictions.parquet and evaluation.json into each run; compares and prints."""
    output = Path(config.output)
    if config.output:
        files.claim(output, "comparison.json")
    opened = {name: _finished(name) for name in config.run}
    asked = _same(opened)
    if config.truncate_histories and asked.target_review == "include":
        raise UserError("--truncate_histories needs runs trained with --target_review=exclude")
    baselines = _baselines(Path(config.baselines), asked) if config.baselines else None
    described = baselines.described if baselines else []
    groups = comparison.groups_of({name: run.decisive() for name, run in opened.items()})
    comparison.refuse_shared_names(groups, described)
    evaluations = {}
    for name in config.run:
        evaluations[name] = evaluate(opened[name], config.truncate_histories)
        print(f"written: {name}/evaluation.json, {name}/predictions.parquet")
    corpus = read_corpus(Path(opened[config.run[0]].config.corpus))
    runs = {
        name: opened[name].predictions(corpus, evaluation)
        for name, evaluation in evaluations.items()
    }
    predicted = {}
    if baselines:
        folder = Path(config.baselines)
        predicted = {
            baseline: results.read_predictions(folder, baselines, baseline.name, corpus)
            for baseline in described
        }
    compared = comparison.compare(corpus, groups, runs, predicted, asked.target_review, config.seed)
    models = compared.models
    first = [*(baseline.name for baseline in described), *config.run]
    shown = {name: models[name] for name in dict.fromkeys([*first, *models])}
    print(predictions.table(shown, asked.target_review))
    print(predictions.history_table(shown))
    for name, evaluation in evaluations.items():
        print(f"{name}\n{predictions.confusion(models[name].test.confusion)}")
        if evaluation.truncated_histories:
            print(predictions.truncated_table(evaluation.truncated_histories))
    if spread := comparison.spread_table(compared):
        print(spread)
    if baselines:
        print(comparison.table(compared))
    if config.output:
        _write(output, compared, corpus, groups, runs)


def evaluate(run: Run, truncate_histories: bool = False) -> Evaluation:
    """Predicts validation and test with the best parameters; writes and returns the evaluation."""
    folder, config = run.folder, run.config
    corpus, stores = run.open_inputs()
    data = inputs.build_data(config, corpus, stores, run.transform(), run.simple_models())
    rows = np.concatenate([corpus.rows(split) for split in predictions.EVALUATED])
    remedy = f"evaluate {folder} on a device like the one that trained it"
    with devices.enough_memory(data.tables, remedy):
        predict = _RowPredictor(run, data)
        probability = predict(rows)
        written = predictions.write(folder / "predictions.parquet", corpus, rows, probability)
        history = predictions.history_lengths(corpus)
        truncated = _truncated(run, corpus, stores, data, predict) if truncate_histories else None
    scores = predictions.summarize(corpus, rows, probability, history)
    evaluation = Evaluation(
        validation=scores.validation,
        test=scores.test,
        target_review=config.target_review,
        corpus_sha256=corpus.sha256,
        best_sha256=run.best_sha256,
        predictions_sha256=written,
        truncated_histories=truncated,
    )
    files.write_record(folder / "evaluation.json", evaluation)
    return evaluation


class _RowPredictor:
    """The best parameters of a run over the reviews of its corpus, compiled once."""

    def __init__(self, run: Run, data: Data):
        self.mesh = devices.mesh_of_all()
        self.functions = step.build(run.config, self.mesh, data.embedding_dim, total_steps=1)
        _, like = network.definition(run.config, data.embedding_dim)
        self.params = devices.place(self.mesh, run.best_params(like))
        self.data = inputs.on_devices(run.config, self.mesh, data)
        self.factor = network.factors(run.config.offset).index(run.factor)

    def __call__(self, rows: Int32[np.ndarray, "n"], **changed: Any) -> Float[np.ndarray, "n c"]:
        """Predicts `rows`, with some of the data changed."""
        data = self.data._replace(**devices.place(self.mesh, changed))
        every = step.predict(self.functions, self.mesh, self.params, data, rows)
        return every[:, self.factor]


def _truncated(
    run: Run, corpus: Corpus, stores: tuple[Store, ...], data: Data, predict: _RowPredictor
) -> dict[str, Truncated]:
    """Metrics of the test reviews, by how much of the users' histories is seen.

    The metrics cover all of them, and those whose users' histories are long enough to be cut.
    """
    rows = corpus.rows("test")
    label = np.asarray(data.label)[rows]
    long = np.asarray(data.contexts.user.size)[rows] >= max(_TRUNCATED)
    truncated = {}
    for kept in (*_TRUNCATED, None):
        contexts = data.contexts
        if kept is not None:
            contexts = truncate_histories(contexts, kept)
        changed: dict[str, Any] = {"contexts": contexts}
        if data.counts is not None:
            classes = data.counts.shape[2]
            counts = context_counts(contexts, np.asarray(data.label), classes)
            changed["counts"] = counts
        if kept is not None:
            models = inputs.models_for_contexts(run, corpus, stores, contexts, rows)
            said = {"crossed": models.crossed, "offset": models.logits}
            changed |= {name: array for name, array in said.items() if array is not None}
        probability = predict(rows, **changed)
        name = "all" if kept is None else str(kept)
        predictions.write(run.folder / "truncated" / f"{name}.parquet", corpus, rows, probability)
        truncated[name] = Truncated(
            every_user=metrics.brief(label, probability),
            long_histories=metrics.brief(label[long], probability[long]),
        )
    return truncated


def _finished(name: str) -> Run:
    """Opens a run; raises UserError if its training has not ended."""
    run = Run(name)
    if not run.finished:
        raise UserError(
            f"run {run} is unfinished, after {run.epochs} of at most {run.config.epochs} epochs: "
            "run python -m sasnet_jax.train again"
        )
    return run


def _same(runs: dict[str, Run]) -> _Protocol:
    """What all runs have in common, so that they can be compared.

    Raises:
      UserError: they differ.
    """
    asked = [
        _Protocol(run.corpus_sha256, run.config.target_review, run.config.classes)
        for run in runs.values()
    ]
    for name, protocol in zip(runs, asked, strict=True):
        for key, value, first in zip(_Protocol._fields, protocol, asked[0], strict=True):
            if value != first:
                raise UserError(
                    f"runs {name} and {next(iter(runs))} differ in {key}: evaluate them separately"
                )
    return asked[0]


def _baselines(folder: Path, asked: _Protocol) -> Baselines:
    """Reads baselines, which must have the runs' protocol."""
    path = folder / results.COMPLETE
    baselines = files.read_record(path, Baselines)
    has = _Protocol(baselines.corpus_sha256, baselines.target_review, baselines.classes)
    for key, value, wanted in zip(
        (*_Protocol._fields, "subset"), (*has, baselines.subset), (*asked, 0), strict=True
    ):
        if value != wanted:
            raise UserError(f"{path} and the run differ in {key}, so they cannot be compared")
    return baselines


def _write(
    output: Path,
    compared: Comparison,
    corpus: Corpus,
    groups: list[comparison.Group],
    runs: dict[str, Predictions],
) -> None:
    """Writes the ensembles' predictions, and comparison.json with their hashes."""
    output.mkdir(parents=True, exist_ok=True)
    models = dict(compared.models)
    for group in groups:
        if len(group.runs) > 1:
            predicted = comparison.ensemble(group, runs)
            file = output / "predictions" / f"{group.name.replace('/', '-')}.parquet"
            models[group.ensemble_name] = msgspec.structs.replace(
                models[group.ensemble_name],
                predictions_sha256=predictions.write(file, corpus, *predicted),
            )
    files.write_record(output / "comparison.json", msgspec.structs.replace(compared, models=models))
    print(f"written: {output}/comparison.json")
