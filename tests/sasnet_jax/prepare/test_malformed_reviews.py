import functools
import gzip
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import ROOT, assert_one_line_mistake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_dumps import (
    BOM,
    GOOD,
    Row,
    csv_table,
    expected,
    lines_by_json,
    ndjson,
    parquet,
    read,
    records_by_csv,
    reviews,
    rows_of,
    run_prepare,
    tarred,
    zipped,
)

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.ratings import RatingScale
from sasnet_jax.prepare import command as prepare
from sasnet_jax.prepare.reviews import ReviewDumps


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"stars": 0}, "> 0"),
        ({"stars": 6}, "<= 5"),
        ({"stars": None}, "got `null` - at `$.stars`"),
        ({"stars": "Like"}, "got `str` - at `$.stars`"),
        ({"stars": float("nan")}, "malformed"),
        ({"user_id": ""}, "length >= 1 - at `$.user_id`"),
        ({"business_id": None}, "got `null` - at `$.business_id`"),
        (b'{"user_id": "u", "stars": 4, "text": "fine"}', "missing required field `business_id`"),
        ({"user_id": "a\nb"}, "control character"),
        ({"business_id": "a\0"}, "control character"),
        ({"user_id": "\ud800"}, "surrogate"),
        ({"text": " \n"}, "empty text"),
        ({"text": None}, "empty text"),
        (json.dumps(GOOD).encode()[:-9], "truncated"),
        (json.dumps(GOOD).replace("fine", "\0").encode(), "malformed"),
        (json.dumps(GOOD).encode().replace(b"fine", b"\xff"), "not UTF-8"),
        (b"\0\0\0", "malformed"),
        (b"[]", "got `array`"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
        (json.dumps(GOOD).encode() * 2 + b"\n", "trailing characters"),  # and a blank line
    ],
)
def test_a_bad_record_is_rejected_and_its_neighbours_are_kept(tmp_path, bad, reason, last):
    line = bad if isinstance(bad, bytes) else json.dumps(GOOD | bad).encode()
    written = reviews(2)
    lines = [*(json.dumps(review).encode() for review in written), line]
    path = tmp_path / "review.json"
    path.write_bytes(b"\n".join(lines if last else [lines[0], line, lines[1], b""]))
    rows, rejects = read([path])
    assert rows == rows_of(written)
    assert [reject[:2] for reject in rejects] == [(path.name, 3 if last else 2)]
    assert reason in rejects[0][2]


@pytest.mark.parametrize("needs_dates", [False, True])
@pytest.mark.parametrize(
    "date",
    [
        "yesterday",
        "2018-02-30 10:00:00",
        "0000-01-01 00:00:00",  # a year that only polars knows
        "+10000-01-01 00:00:00",
        10**400,
        True,
        ["2018-07-07"],
        {"$date": "2018-07-07"},
    ],
)
def test_an_unreadable_date_is_missing_unless_dates_are_needed(tmp_path, date, needs_dates):
    written = reviews(4)
    (tmp_path / "review.json").write_bytes(ndjson([*written, GOOD | {"date": date}]))
    rows, rejects = read([tmp_path / "review.json"], needs_dates=needs_dates)
    undated = [("r", "u", "b", 4.0, None, "fine")]
    assert rows == rows_of(written) + ([] if needs_dates else undated)
    assert rejects == ([("review.json", 5, "unreadable date")] if needs_dates else [])


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_a_rating_outside_the_scale_is_rejected(tmp_path, suffix):
    ratings = [-2, -1.5, -1, 0, 9.5, 10, 10.5, "nan", "inf"]
    reviewed = zip(reviews(9), ratings, strict=True)
    written = [review | {"stars": rating, "text": "fine"} for review, rating in reviewed]
    path = tmp_path / f"review.{suffix}"
    path.write_bytes(csv_table(written) if suffix == "csv" else ndjson(written))
    rows, rejects = read([path], ratings=RatingScale(low=-1.5, high=10.0))
    assert [row[3] for row in rows] == [-1.5, -1, 0, 9.5, 10]
    assert [line - (suffix == "csv") for _, line, _ in rejects] == [1, 7, 8, 9]
    assert ">= -1.5" in rejects[0][2] and "<= 10" in rejects[1][2]


@pytest.mark.parametrize("lines", [b"[\n{}, {}]", b"[{}\n, {}]", b"[{}, {}\n]"])
def test_as_many_objects_as_lines_is_not_one_a_line(tmp_path, lines):
    broken = json.dumps(GOOD | {"extra": [{}, {}]}).encode().replace(b"[{}, {}]", lines)
    data = ndjson(reviews(1)) + broken + ndjson(reviews(2)[1:])
    path = tmp_path / "review.json"
    path.write_bytes(data)
    rows, rejects = read([path])
    assert (rows, [reject[:2] for reject in rejects]) == expected(path.name, lines_by_json(data))
    assert rows == rows_of(reviews(1))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "../../etc/passwd", "business_id": "a/b\\c: d"},
        {"text": "long " * 2_000_000},
        {"text": "a NUL \0 and \u2028"},
        {"stars": 0.5, "categories": None, "extra": {"deep": [[1], {}]}},
    ],
    ids=lambda change: " ".join(change),
)
def test_an_odd_but_valid_record_is_kept_as_it_stands(tmp_path, change, place):
    written = reviews(2)
    written[place] |= change
    path = tmp_path / "review.json"
    path.write_bytes(ndjson(written))
    assert read([path]) == (rows_of(written), [])


def test_bad_rows_of_a_csv_file_are_rejected_with_their_lines(tmp_path):
    rows = [b"r1,u,b,4,plain,", b"r2,u,b,4", b"r3,u,b,4,x,,,", b'r4,u,b,5,"two\nlines, ""q""",']
    rows += [
        b"r5,u,b,4,\xff,",
        b"r6,u,b,nan,x,",
        b"",
        b"r7,,b,4,x,",
        b"r8,u,b,,x,",
        b"r9,\0,b,4,x,",
    ]
    rows += [b"r10,u,b,1.5,null,", b'r11,u,b,4,"never closed,']
    path = tmp_path / "reviews.csv"
    path.write_bytes(b"\r\n".join([b"review_id,user_id,business_id,stars,text,date", *rows]))
    found, rejects = read([path])
    texts = {"r1": "plain", "r4": 'two\nlines, "q"', "r10": "null"}
    assert {row[0]: row[-1] for row in found} == texts
    reasons = {3: "4 fields", 4: "8 fields", 7: "UTF-8", 8: "stars", 10: "user_id", 11: "stars"}
    reasons |= {12: "control character", 14: "5 fields"}
    assert [reject[1] for reject in rejects] == list(reasons)
    assert all(reasons[line] in reason for _, line, reason in rejects)


def _encrypted(archive: bytes) -> bytes:
    """A zip whose flags say so."""
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = archive.index(header) + flags
        archive = archive[:at] + b"\x01" + archive[at + 1 :]
    return archive


DATA = ndjson(reviews(60))
ZIP = zipped({"review.json": DATA, "é": b""})
BAD_FILES = {  # the content, and what is said of it
    "truncated.gz": (gzip.compress(DATA)[:-20], "truncated"),
    "truncated.tar": (tarred({"review.json": DATA})[:3000], "truncated"),
    "truncated.zip": (ZIP[:-20], "damaged"),
    "corrupt.zip": (ZIP[:900] + b"XX" + ZIP[902:], "damaged"),
    "shifted.zip": (ZIP[:900] + ZIP[902:], "damaged"),
    "misnamed.zip": (ZIP.replace("é".encode(), b"\xff\xff"), "damaged"),
    "encrypted.zip": (_encrypted(ZIP), "encrypted"),
    "cut.zip.gz": (gzip.compress(ZIP)[:-100], "truncated"),
    "cut.tar.zip": (zipped({"x.tar": tarred({"review.json": DATA})[:3000]}), "truncated"),
    "five.gz": (functools.reduce(lambda data, _: gzip.compress(data), range(5), DATA), "4 times"),
    "array.parquet": (parquet([{**r, "text": [r["text"]] * 2} for r in reviews(9)]), "malformed"),
    "bytes.parquet": (parquet([{**r, "text": b"fine"} for r in reviews(9)]), "text", "Binary"),
    "photos.zip": (zipped({"photos.json": DATA}), "holds no review file"),
    "truncated.parquet": (parquet(reviews(60))[:-20], "damaged"),
    "only_its_start.parquet": (b"PAR1", "damaged"),
    "array.json": (json.dumps(reviews(60)).encode(), "JSON array"),
    "bad.json": (b"neither\n" * 50, "line 1"),
    "bad.csv": (b"x" * 200_000 + b",y\n1,2\n", "line 1"),
    "blank.json": (b"\n\n", "line 1"),
    "some_bad.json": (DATA + b"{}\nx\n", "2 of 62 lines are malformed", "line 61: ", "user_id"),
    "folder": (None, "is a folder"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name):
    content, *mentions = BAD_FILES[name]
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    assert_one_line_mistake(result, name, *mentions)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("largest", ["reviews.parquet", "rejects.ndjson"])
def test_a_full_device_is_one_line_and_leaves_nothing(tmp_path, largest):
    path = tmp_path / "review.json"
    if largest == "reviews.parquet":
        noise = np.random.default_rng(0).bytes(30_000).hex()
        path.write_bytes(DATA + ndjson([GOOD | {"text": noise}]))
    else:
        path.write_bytes(DATA + b"{}\n" * 2000)
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
    limited += "runpy.run_module('sasnet_jax.prepare', run_name='__main__')"
    flags = [f"--reviews={path}", f"--output={tmp_path / 'corpus'}", "--max_reject_fraction=1"]
    # -B: Python would keep truncated bytecode of what it imports.
    command = [sys.executable, "-B", "-c", limited, *flags, "--split=by_review"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert_one_line_mistake(result, "File too large")
    assert list(tmp_path.iterdir()) == [path]


def _assert_read_as(path: Path, numbered: list[tuple[int, Row | None]], whole: bool) -> None:
    """The reader and `prepare` give what is expected; a file that is not whole may be refused."""
    output = path.parent / "corpus"
    flags = {"reviews": (str(path),), "output": str(output), "split": "by_review"}
    try:
        rows, rejects = read([path])
        assert (rows, [reject[:2] for reject in rejects]) == expected(path.name, numbered)
        prepare.run(prepare.PrepareConfig(**flags, max_reject_fraction=1.0))
    except UserError:
        assert not whole and list(path.parent.iterdir()) == [path]
        return
    table = pl.read_parquet(output / "reviews.parquet")
    for side, file in (("user", "users"), ("business", "businesses")):
        table = table.join(pl.read_parquet(output / f"{file}.parquet"), on=side)
    kept = table.select("review_id", "user_id", "business_id", "stars", "date", "text").rows()
    assert set(kept) <= set(rows)
    assert len(kept) == len({row[1:3] for row in rows})  # one of each user and business
    description = json.loads((output / "corpus.json").read_text())
    listed = (output / "rejects.ndjson").read_bytes().splitlines()
    assert description["lines"] == description["steps"][0]["reviews"] + len(listed)
    assert description["rejected"] == Counter(json.loads(line)["reason"] for line in listed)


IDS = ["u1", "u2", "../x", "☃", "", None, 5, "a\nb", "\ud800"]
BODY = {
    "user_id": st.sampled_from(IDS),
    "business_id": st.sampled_from(IDS),
    "stars": st.sampled_from([1, 4.5, 5, 0.1, 0, -1, 6, None, "4", True, float("nan"), []]),
    "text": st.sampled_from(["fine", "two\nlines", "\0", "☃", "", " \n", None, 5, "\ud800"]),
}
EXTRA = {"review_id": st.sampled_from(["r1", "x", "y", "", None, 7]), "extra": st.just([{}])}
DATES = ["2018-07-07 22:09:11", "", None, "yesterday", "2018-02-30 10:00:00", [], 10**400]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(GOOD)), inner),
    max_leaves=6,
)
UNDATED = st.fixed_dictionaries(BODY, optional=EXTRA).map(json.dumps)
LINES = st.one_of(
    st.fixed_dictionaries(BODY, optional=EXTRA | {"date": st.sampled_from(DATES)}).map(json.dumps),
    st.tuples(UNDATED, st.integers(0, 99), st.text(max_size=3)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
    ),
    JSON.map(json.dumps),
).map(str.encode) | st.binary(max_size=20)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@settings(QUICK, max_examples=100)
@given(
    lines=st.lists(LINES, max_size=15),
    among_others=st.booleans(),
    newline=st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"]),
    start=st.sampled_from([b"", BOM]),
    packed=st.booleans(),
    cut=st.just(0) | st.integers(1, 9000),
)
def test_whatever_the_lines_each_is_kept_or_rejected(
    lines, among_others, newline, start, packed, cut
):
    if among_others:
        valid = DATA.splitlines()
        lines = [*valid[:50], *lines, *valid[50:]]
    data = start + newline.join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "review.json"
        if packed and cut:
            path.write_bytes(gzip.compress(data)[: -min(cut, 15)])
            with pytest.raises(UserError, match="truncated"):
                ReviewDumps([path], {})
            return
        data = data[: max(0, len(data) - cut)]
        path.write_bytes(gzip.compress(data) if packed else data)
        _assert_read_as(path, lines_by_json(data), whole=among_others and not cut)


CELLS = st.fixed_dictionaries(
    {
        "review_id": st.sampled_from(["", "r1", "x", "y"]),
        "user_id": st.sampled_from(["u1", "u2", "", "a\tb"]),
        "business_id": st.sampled_from(["b1", "☃", "", "a\nb"]),
        "stars": st.sampled_from(["4", "4.5", "5e0", " 4", "nan", "inf", "0", "6", "", "four"]),
        "text": st.sampled_from(["fine", 'a "b", c', "x\r\ny\n", "", " ", "null"]),
        "date": st.sampled_from(["", "2018-07-07 22:09:11", "yesterday"]),
    }
).map(lambda row: csv_table([row]).split(b"\n", 1)[1])
RAW = st.text('",\n\rab', max_size=12).map(str.encode) | st.binary(max_size=12)


@QUICK
@given(rows=st.lists(CELLS | RAW.map(lambda raw: raw + b"\n"), max_size=12), bom=st.booleans())
def test_whatever_the_csv_rows_each_is_kept_or_rejected(rows, bom):
    data = BOM * bom + csv_table(reviews(60)) + b"".join(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reviews.csv"
        path.write_bytes(data)
        _assert_read_as(path, records_by_csv(data), whole=True)
