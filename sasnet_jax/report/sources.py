"""Opens everything a report is made from, and refuses what does not belong to the corpus.

In: folders written by the other commands (docs/formats.md). Out: `Sources`, whose parts may be
absent; keys that an older version did not write are absent too.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sasnet_jax import files
from sasnet_jax.baselines import registry
from sasnet_jax.baselines.registry import Baseline
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus, read_corpus
from sasnet_jax.corpus.store import Store, open_store
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions

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
        tuple(open_store(Path(name), opened) for name in stores),
        tuple(_run(name, opened) for name in runs),
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


def _run(folder: str, corpus: Corpus) -> Run:
    run = Run(folder)
    _refuse_foreign(run.folder / "config.json", run.description, corpus)
    if run.evaluation and (run.folder / "predictions.parquet").exists():
        predictions.read(run.folder / "predictions.parquet", corpus)  # refuses another split's
    return run


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
