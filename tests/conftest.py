"""Makes small corpora and stores for every test; checks shapes in every call of both packages."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's old, plain way to compile takes a fifth of the time; the programs run slower.
# .ci/run empties XLA_FLAGS, and so tests what XLA compiles for users.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# Keeps compiled programs for later tests, of both workers and the commands that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "compiled")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(1 << 30)  # a limit, so that JAX locks the cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["sasnet_jax", "embed_torch"], "beartype.beartype")

import jax  # noqa: E402
import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from sasnet_jax import files  # noqa: E402
from sasnet_jax.corpus import contexts  # noqa: E402
from sasnet_jax.corpus.corpus import Corpus, read_corpus  # noqa: E402
from sasnet_jax.manifest import Manifest, read_manifest, write_manifest  # noqa: E402
from sasnet_jax.model import compilation, inputs, step  # noqa: E402
from sasnet_jax.model.config import TrainConfig  # noqa: E402
from sasnet_jax.model.draws import Data  # noqa: E402
from sasnet_jax.prepare import command as prepare  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
compilation.set_up()  # as a command does, so that the two share programs

_build = functools.cache(step.build)


def _build_once(config: TrainConfig, mesh, embedding_dim: int, total_steps: int) -> step.Functions:
    """The functions of an earlier run with the same programs: to trace them takes the most time."""
    any_run = {"corpus": "any", "store": ("any",), "output": "any", "epochs": 1, "patience": 1}
    any_run |= {"keep": 1, "checkpoint_seconds": 0.0, "target_review": "exclude"}
    if config.schedule == "constant":
        total_steps = 0
    return _build(dataclasses.replace(config, **any_run), mesh, embedding_dim, total_steps)


step.build = _build_once

# A deadline so long that, even on a busy machine, only a process that hangs reaches it.
PATIENCE_SECONDS = 600

# Settings with which `train` takes seconds.
SMALL = {
    "set_size": 3,
    "eval_sets": 2,
    "width": 16,
    "depth": 1,
    "feed_forward": 16,
    "batch_size": 64,
    "learning_rate": 1e-3,
}
# The network that compiles fastest, for tests that do not depend on the network.
TINY = SMALL | {"width": 8, "heads": 2, "feed_forward": 8, "encoder": False}


def write_store(folder: Path, corpus: Corpus, table: np.ndarray) -> Path:
    """Writes a complete store of `corpus` holding `table`."""
    folder.mkdir(parents=True)
    np.save(folder / "mean.npy", table)
    manifest = Manifest(
        encoder="test",
        weights_sha256="0" * 64,
        tokenizer_sha256="0" * 64,
        template_sha256=None,
        instruction=None,
        instruction_sha256=None,
        gptq=None,
        poolings=["mean"],
        default_pooling="mean",
        pool_over="all",
        normalize=False,
        compute_dtype="float32",
        dtype=str(table.dtype),
        dim=table.shape[1],
        truncate="head",
        max_tokens=256,
        texts_sha256=corpus.texts_sha256,
        rows=len(table),
        reused=0,
        truncated=0,
        versions={},
    )
    write_manifest(folder, manifest)
    return folder


def change_store(folder: Path, **changed) -> Path:
    """Changes a store's manifest, and hashes its arrays as they are now."""
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), **changed))
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


def run_command(module: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs `python -m module ...` in this process; returns its status and what it prints."""
    printed, mistakes = io.StringIO(), io.StringIO()
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv, returncode = [module, *map(str, arguments)], 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(mistakes):
            runpy.run_module(module, run_name="__main__")
    except SystemExit as stop:
        returncode = stop.code or 0
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(
        [module, *arguments], returncode, printed.getvalue(), mistakes.getvalue()
    )


def start_process(*arguments: str | Path, **options) -> subprocess.Popen:
    """Starts Python as a user would, with both streams in one pipe, of text."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def assert_one_line_mistake(result: subprocess.CompletedProcess, *mentions: str) -> None:
    """Asserts exit status 2, one line on stderr that mentions what is wrong, and no traceback."""
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


def shared_folder(tmp_path_factory, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder filled once per test run, by the worker that needs it first."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".filled").exists():
            fill(folder)
            folder.with_suffix(".filled").touch()
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    def fill(folder: Path) -> None:
        prepare.run(prepare.PrepareConfig(synthetic=900, output=str(folder / "corpus")))
        corpus = read_corpus(folder / "corpus")
        rng = np.random.default_rng(0)
        table = rng.normal(size=(corpus.user.size, 16)) + corpus.stars[:, None]
        write_store(folder / "store", corpus, table.astype(np.float16))

    folder = shared_folder(tmp_path_factory, "world", fill)
    return World(folder / "corpus", folder / "store")


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file grows beyond so many bytes in the block, as if the disk were full.

    Python would keep truncated bytecode of what it imports there.
    """
    limits, writes_none = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = writes_none


def load_data(config: TrainConfig) -> tuple[Corpus, Data]:
    """What a new run of these settings reads."""
    corpus, stores = inputs.open_inputs(config)
    transform = inputs.fit_transform(config, corpus, stores)
    models = inputs.fit_simple_models(config, corpus, stores, transform)
    return corpus, inputs.build_data(config, corpus, stores, transform, models)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The sides of a corpus, one entry for each time that their interaction file is opened."""
    sides: list[str] = []
    read = contexts.read_grouped

    def counted(corpus, side):
        sides.append(side)
        return read(corpus, side)

    monkeypatch.setattr(contexts, "read_grouped", counted)
    return sides


def reviews_frame(rows: list[tuple[str, str, float, str | None]]) -> pl.DataFrame:
    """Raw reviews from (user, business, stars, date); each text names its row."""
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
