"""Small corpora and stores for every test; shape checks on every call of both packages."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One cache of compiled programs for this session and the commands that it starts.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sasnet-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from jaxtyping import install_import_hook

install_import_hook(["sasnet_jax", "embed_torch"], "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import pytest  # noqa: E402

from sasnet_jax import files  # noqa: E402
from sasnet_jax.corpus import contexts  # noqa: E402
from sasnet_jax.corpus.corpus import Corpus, read_corpus  # noqa: E402
from sasnet_jax.corpus.store import FORMAT_VERSION  # noqa: E402
from sasnet_jax.model import inputs  # noqa: E402
from sasnet_jax.model.config import TrainConfig  # noqa: E402
from sasnet_jax.model.draws import Data  # noqa: E402
from sasnet_jax.prepare import command as prepare  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent

# Settings of `train` that take seconds.
SMALL = {
    "set_size": 3,
    "eval_sets": 2,
    "width": 16,
    "depth": 1,
    "feed_forward": 16,
    "batch_size": 64,
    "learning_rate": 1e-3,
}


def write_store(folder: Path, corpus: Corpus, table: np.ndarray) -> Path:
    """A complete store of `corpus` holding `table`."""
    folder.mkdir(parents=True)
    np.save(folder / "mean.npy", table)
    manifest = {
        "format_version": FORMAT_VERSION,
        "encoder": "test",
        "weights_sha256": "0" * 64,
        "tokenizer_sha256": "0" * 64,
        "instruction": None,
        "normalize": False,
        "poolings": ["mean"],
        "default_pooling": "mean",
        "dim": table.shape[1],
        "dtype": str(table.dtype),
        "texts_sha256": corpus.texts_sha256,
    }
    files.write_json(folder / "manifest.json", manifest)
    return folder


def edit_json(path: Path, **changes) -> dict:
    """Changes keys of a JSON file as an earlier version would have written it: no checksum."""
    values = json.loads(path.read_text()) | changes
    values.pop("sha256", None)
    path.write_text(json.dumps(values))
    return values


def edit_reviews(corpus: Path, **columns) -> Path:
    """Changes columns of a corpus, as an earlier version would have written it: no hashes."""
    path = corpus / "reviews.parquet"
    table = pl.read_parquet(path).with_columns(**columns)
    table.write_parquet(path)
    texts = files.texts_sha256(table["text"])
    edit_json(corpus / "corpus.json", texts_sha256=texts, columns_sha256=None, files_sha256={})
    return corpus


def run_command(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    """Runs `python -m ...` as a user would, and returns what it printed."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=options.pop("cwd", ROOT),
        **options,
    )


def assert_one_line_mistake(result: subprocess.CompletedProcess, *mentions: str) -> None:
    """Exit status 2, one line on stderr that mentions what is wrong, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for mention in mentions:
        assert mention in lines[0]


@dataclasses.dataclass(frozen=True)
class World:
    """A prepared corpus and a store of random embeddings that know a little of the stars."""

    corpus_folder: Path
    store_folder: Path

    @property
    def corpus(self) -> Corpus:
        return read_corpus(self.corpus_folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    prepare.run(prepare.PrepareConfig(synthetic=900, output=str(folder / "corpus")))
    corpus = read_corpus(folder / "corpus")
    rng = np.random.default_rng(0)
    table = rng.normal(size=(corpus.user.size, 16)) + corpus.stars[:, None]
    write_store(folder / "store", corpus, table.astype(np.float16))
    return World(folder / "corpus", folder / "store")


def load_data(config: TrainConfig) -> tuple[Corpus, Data]:
    """What a new run of these settings reads."""
    corpus, stores = inputs.open_inputs(config)
    transform = inputs.fit_transform(config, corpus, stores)
    return corpus, inputs.build_data(config, corpus, stores, transform)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The sides of a corpus whose interaction files were opened, each time that they were."""
    sides: list[str] = []
    read = contexts.read_grouped

    def counted(corpus, side):
        sides.append(side)
        return read(corpus, side)

    monkeypatch.setattr(contexts, "read_grouped", counted)
    return sides


def reviews_frame(rows: list[tuple[str, str, float, str | None]]) -> pl.DataFrame:
    """Raw reviews from (user, business, stars, date); the text tells the row."""
    return pl.DataFrame(
        {
            "review_id": [f"r{i}" for i in range(len(rows))],
            "user_id": [row[0] for row in rows],
            "business_id": [row[1] for row in rows],
            "stars": [row[2] for row in rows],
            "date": [row[3] for row in rows],
            "text": [f"text {i}" for i in range(len(rows))],
        },
        schema_overrides={"stars": pl.Float32, "date": pl.String},
    ).with_columns(pl.col("date").str.to_datetime(time_unit="us"))
