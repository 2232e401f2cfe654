"""The store in progress: nothing lost, nothing half written, nothing that it cannot hold."""

import shutil

import numpy as np
import polars as pl
import pytest

from embed_torch import store
from embed_torch.cli import UserError
from embed_torch.manifest import Manifest, read_manifest
from embed_torch.store import StoreWriter


def _manifest(**changed) -> Manifest:
    settings = {
        "encoder": "test",
        "weights_sha256": "0" * 64,
        "tokenizer_sha256": "0" * 64,
        "template_sha256": None,
        "instruction": None,
        "instruction_sha256": None,
        "gptq": None,
        "poolings": ["mean", "max"],
        "default_pooling": "mean",
        "pool_over": "all",
        "normalize": False,
        "compute_dtype": "float32",
        "dtype": "float16",
        "dim": 3,
        "truncate": "head",
        "max_tokens": 9,
        "texts_sha256": "0" * 64,
        "category_names_sha256": "0" * 64,
        "rows": 10,
        "reused": 0,
        "truncated": 0,
        "versions": {},
    }
    return Manifest(**settings | changed)


def _open(folder, plan=None, **changed) -> StoreWriter:
    folder.mkdir(exist_ok=True)
    return StoreWriter(folder, _manifest(**changed), 2, plan or {"batch_tokens": 8})


def _vectors(rows: int) -> dict[str, np.ndarray]:
    return {name: np.full((rows, 3), rows, np.float32) for name in ("mean", "max")}


def test_what_is_flushed_is_known_again_and_what_is_not_is_done_again(tmp_path):
    writer = _open(tmp_path / "s")
    writer.write(0, "0", [1, 2], _vectors(2))
    writer.flush()
    writer.write(0, "1", [3], _vectors(1))
    again = _open(tmp_path / "s")
    assert again.journal.done[0] == {"0"}
    assert again.array("mean")[1].tolist() == [2, 2, 2]


def test_a_torn_line_is_dropped(tmp_path):
    writer = _open(tmp_path / "s")
    for name in ("0", "1"):
        writer.write(0, name, [1], _vectors(1))
        writer.flush()
    path = tmp_path / "s" / "journal.ndjson"
    whole = path.read_bytes()
    for length in range(whole.rfind(b"\n", 0, -1) + 1, len(whole)):
        path.write_bytes(whole[:length])
        again = _open(tmp_path / "s")
        assert again.journal.done[0] == {"0"}
        again.write(0, "1", [1], _vectors(1))
        again.flush()
        assert path.read_bytes() == whole


def test_splits_and_budgets_are_known_again(tmp_path):
    writer = _open(tmp_path / "s")
    writer.journal.note_split(0, "3", budget=100, budget_from=2)
    writer.journal.note_split(1, "0", budget=50, budget_from=3)
    again = _open(tmp_path / "s").journal
    assert again.split == {0: {"3"}, 1: {"0"}}
    assert [again.budget(window, 400) for window in range(5)] == [400, 400, 100, 50, 50]


@pytest.mark.parametrize(
    "changed", [{"plan": {"batch_tokens": 9}}, {"dim": 4}, {"plan": {"batch_tokens": 8, "new": 1}}]
)
def test_the_beginning_of_another_store_is_refused(tmp_path, changed):
    _open(tmp_path / "s")
    before = {path: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(UserError, match="made with other (batch_tokens|dim|new): choose another"):
        _open(tmp_path / "s", **changed)
    assert {path: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


@pytest.mark.parametrize("damage", ["journal", "array", "cut array", "no array"])
def test_a_damaged_beginning_is_refused(tmp_path, damage):
    _open(tmp_path / "s")
    if damage == "journal":
        (tmp_path / "s" / "journal.ndjson").write_bytes(b"\xff\n")
    elif damage == "cut array":
        path = tmp_path / "s" / "mean.npy"
        path.write_bytes(path.read_bytes()[:-6])
    elif damage == "array":
        np.save(tmp_path / "s" / "mean.npy", np.zeros((9, 3), np.float16))
    else:
        (tmp_path / "s" / "mean.npy").unlink()
    with pytest.raises(UserError, match="embed_torch --output=.* again"):
        _open(tmp_path / "s")


def test_a_kill_before_the_journal_is_a_new_beginning(tmp_path):
    writer = _open(tmp_path / "s")
    writer.write(0, "0", [1], _vectors(1))
    (tmp_path / "s" / "journal.ndjson").unlink()
    again = _open(tmp_path / "s")
    assert not again.journal.done[0] and not again.array("mean").any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_float16_cannot_hold_stops_and_names_the_review(tmp_path, value):
    writer = _open(tmp_path / "s")
    bad = _vectors(2)
    bad["max"][1, 2] = value
    with pytest.raises(UserError, match=r"max embedding of review 7.*float16"):
        writer.write(0, "0", [4, 7], bad)
    writer.flush()
    assert not writer.journal.done[0]
    if value == 1e6:
        _open(tmp_path / "wide", dtype="float32").write(0, "0", [4, 7], bad)


def test_a_disk_too_small_is_said_before_the_first_row(tmp_path):
    rows = shutil.disk_usage(tmp_path).free // 3000
    with pytest.raises(UserError, match=r"needs \d.*GB free"):
        _open(tmp_path / "s", rows=rows, dim=1000)
    assert not list((tmp_path / "s").iterdir())


def test_the_space_is_taken_at_the_beginning(tmp_path):
    """A sparse file on a disk that fills up later would end the process by SIGBUS."""
    writer = _open(tmp_path / "s", rows=5000)
    for path in (tmp_path / "s").glob("*.npy"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size
    needed = store.bytes_needed(store.kinds_of(_manifest(rows=5000), 2))
    size = sum(path.stat().st_size for path in (tmp_path / "s").glob("*.npy"))
    assert needed <= size <= needed + 6 * 128  # the headers
    assert writer.tokens.shape == (5000,)


def test_a_complete_store_holds_its_contract_and_no_scratch(tmp_path):
    writer = _open(tmp_path / "s")
    writer.tokens[:], writer.tokens_uncut[:] = 5, 5
    writer.tokens_uncut[3] = 9
    assert writer.finish(reused=4) == 1
    names = {path.name for path in (tmp_path / "s").iterdir()}
    arrays = {"mean.npy", "max.npy", "categories.npy", "tokens.npy", "text_hashes.npy"}
    assert names == arrays | {"truncated.parquet", "manifest.json"}
    truncated = pl.read_parquet(tmp_path / "s" / "truncated.parquet")
    assert truncated.rows() == [(3, 9, 5)]
    manifest = read_manifest(tmp_path / "s")
    assert (manifest.format_version, manifest.reused, manifest.truncated) == (1, 4, 1)
    assert manifest.settings == _manifest().settings


def test_text_hashes_tell_texts_apart():
    texts = ["a", "b", "", "a ", "é", "e\u0301"]
    hashes = store.text_hashes([*texts, "a"])
    assert hashes.shape == (7, 2) and len({tuple(row) for row in hashes.tolist()}) == 6
    assert (hashes[0] == hashes[6]).all()
