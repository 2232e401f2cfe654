"""Whatever is damaged after it was written is refused by what reads it: never other figures."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import World, edit_reviews
from written_runs import write_run

from sasnet_jax import files
from sasnet_jax.baselines import command as baselines
from sasnet_jax.baselines import registry, results
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.baselines.results import Baselines
from sasnet_jax.cli import UserError
from sasnet_jax.corpus import categories, contexts
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.evaluate import command as evaluate
from sasnet_jax.evaluate.command import EvaluateConfig
from sasnet_jax.evaluate.results import Comparison
from sasnet_jax.model import network
from sasnet_jax.model.run import Run
from sasnet_jax.prepare import command as prepare

# Majority, bias and an oracle: what is fitted at once.
FEW = tuple(kind for kind in registry.KINDS if "text" not in kind.sees)


@pytest.fixture(scope="session")
def whole(world, tmp_path_factory) -> Path:
    """A corpus, a run, baselines and their comparison, whole."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(world.corpus_folder, folder / "corpus")
    shutil.copytree(world.store_folder, folder / "store")
    copied = World(folder / "corpus", folder / "store")
    loss = evaluate.evaluate(write_run(copied, folder / "first")).validation.log_loss
    write_run(copied, folder / "run", losses=(loss,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "KINDS", FEW)
        paths = {"corpus": str(folder / "corpus"), "output": str(folder / "baselines")}
        baselines.run(BaselinesConfig(**paths))
    evaluate.run(
        EvaluateConfig(
            run=(str(folder / "run"),),
            baselines=str(folder / "baselines"),
            output=str(folder / "comparison"),
        )
    )
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(whole, tmp_path, dirs_exist_ok=True)


def _read_corpus(folder: Path) -> None:
    corpus = read_corpus(folder / "corpus")
    corpus.texts()
    corpus.table("users")
    categories.read_categories(corpus)
    for side in contexts.SIDES:
        contexts.read_grouped(corpus, side)


def _read_run(folder: Path) -> Run:
    run = Run(folder / "run")
    run.transform()
    assert run.evaluation is not None
    run.predictions(read_corpus(folder / "corpus"), run.evaluation)
    return run


def _read_parameters(folder: Path) -> None:
    run = _read_run(folder)
    run.best_params(network.definition(run.config, run.transform().width)[1])


def _read_baselines(folder: Path) -> None:
    made = files.read_record(folder / "baselines" / "baselines.json", Baselines)
    corpus = read_corpus(folder / "corpus")
    for name in made.models:
        results.read_predictions(folder / "baselines", made, name, corpus)


def _read_comparison(folder: Path) -> None:
    files.read_record(folder / "comparison" / "comparison.json", Comparison)


# What is read back, and by what.
READERS: dict[str, Callable[[Path], object]] = {
    "corpus/corpus.json": _read_corpus,
    "corpus/reviews.parquet": _read_corpus,
    "corpus/users.parquet": _read_corpus,
    "corpus/businesses.parquet": _read_corpus,
    "corpus/categories.parquet": _read_corpus,
    "corpus/interactions/user_rows.npy": _read_corpus,
    "corpus/interactions/user_offsets.npy": _read_corpus,
    "corpus/interactions/business_rows.npy": _read_corpus,
    "run/config.json": _read_run,
    "run/zscore.npz": _read_run,
    "run/metrics.jsonl": _read_run,
    "run/evaluation.json": _read_run,
    "run/predictions.parquet": _read_run,
    "run/checkpoints/2/progress/metadata": _read_run,
    "run/checkpoints/2/best/d": _read_parameters,  # the largest file in it
    "baselines/baselines.json": _read_baselines,
    "baselines/predictions/bias.parquet": _read_baselines,
    "comparison/comparison.json": _read_comparison,
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flipped": _flip,
    "cut to half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "a pipe": _pipe,
}


def test_what_is_whole_is_read(whole):
    for reader in set(READERS.values()):
        reader(whole)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_and_refused(copied, name, damage):
    path = copied / name
    if path.is_dir():
        path = max(path.iterdir(), key=lambda file: file.stat().st_size)
    DAMAGE[damage](path)
    place = copied / ("run/checkpoints/2" if "checkpoints" in name else name)
    named = place.parent if place.parent.name == "interactions" else place
    with pytest.raises(UserError, match=str(named)):
        READERS[name](copied)


def _edits(value, path=()):
    """Ways to edit a JSON object: at each level a key removed, a number changed."""
    for key, one in value.items():
        if isinstance(one, dict) and len(path) < 3:
            yield from _edits(one, (*path, key))
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield (*path, key), one + 1
    if value:
        yield (*path, next(iter(value))), None


RECORDS = [name for name in READERS if name.endswith(".json")]


@pytest.mark.parametrize("name", RECORDS)
def test_an_edited_record_is_refused(copied, name):
    path = copied / name
    whole = path.read_text()
    for keys, other in _edits(json.loads(whole)):
        values = inner = json.loads(whole)
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = other
        if other is None:
            del inner[keys[-1]]
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=str(path)):
            READERS[name](copied)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_without_a_checksum_is_refused_for_a_value_of_another_type(copied, name):
    """An earlier version wrote no hashes."""
    path = copied / name
    values = json.loads(path.read_text())
    del values["sha256"]
    for key in values:
        path.write_text(json.dumps(values | {key: [["another type"]]}))
        with pytest.raises(UserError, match=str(path)):
            READERS[name](copied)
    path.write_text(json.dumps(values))
    READERS[name](copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.reverse(),
        lambda table: table.head(table.height // 2),
        lambda table: table.with_columns(p_bad="p_good", p_good="p_bad"),
    ],
    ids=["permuted", "halved", "of another model"],
)
@pytest.mark.parametrize("name", ["run/predictions.parquet", "baselines/predictions/bias.parquet"])
def test_other_predictions_are_refused(copied, name, change):
    path = copied / name
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(UserError, match=str(path)):
        READERS[name](copied)


@pytest.mark.parametrize(
    "columns",
    [
        pl.col("stars").reverse(),
        pl.col("date").reverse(),
        pl.col("label").reverse(),
        pl.col("text").reverse(),
        pl.all().reverse(),
    ],
    ids=["stars", "date", "label", "text", "all"],
)
def test_other_reviews_are_refused(copied, columns):
    path = copied / "corpus" / "reviews.parquet"
    pl.read_parquet(path).with_columns(columns).write_parquet(path)
    with pytest.raises(UserError, match=str(path)):
        _read_corpus(copied)


def test_equal_reviews_of_a_list_have_one_order(copied):
    """Rows of one entity, split and date that change places are detected too."""
    path = copied / "corpus" / "interactions" / "business_rows.npy"
    edit_reviews(copied / "corpus", date=pl.lit(None, pl.Datetime("us")))
    corpus = read_corpus(copied / "corpus")
    shutil.rmtree(path.parent)
    contexts.write_grouped(corpus)
    rows = np.load(path)
    alike = corpus.business[rows[1:]] == corpus.business[rows[:-1]]
    place = int(np.flatnonzero(alike & (corpus.split[rows[1:]] == corpus.split[rows[:-1]]))[0])
    rows[[place, place + 1]] = rows[[place + 1, place]]
    np.save(path, rows)
    with pytest.raises(UserError, match="interactions belongs to another corpus"):
        contexts.read_grouped(corpus, "business")


@pytest.mark.parametrize("name", [name for name in READERS if name.startswith("corpus/")])
def test_prepare_finds_a_damaged_corpus_and_its_remedy_works(copied, name, capsys):
    config = prepare.PrepareConfig(synthetic=900, output=str(copied / "corpus"))
    prepare.run(config)
    assert "already complete" in capsys.readouterr().out
    _flip(copied / name)
    with pytest.raises(UserError, match=f"remove {copied / 'corpus'} and run .*prepare again"):
        prepare.run(config)


def test_baselines_find_damaged_predictions_and_what_they_advise_works(copied, monkeypatch):
    monkeypatch.setattr(registry, "KINDS", FEW)
    output = copied / "baselines"
    paths = {"corpus": str(copied / "corpus"), "output": str(output)}
    before = (output / "baselines.json").read_bytes()
    _flip(output / "predictions" / "bias.parquet")
    with pytest.raises(UserError, match=f"remove {output} and run .*baselines again"):
        baselines.run(BaselinesConfig(**paths))
    shutil.rmtree(output)
    baselines.run(BaselinesConfig(**paths))
    assert (output / "baselines.json").read_bytes() == before


def test_an_evaluation_repairs_predictions_and_itself(copied):
    run = copied / "run"
    before = {
        name: (run / name).read_bytes() for name in ("evaluation.json", "predictions.parquet")
    }
    for name in before:
        _flip(run / name)
        with pytest.raises(UserError, match=f"{run / name} .*: run .*evaluate --run={run}"):
            _read_run(copied)
        evaluate.run(EvaluateConfig(run=(str(run),)))
        assert (run / name).read_bytes() == before[name]
