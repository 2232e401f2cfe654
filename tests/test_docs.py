"""README.md and docs/: the Python that they show runs, and docs/formats.md lists every key."""

import contextlib
import io
import re

import pytest
from conftest import ROOT, World
from written_runs import write_run

from embed_torch import embed
from embed_torch.config import EmbedConfig
from sasnet_jax.baselines.results import BaselineResult, Baselines
from sasnet_jax.corpus.corpus import CorpusRecord
from sasnet_jax.crossvalidate.command import FoldsRecord
from sasnet_jax.crossvalidate.results import Crossvalidation, Model, Score, Slice
from sasnet_jax.embedding_quality.quality_tables import EmbeddingQuality
from sasnet_jax.evaluate.results import Comparison
from sasnet_jax.files import Record
from sasnet_jax.leakage import command as leakage
from sasnet_jax.manifest import Manifest
from sasnet_jax.model.records import Epoch, Progress, RunRecord
from sasnet_jax.prepare import command as prepare
from sasnet_jax.scores.metrics import Scores
from sasnet_jax.scores.paired import Difference
from sasnet_jax.scores.predictions import Evaluation
from sasnet_jax.synthetic.world import Reached, Truth

_SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if _SNIPPET.search(path.read_text())
]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folders that scripts/quickstart.sh writes, but small."""
    folder = tmp_path_factory.mktemp("docs")
    work = folder / "work" / "quickstart"
    prepare.run(prepare.PrepareConfig(synthetic=900, output=str(work / "corpus")))
    store = work / "embeddings" / "words"
    embed.run(EmbedConfig(corpus=str(work / "corpus"), output=str(store), model="words"))
    for name, seed in (("sasnet", 0), ("sasnet-1", 1)):
        settings = {"seed": seed, "discriminants": 4, "match": True}
        write_run(World(work / "corpus", store), work / "runs" / name, **settings)
    return folder


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_snippet_runs(document, quickstart, monkeypatch):
    """Runs the snippets of a document one after the other, as a reader would type them."""
    monkeypatch.chdir(quickstart)
    printed = io.StringIO()
    names: dict = {}
    with contextlib.redirect_stdout(printed):
        for number, snippet in enumerate(_SNIPPET.findall(document.read_text())):
            exec(compile(snippet, f"{document.name}, snippet {number}", "exec"), names)
    assert names


def test_the_readme_and_the_library_page_have_snippets():
    assert {"README.md", "library.md"} <= {path.name for path in DOCUMENTS}


STRUCTS = {
    "`corpus.json`": CorpusRecord,
    "`manifest.json`": Manifest,
    "`truth.json`": Truth,
    "an entry in `truth.json`": Reached,
    "`config.json`": RunRecord,
    "a line of `metrics.jsonl`": Epoch,
    "a checkpoint's `progress`": Progress,
    "`evaluation.json`": Evaluation,
    "the scores of a split": Scores,
    "`baselines.json`": Baselines,
    "a model in `baselines.json`": BaselineResult,
    "`comparison.json`": Comparison,
    "a difference": Difference,
    "`folds.json`": FoldsRecord,
    "`crossvalidation.json`": Crossvalidation,
    "a model in `crossvalidation.json`": Model,
    "a slice": Slice,
    "a score of a slice": Score,
    "`leakage.json`": leakage.Leakage,
    "a row of `accuracy`": leakage.Row,
    "`embedding_quality.json`": EmbeddingQuality,
}


def _tables() -> dict[str, list[str]]:
    """The keys that docs/formats.md lists, by the heading of their table."""
    text = (ROOT / "docs" / "formats.md").read_text()
    tables = re.findall(r"^\| key of (.*?) \|.*\|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return {
        title: [
            key for row in rows.splitlines() for key in re.findall("`(.*?)`", row.split("|")[1])
        ]
        for title, rows in tables
    }


def test_the_tables_of_keys_are_those_of_the_structs():
    assert set(_tables()) == set(STRUCTS)


@pytest.mark.parametrize("title", STRUCTS)
def test_a_table_of_keys_lists_every_field_once(title):
    """`format_version` and `sha256`, which every record has, are listed once for all."""
    fields = {*STRUCTS[title].__struct_fields__} - {*Record.__struct_fields__}
    assert sorted(_tables()[title]) == sorted(fields)
