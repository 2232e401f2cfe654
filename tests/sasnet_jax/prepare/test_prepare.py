import dataclasses
import gzip
import hashlib
import json
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import polars as pl
import pytest
from conftest import (
    PATIENCE_SECONDS,
    ROOT,
    assert_one_line_mistake,
    edit_json,
    reviews_frame,
    run_command,
)

from sasnet_jax import files
from sasnet_jax.cli import UserError
from sasnet_jax.corpus.corpus import Corpus, CorpusRecord, read_corpus
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.prepare import command as prepare
from sasnet_jax.prepare import filters
from sasnet_jax.prepare.command import PrepareConfig

GOOD = {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 4.0, "text": "fine"}


def _lines(count: int) -> list[dict]:
    """Reviews of `count` users for five businesses."""
    return [
        GOOD | {"review_id": f"r{i}", "user_id": f"u{i}", "business_id": f"b{i % 5}"}
        for i in range(count)
    ]


def _write(path, records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", ["ndjson", "ndjson.gz"])
def test_every_line_is_kept_or_rejected_with_its_reason(tmp_path, suffix):
    bad = ["not json", GOOD | {"stars": "Like"}, GOOD | {"stars": None}, GOOD | {"stars": 6.0}]
    bad += [GOOD | {"user_id": ""}, GOOD | {"user_id": "a\nb"}, GOOD | {"text": " \n"}, "{}"]
    path = _write(tmp_path / f"reviews.{suffix}", [*_lines(60), *bad])
    output = tmp_path / "corpus"
    prepare.run(PrepareConfig(reviews=(str(path),), output=str(output), max_reject_fraction=0.5))
    rejects = [json.loads(line) for line in (output / "rejects.ndjson").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == list(range(61, 69))
    assert all(reject["file"] == path.name and reject["reason"] for reject in rejects)
    description = json.loads((output / "corpus.json").read_text())
    assert description["lines"] == 68
    assert sum(description["rejected"].values()) == 8
    assert pl.read_parquet(output / "reviews.parquet").height == 60


def test_a_corpus_is_hashed_once_and_another_split_has_another_hash(world, monkeypatch):
    corpus, digests, sha256 = world.corpus, [], hashlib.sha256

    def counted(*args):
        digests.append(args)
        return sha256(*args)

    monkeypatch.setattr(hashlib, "sha256", counted)
    assert corpus.sha256 == corpus.sha256
    assert len(digests) == 1
    assert dataclasses.replace(corpus, split_scheme="by_time").sha256 != corpus.sha256


@pytest.mark.parametrize("split", ["by_user", "by_time"])
def test_unreadable_dates_are_counted_or_rejected(tmp_path, split, capsys):
    dated = [line | {"date": f"2020-01-{1 + i % 28:02}"} for i, line in enumerate(_lines(80))]
    odd = [line | {"date": "last week"} for line in _lines(83)[80:]]
    odd.append(dict(odd[-1]))  # a repeated id is rejected, and its date not counted
    path = _write(tmp_path / "reviews.ndjson", [*dated, *odd])
    output = tmp_path / "corpus"
    prepare.run(
        PrepareConfig(
            reviews=(str(path),), output=str(output), split=split, max_reject_fraction=0.1
        )
    )
    record = files.read_record(output / "corpus.json", CorpusRecord)
    by_time = split == "by_time"
    assert record.unreadable_dates == (0 if by_time else 3)
    assert record.rejected == ({"unreadable date": 4} if by_time else {"repeated id": 1})
    assert ("3 dates cannot be read" in capsys.readouterr().out) != by_time
    assert pl.read_parquet(output / "reviews.parquet")["date"].null_count() == (not by_time) * 3


def _doubled(tmp_path, **settings) -> tuple[Corpus, Corpus]:
    """A corpus of stars, and one of the same reviews with doubled stars, of `settings`."""
    stars = [0.5, 1, 2.5, 3, 3.5, 4, 4.5, 5] * 10
    corpora = []
    for factor, rated in ((1, {}), (2, settings)):
        records = [r | {"stars": factor * s} for r, s in zip(_lines(80), stars, strict=True)]
        path = _write(tmp_path / f"{factor}.ndjson", records)
        output = tmp_path / f"corpus_{factor}"
        prepare.run(PrepareConfig(reviews=(str(path),), output=str(output), **rated))
        corpora.append(read_corpus(output))
    return corpora[0], corpora[1]


def test_a_doubled_scale_with_doubled_cuts_has_the_same_classes(tmp_path):
    scale = {"ratings": "0..10", "bad_up_to": 6.0, "excellent_from": 10.0}
    stars, doubled = _doubled(tmp_path, **scale)
    np.testing.assert_array_equal(doubled.stars, 2 * stars.stars)
    np.testing.assert_array_equal(doubled.label, stars.label)
    np.testing.assert_array_equal(
        doubled.ratings.steps(doubled.stars), stars.ratings.steps(stars.stars)
    )
    assert stars.labels(5).max() == 4
    with pytest.raises(UserError, match="--classes=5 needs stars out of 5, not 0..10"):
        doubled.labels(5)


def test_other_cuts_of_the_same_reviews_are_another_corpus(tmp_path):
    path = _write(tmp_path / "reviews.ndjson", _lines(80))
    output = tmp_path / "corpus"
    prepare.run(PrepareConfig(reviews=(str(path),), output=str(output)))
    with pytest.raises(UserError, match="made with other bad_up_to"):
        prepare.run(PrepareConfig(reviews=(str(path),), output=str(output), bad_up_to=4.0))
    corpus = read_corpus(output)
    other = dataclasses.replace(corpus, ratings=RatingScale(bad_up_to=4.0))
    assert other.sha256 != corpus.sha256


def test_a_corpus_older_than_ratings_has_stars_and_is_complete(tmp_path, capsys):
    path = _write(tmp_path / "reviews.ndjson", _lines(80))
    config = PrepareConfig(reviews=(str(path),), output=str(tmp_path / "corpus"))
    prepare.run(config)
    before = read_corpus(tmp_path / "corpus")
    written = tmp_path / "corpus" / "corpus.json"
    settings = json.loads(written.read_text())["settings"]
    newer = ("ratings", "bad_up_to", "excellent_from")
    edit_json(written, settings={k: v for k, v in settings.items() if k not in newer})
    old = read_corpus(tmp_path / "corpus")
    assert (old.ratings, old.sha256) == (RatingScale(), before.sha256)
    prepare.run(config)
    assert "already complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        ({"ratings": "10"}, ("--ratings=10", "LOW..HIGH")),
        ({"ratings": "0...5"}, ("--ratings=0...5", "LOW..HIGH")),
        ({"ratings": "5..0"}, ("--ratings=5..0", "LOW below HIGH")),
        ({"ratings": "0..1"}, ("--bad_up_to=3 --excellent_from=5", "--ratings=0..1")),
        ({"bad_up_to": 5.0}, ("--bad_up_to=5 --excellent_from=5", "bad_up_to < excellent_from")),
        ({"bad_up_to": 0.0}, ("--bad_up_to=0", "0 < bad_up_to")),
        ({"ratings": "0..10", "excellent_from": 10.5}, ("excellent_from <= 10",)),
    ],
)
def test_ratings_that_leave_a_class_impossible_are_refused(flags, mentions):
    with pytest.raises(UserError) as refused:
        PrepareConfig(reviews=("x",), output="y", **flags)
    assert all(mention in str(refused.value) for mention in mentions)


def test_labels_follow_the_stars(tmp_path):
    stars = [0.5, 1, 2.5, 3, 3.5, 4, 4.5, 5] * 10
    records = [line | {"stars": float(s)} for line, s in zip(_lines(80), stars, strict=True)]
    path = _write(tmp_path / "reviews.ndjson", records)
    prepare.run(PrepareConfig(reviews=(str(path),), output=str(tmp_path / "corpus")))
    corpus = read_corpus(tmp_path / "corpus")
    expected = [0 if s <= 3 else 1 if s < 5 else 2 for s in stars]
    assert corpus.label.tolist() == expected


def test_the_earliest_review_of_a_pair_is_kept():
    rows = [("x", "b", 1.0, "2020-05-01"), ("x", "b", 2.0, "2019-01-01")]
    rows += [("x", "b", 3.0, None), ("y", "b", 3.0, None), ("y", "b", 5.0, None)]
    rows += [("z", "c", 1.0, "2019-01-01"), ("z", "c", 2.0, "2019-01-01"), ("z", "b", 2.0, None)]
    kept = filters.earliest_of_each_pair(reviews_frame(rows))
    assert kept["review_id"].to_list() == ["r1", "r3", "r5", "r7"]


@pytest.mark.parametrize("mode", ["once", "core"])
def test_filters_equal_a_loop(mode):
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, [60, 20], size=(300, 2))
    frame = reviews_frame([(f"u{u}", f"b{b}", 3.0, None) for u, b in pairs])
    kept = list(range(300))
    while True:
        users = [pairs[i, 0] for i in kept]
        businesses = [pairs[i, 1] for i in kept]
        left = [
            i for i in kept if users.count(pairs[i, 0]) >= 4 and businesses.count(pairs[i, 1]) >= 9
        ]
        done = left == kept
        kept = left
        if done or mode == "once":
            break
    assert 0 < len(kept) < 300
    found = filters.with_enough_reviews(frame, 4, 9, mode)
    assert found["review_id"].to_list() == [f"r{i}" for i in kept]


def test_the_same_command_reuses_and_another_refuses(tmp_path, capsys):
    config = PrepareConfig(synthetic=300, output=str(tmp_path / "corpus"))
    prepare.run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    prepare.run(config)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="other seed"):
        prepare.run(PrepareConfig(synthetic=300, seed=1, output=str(tmp_path / "corpus")))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")} == before


def test_a_setting_that_is_newer_than_a_corpus_had_its_default(tmp_path, capsys):
    config = PrepareConfig(synthetic=300, output=str(tmp_path / "corpus"))
    prepare.run(config)
    path = tmp_path / "corpus" / "corpus.json"
    record = files.read_record(path, CorpusRecord)
    older = {name: value for name, value in record.settings.items() if name != "world"}
    files.write_record(path, msgspec.structs.replace(record, settings=older))
    capsys.readouterr()
    prepare.run(config)
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="other world"):
        prepare.run(dataclasses.replace(config, world="kinds"))


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("missing", ("nowhere.ndjson", "does not exist")),
        ("csv", ("columns", "line 1", "user")),
        ("empty", ("no review is left",)),
        ("torn", ("reviews.ndjson.gz", "truncated")),
        ("unknown flag", ("colour",)),
        ("foreign output", ("other files",)),
        ("no input", ("--reviews",)),
        ("bad value", ("min_reviews_user",)),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, case, mentions):
    output = tmp_path / "corpus"
    path = _write(tmp_path / "reviews.ndjson", _lines(60))
    arguments = [f"--reviews={path}", f"--output={output}"]
    if case == "missing":
        arguments[0] = f"--reviews={tmp_path / 'nowhere.ndjson'}"
    elif case == "csv":
        _write(path, ["user,business,stars", "a,b,3"])
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "torn":
        path = _write(tmp_path / "reviews.ndjson.gz", _lines(60))
        path.write_bytes(path.read_bytes()[:-20])
        arguments[0] = f"--reviews={path}"
    elif case == "unknown flag":
        arguments.append("--colour=red")
    elif case == "foreign output":
        output.mkdir()
        (output / "thesis.tex").write_text("precious")
    elif case == "no input":
        arguments.pop(0)
    elif case == "bad value":
        arguments.append("--min_reviews_user=many")
    before = sorted(tmp_path.rglob("*"))
    assert_one_line_mistake(run_command("sasnet_jax.prepare", *arguments), *mentions)
    assert sorted(tmp_path.rglob("*")) == before


def _prepare_until_it_writes(tmp_path) -> subprocess.Popen:
    arguments = ["--synthetic=2000000", f"--output={tmp_path / 'corpus'}"]
    command = [sys.executable, "-m", "sasnet_jax.prepare", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".corpus.partial-*/synthetic/*")):
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_sigterm_leaves_nothing(tmp_path):
    process = _prepare_until_it_writes(tmp_path)
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_prepare_left_is_removed_by_the_next(tmp_path):
    process = _prepare_until_it_writes(tmp_path)
    process.kill()
    process.wait(PATIENCE_SECONDS)
    (left_behind,) = tmp_path.iterdir()
    in_use = tmp_path / ".corpus.partial-1"
    with files.new_folder(tmp_path / "other") as other:
        other.rename(in_use)  # as if another process were still writing it
        prepare.run(PrepareConfig(synthetic=200, output=str(tmp_path / "corpus")))
        assert in_use.exists() and not left_behind.exists()
        in_use.rename(other)
