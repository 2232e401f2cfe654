"""Opens everything a report is made from, and refuses what does not belong to the corpus.

In: folders written by the other commands (docs/formats.md). Out: `Sources`, whose parts may be
absent; keys that an older version did not write are absent too.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.data import embeddings
from sasnet_jax.data.corpus import Corpus, read_corpus
from sasnet_jax.data.embeddings import Store
from sasnet_jax.evaluation import predictions, registry
from sasnet_jax.evaluation.registry import Baseline
from sasnet_jax.training import run_folder
from sasnet_jax.training.config import TrainConfig

_SAME_LOSS = 1e-3  # relative; devices and batches round otherwise
# KIND.json -> the command that writes it, and the keys that every version has.
_OUTPUTS = {
    "baselines": ("baselines", ("models", "target_review")),
    "comparison": ("evaluate --output", ("models", "comparisons", "groups", "target_review")),
    "embedding_quality": ("embedding_quality", ("methods", "compared")),
    "leakage": ("leakage", ("accuracy", "readings", "sentence")),
}
# KIND.json -> what it says of each baseline, by name.
_BASELINES_IN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "baselines": lambda found: found["models"],
    "comparison": lambda found: {
        name: model for name, model in found["models"].items() if model.get("kind") == "baseline"
    },
    "embedding_quality": lambda found: {},
    "leakage": lambda found: {
        row["model"]: row for row in found["accuracy"] if "validation_include" in row
    },
}


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run of `train`: finished or not, evaluated or not."""

    folder: Path
    description: dict[str, Any]  # config.json
    config: TrainConfig
    curve: list[dict[str, Any]]  # metrics.jsonl
    evaluation: dict[str, Any] | None  # of the best epoch; None where it is of an earlier one
    state: str  # what is still to be done; empty where nothing is

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """The folder of another command, and the JSON that describes it."""

    folder: Path
    found: dict[str, Any]
    baselines: dict[str, Baseline]  # those that it has results of, by name

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """All that a report shows."""

    corpus: Corpus
    description: dict[str, Any]  # corpus.json
    stores: tuple[Store, ...]
    runs: tuple[Run, ...]
    baselines: tuple[Output, ...]  # baselines.json
    comparisons: tuple[Output, ...]  # comparison.json
    quality: tuple[Output, ...]  # embedding_quality.json
    leakage: tuple[Output, ...]  # leakage.json


def open_sources(
    corpus: Path,
    *,
    stores: tuple[str, ...],
    runs: tuple[str, ...],
    baselines: tuple[str, ...],
    comparisons: tuple[str, ...],
    quality: tuple[str, ...],
    leakage: tuple[str, ...],
) -> Sources:
    """Opens the folders.

    Raises:
      UserError: one is absent, damaged, or of another corpus or split; the message names it.
    """
    opened = read_corpus(corpus)
    return Sources(
        opened,
        files.read_json(corpus / "corpus.json", "python -m sasnet_jax.prepare"),
        tuple(embeddings.open_store(Path(name), opened) for name in stores),
        tuple(_run(Path(name), opened) for name in runs),
        *(
            tuple(_output(Path(name), kind, opened) for name in folders)
            for kind, folders in (
                ("baselines", baselines),
                ("comparison", comparisons),
                ("embedding_quality", quality),
                ("leakage", leakage),
            )
        ),
    )


def _run(folder: Path, corpus: Corpus) -> Run:
    description = run_folder.read_description(folder)
    _refuse_foreign(folder / "config.json", description, corpus)
    try:
        config = run_folder.config_of(description)
    except UserError as error:
        raise UserError(f"run {folder}: {error}") from None
    curve = run_folder.read_metrics(folder)
    last = curve[-1] if curve else {"epoch": 0, "best_epoch": 0}
    states = []
    if not config.ends(last["epoch"], last["best_epoch"]):
        states.append(f"unfinished: {last['epoch']:,} of at most {config.epochs:,} epochs")
    evaluation = _evaluation(folder, config, corpus)
    if evaluation is None:
        states.append("not yet evaluated")
    elif not curve or not _is_of_best_epoch(evaluation, curve):
        evaluation = None
        states.append("went on after its evaluation: evaluate it again")
    return Run(folder, description, config, curve, evaluation, ", ".join(states))


def _evaluation(folder: Path, config: TrainConfig, corpus: Corpus) -> dict[str, Any] | None:
    path = folder / "evaluation.json"
    if not path.exists():
        return None
    keys = (*predictions.EVALUATED, "target_review")
    found = files.read_json(path, "python -m sasnet_jax.evaluate", keys)
    _refuse_foreign(path, found, corpus)
    if found["target_review"] != config.target_review:
        raise UserError(f"{path} was made with another target_review than its run")
    if (folder / "predictions.parquet").exists():
        predictions.read(folder / "predictions.parquet", corpus)  # refuses another split's
    return found


def _is_of_best_epoch(evaluation: dict[str, Any], curve: list[dict[str, Any]]) -> bool:
    best = curve[curve[-1]["best_epoch"] - 1]["validation_log_loss"]
    return math.isclose(evaluation["validation"]["log_loss"], best, rel_tol=_SAME_LOSS)


def _output(folder: Path, kind: str, corpus: Corpus) -> Output:
    made_by, keys = _OUTPUTS[kind]
    path = folder / f"{kind}.json"
    found = files.read_json(path, f"python -m sasnet_jax.{made_by}", (*keys, "corpus_sha256"))
    _refuse_foreign(path, found, corpus)
    models = _BASELINES_IN[kind](found)
    return Output(folder, found, registry.read(path, models, f"python -m sasnet_jax.{made_by}"))


def _refuse_foreign(path: Path, found: dict[str, Any], corpus: Corpus) -> None:
    if found.get("corpus_sha256") != corpus.sha256:
        raise UserError(
            f"{path} belongs to another corpus or split than {corpus.folder}: make it again with "
            f"--corpus={corpus.folder}, or leave it out"
        )
