"""What README.md and docs/ show as Python runs as it stands, beside a small quickstart."""

import contextlib
import io
import re

import pytest
from conftest import ROOT, World
from written_runs import write_run

from embed_torch import embed
from embed_torch.config import EmbedConfig
from sasnet_jax.prepare import command as prepare

_SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if _SNIPPET.search(path.read_text())
]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The folders of scripts/quickstart.sh, small."""
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
    """Those of one document one after the other, as a reader would type them."""
    monkeypatch.chdir(quickstart)
    printed = io.StringIO()
    names: dict = {}
    with contextlib.redirect_stdout(printed):
        for number, snippet in enumerate(_SNIPPET.findall(document.read_text())):
            exec(compile(snippet, f"{document.name}, snippet {number}", "exec"), names)
    assert names


def test_the_readme_and_the_library_page_have_snippets():
    assert {"README.md", "library.md"} <= {path.name for path in DOCUMENTS}
