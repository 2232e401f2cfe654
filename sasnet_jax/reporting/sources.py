"""Opens everything a report is made from, and refuses what does not belong to the corpus.

In: folders written by the other commands (docs/formats.md). Out: `Sources`, whose parts may be
absent; keys that an older version did not write are absent too.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.data import embeddings
from sasnet_jax.data.corpus import Corpus, read_corpus
from sasnet_jax.data.embeddings import Store
from sasnet_jax.evaluation import predictions
from sasnet_jax.evaluation.predictions import Predictions
from sasnet_jax.training import run_folder

# KIND.json -> the command that writes it, and the keys that every version has.
_OUTPUTS = {
    "baselines": ("baselines", ("models", "target_review")),
    "comparison": ("evaluate --output", ("comparisons", "groups", "target_review")),
    "embedding_quality": ("embedding_quality", ("methods", "compared")),
    "leakage": ("leakage", ("accuracy", "readings", "sentence")),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run of `train`: finished or not, evaluated or not."""

    folder: Path
    description: dict[str, Any]  # config.json
    curve: list[dict[str, Any]]  # metrics.jsonl
    evaluation: dict[str, Any] | None
    predicted: Predictions | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """The flags of `train`."""
        return self.description["config"]

    @property
    def finished(self) -> bool:
        """Whether training came to its last epoch, or to the end of its patience."""
        if not self.curve:
            return False
        last = self.curve[-1]
        waited = last["epoch"] - last["best_epoch"]
        return last["epoch"] >= self.settings["epochs"] or waited >= self.settings["patience"]

    @property
    def state(self) -> str:
        """What is still to be done; empty where nothing is."""
        if not self.finished:
            done = self.curve[-1]["epoch"] if self.curve else 0
            return f"unfinished: {done:,} of at most {self.settings['epochs']:,} epochs"
        return "" if self.evaluation else "trained, not yet evaluated"


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """The folder of another command, and the JSON that describes it."""

    folder: Path
    found: dict[str, Any]

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
    run_folder.config_of(description)
    evaluation, predicted = None, None
    if (folder / "evaluation.json").exists():
        path = folder / "evaluation.json"
        made_by = "python -m sasnet_jax.evaluate"
        evaluation = files.read_json(path, made_by, ("test", "validation", "target_review"))
        _refuse_foreign(path, evaluation, corpus)
        if evaluation["target_review"] != description["config"]["target_review"]:
            raise UserError(f"{path} was made with another target_review than its run")
    if evaluation and (folder / "predictions.parquet").exists():
        predicted = predictions.read(folder / "predictions.parquet", corpus)
    return Run(folder, description, _curve(folder / "metrics.jsonl"), evaluation, predicted)


def _curve(path: Path) -> list[dict[str, Any]]:
    """The epochs so far; a line that is being written is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _output(folder: Path, kind: str, corpus: Corpus) -> Output:
    made_by, keys = _OUTPUTS[kind]
    path = folder / f"{kind}.json"
    found = files.read_json(path, f"python -m sasnet_jax.{made_by}", (*keys, "corpus_sha256"))
    _refuse_foreign(path, found, corpus)
    return Output(folder, found)


def _refuse_foreign(path: Path, found: dict[str, Any], corpus: Corpus) -> None:
    if found.get("corpus_sha256") != corpus.sha256:
        raise UserError(
            f"{path} belongs to another corpus or split than {corpus.folder}: make it again with "
            f"--corpus={corpus.folder}, or leave it out"
        )
