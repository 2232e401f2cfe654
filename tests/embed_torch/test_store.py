"""The store in progress: nothing is lost, half-written, or beyond its type."""

import hashlib
import os
import shutil

import numpy as np
import polars as pl
import pytest

from embed_torch import manifest, reuse, store
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


def _complete(folder, rows=12) -> Manifest:
    """A complete store: row i embeds the text i as i."""
    writer = _open(folder, rows=rows)
    writer.text_hashes[:] = store.text_hashes([str(row) for row in range(rows)])
    for name in ("mean", "max"):
        writer.array(name)[:] = np.arange(rows)[:, None]
    writer.tokens[:] = writer.tokens_uncut[:] = np.arange(rows)
    writer.finish(reused=0)
    return read_manifest(folder)


def test_reuse_copies_what_is_whole_and_refuses_windows_that_are_not(tmp_path, monkeypatch):
    for module in (manifest, reuse):
        monkeypatch.setattr(module, "WINDOW_ROWS", 4)
    _complete(tmp_path / "old")
    table = np.load(tmp_path / "old" / "max.npy", mmap_mode="r+")
    table[5] = np.nan
    table.flush()
    wanted = ["11", "new", "2", "8", "0"]
    writer = _open(tmp_path / "new", rows=5)
    writer.text_hashes[:] = store.text_hashes(wanted)
    reused = reuse.Reused(tmp_path / "old", _manifest(rows=5))
    assert reused.copy_rows(writer, ("mean", "max")).tolist() == [1]
    assert writer.array("max")[:, 0].tolist() == [11, 0, 2, 8, 0]
    assert writer.tokens.tolist() == [11, 0, 2, 8, 0]
    writer.text_hashes[:] = store.text_hashes(["11", "7", "2", "8", "0"])
    with pytest.raises(UserError, match=r"max.npy: rows 4 to 7 are not as they were written"):
        reused.copy_rows(writer, ("mean", "max"))


def test_every_window_has_its_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "WINDOW_ROWS", 5)
    known = _complete(tmp_path / "s")
    rows = np.arange(10, 12, dtype=np.float16)[:, None].repeat(3, axis=1)
    assert known.hashes["mean.npy"][2] == hashlib.sha256(rows.tobytes()).hexdigest()
    counts = {name: len(hashes) for name, hashes in known.hashes.items()}
    arrays = dict.fromkeys(("mean.npy", "max.npy", "tokens.npy", "text_hashes.npy"), 3)
    assert counts == arrays | {"categories.npy": 1, "truncated.parquet": 1}
    store.check(tmp_path / "s", known)


@pytest.mark.parametrize("first", [0, 4])
def test_windows_exchanged_are_noticed(tmp_path, monkeypatch, first):
    monkeypatch.setattr(manifest, "WINDOW_ROWS", 4)
    known = _complete(tmp_path / "s")
    table = np.load(tmp_path / "s" / "mean.npy")
    np.save(tmp_path / "s" / "mean.npy", np.roll(table[first:], 4, axis=0))
    with pytest.raises(UserError, match="rows 0 to 3 are not|expected"):
        store.check(tmp_path / "s", known)


@pytest.mark.parametrize(
    "line",
    [
        b'{"window": -1}',
        b'{"window": "0"}',
        b'{"done": ["0"]}',
        b"[" * 100_000,
        b'{"window": 0, "budget": [1]}',
    ],
)
def test_a_damaged_line_of_the_journal_is_refused(tmp_path, line):
    _open(tmp_path / "s")
    path = tmp_path / "s" / "journal.ndjson"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match="journal.ndjson is damaged: remove .* and run"):
        _open(tmp_path / "s")


@pytest.mark.parametrize("name", ["journal.ndjson", "mean.npy"])
def test_a_planted_link_is_not_followed(tmp_path, name):
    _open(tmp_path / "s")
    precious = tmp_path / "precious"
    (tmp_path / "s" / name).rename(precious)
    precious.write_bytes(precious.read_bytes() + b"torn")
    before = precious.read_bytes()
    (tmp_path / "s" / name).symlink_to(precious)
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        _open(tmp_path / "s")
    assert precious.read_bytes() == before


def test_a_fifo_in_a_beginning_is_refused(tmp_path):
    for name in ("journal.ndjson", "tokens.npy"):
        folder = tmp_path / name
        _open(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=f"{name} is not a regular file"):
            _open(folder)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_finite_is_what_numpy_calls_so(dtype):
    values = np.arange(0, 1 << 16, 31, dtype=np.uint16).view(np.float16).astype(dtype)
    for value in (*values, np.inf, -np.inf, np.nan):
        block = np.array([[0, value]], dtype)
        assert manifest._is_finite(block) == np.isfinite(value)
