"""Opens all inputs of a report, and refuses what does not belong to the corpus.

In: folders written by the other commands (docs/formats.md). Out: `Sources`, whose parts may be
absent; keys that an older version did not write are absent too.
"""

import dataclasses
from pathlib import Path
from typing import Any, Generic, TypeVar

from sasnet_jax import files
from sasnet_jax.baselines.results import Baselines
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus, CorpusRecord, read_corpus
from sasnet_jax.corpus.store import Store, open_store
from sasnet_jax.embedding_quality.quality_tables import EmbeddingQuality
from sasnet_jax.evaluate.results import Comparison
from sasnet_jax.leakage.command import Leakage
from sasnet_jax.model.run import Run

RecordT = TypeVar("RecordT", bound=files.Record)


@dataclasses.dataclass(frozen=True, slots=True)
class Output(Generic[RecordT]):
    """The output folder of another command, and its record."""

    folder: Path
    record: RecordT

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name


@dataclasses.dataclass(frozen=True, slots=True)
class Sources:
    """All that a report shows."""

    corpus: Corpus
    record: CorpusRecord
    stores: tuple[Store, ...]
    runs: tuple[Run, ...]
    baselines: tuple[Output[Baselines], ...]
    comparisons: tuple[Output[Comparison], ...]
    quality: tuple[Output[EmbeddingQuality], ...]
    leakage: tuple[Output[Leakage], ...]


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
        files.read_record(corpus / "corpus.json", CorpusRecord),
        tuple(open_store(Path(name), opened) for name in stores),
        tuple(_run(name, opened) for name in runs),
        _outputs(baselines, "baselines.json", Baselines, opened),
        _outputs(comparisons, "comparison.json", Comparison, opened),
        _outputs(quality, "embedding_quality.json", EmbeddingQuality, opened),
        _outputs(leakage, "leakage.json", Leakage, opened),
    )


def _run(folder: str, corpus: Corpus) -> Run:
    run = Run(folder)
    _refuse_foreign(run.folder / "config.json", run.corpus_sha256, corpus)
    if run.evaluation:
        run.predictions(corpus, run.evaluation)  # refuses those of another run
    return run


def _outputs(
    folders: tuple[str, ...], name: str, kind: type[RecordT], corpus: Corpus
) -> tuple[Output[RecordT], ...]:
    outputs = []
    for folder in folders:
        path = Path(folder) / name
        record: Any = files.read_record(path, kind)
        _refuse_foreign(path, record.corpus_sha256, corpus)
        outputs.append(Output(Path(folder), record))
    return tuple(outputs)


def _refuse_foreign(path: Path, corpus_sha256: str, corpus: Corpus) -> None:
    if corpus_sha256 != corpus.sha256:
        raise UserError(
            f"{path} belongs to another corpus or split than {corpus.folder}: write it again with "
            f"--corpus={corpus.folder}, or leave it out"
        )
