import calendar
import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import ROOT, assert_one_line_mistake, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasnet_jax import prepare
from sasnet_jax.cli import UserError
from sasnet_jax.data import dumps, reviews
from sasnet_jax.data.reviews import ReviewDumps, read_businesses

BOM = b"\xef\xbb\xbf"
GOOD = {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 4.0, "text": "fine"}
TEXTS = ["fine", 'a "quote", a comma', "two\r\nlines\n", "naïve ☃ 😀", " {spaces} ", "null"]
MOMENT, FORMAT = "2018-07-07 22:09:11", "%Y-%m-%d %H:%M:%S"


def _reviews(count: int, first: int = 0) -> list[dict]:
    """Reviews in Yelp's columns; no pair of user and business occurs twice."""
    return [
        {
            "review_id": f"r{i}",
            "user_id": f"u{i}",
            "business_id": f"b{i % 5}",
            "stars": 1 + i % 9 / 2,
            "text": f"{TEXTS[i % len(TEXTS)]} {i}",
            "date": f"{2010 + i % 10}-03-1{i % 9} 2{i % 4}:09:11",
        }
        for i in range(first, first + count)
    ]


def _rows(written: list[dict], name: str = "") -> list[tuple]:
    """What `_read` should give; named after the lines of file `name` where that is given."""
    return [
        (
            f"{name}:{line}" if name else review["review_id"],
            review["user_id"],
            review["business_id"],
            review["stars"],
            datetime.strptime(review["date"], FORMAT) if "date" in review else None,
            review["text"],
        )
        for line, review in enumerate(written, start=1)
    ]


def _read(paths: list[Path], columns: dict[str, str] | None = None) -> tuple[list, list]:
    """Every usable review with its text, and `file, line, reason` of the rejects in that order."""
    found = ReviewDumps(paths, columns or {})
    scan = found.scan(1.0)
    none = pl.DataFrame(schema={"review_id": pl.String, "text": pl.String})
    table = scan.reviews.hstack(pl.concat([none, *found.texts(scan.reviews)]))
    assert scan.lines == scan.reviews.height + scan.rejects.height
    rows = table.select("review_id", "user_id", "business_id", "stars", "date", "text").rows()
    return rows, scan.rejects.sort("file", "line").rows()


def _ndjson(records: list[dict], newline: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(record).encode() + newline for record in records)


def _csv(records: list[dict], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _parquet(records: list[dict]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(records).write_parquet(file)
    return file.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _renamed(records: list[dict], names: str, **more) -> list[dict]:
    """The values of user, business, stars and text under other names, with other columns."""
    fields = ("user_id", "business_id", "stars", "text")
    return [
        dict(zip(names.split(), (record[field] for field in fields), strict=True))
        | {name: make(record) for name, make in more.items()}
        for record in records
    ]


def _epoch(record: dict) -> int:
    return calendar.timegm(time.strptime(record["date"], FORMAT))


def _in_format(name: str, written: list[dict]) -> tuple[bytes, dict[str, str]]:
    """A dump of some reviews, and the flags it needs."""
    own = "who what score words"
    flags = {"user_id": "who", "business_id": "what", "stars": "score", "text": "words"}
    more = {"when": lambda r: r["date"], "key": lambda r: r["review_id"]}
    flags |= {"date": "when", "review_id": "key"}
    if name.startswith("yelp_academic"):
        return _ndjson([{**r, "useful": 0, "funny": 1, "cool": 2} for r in written]), {}
    if name.startswith("amazon_2018"):
        names, more = "reviewerID asin overall reviewText", {"unixReviewTime": _epoch}
        return _ndjson(_renamed(written, names, helpful=lambda _: [0, 1], **more)), {}
    if name.startswith("amazon_2023"):
        more = {"timestamp": lambda r: 1000 * _epoch(r), "images": lambda _: []}
        return _ndjson(_renamed(written, "user_id parent_asin rating text", **more)), {}
    if name.startswith("named"):
        write = _csv if name.endswith("csv") else _parquet
        return write(_renamed(written, own, **more)), flags
    if name.startswith("whole"):  # numbers for ids, and a date for a date
        more["when"] = lambda r: datetime.strptime(r["date"], FORMAT)
        return _parquet(_renamed(written, own, **more)), flags
    if name.endswith("parquet"):
        return _parquet(written), {}
    return _csv(written, {"tsv": "\t", "csv": ",", "txt": ";"}[name[-3:]]), {}


FORMATS = ["yelp_academic_dataset_review.json", "amazon_2018.json", "amazon_2023.jsonl", "yelp.csv"]
FORMATS += ["named.csv", "named.parquet", "whole.parquet", "yelp[1].parquet", "y.tsv", "y.txt"]


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_reviews_that_were_written(tmp_path, name):
    written = _reviews(30)
    if name.startswith("whole"):
        written = [r | {"user_id": 7000 + i, "business_id": i} for i, r in enumerate(written)]
    path = tmp_path / name
    data, flags = _in_format(name, written)
    path.write_bytes(data)
    expected = _rows(written, name if name.startswith("amazon") else "")
    expected = [(row[0], str(row[1]), str(row[2]), *row[3:]) for row in expected]
    assert _read([path], flags) == (expected, [])


PACKERS = {
    "gz": lambda review, _: gzip.compress(review),
    "zip": lambda review, business: _zip({"business.json": business, "d/review.json": review}),
    "tar": lambda review, business: _tar({"d/business.json": business, "review.json": review}),
    "tar.gz": lambda review, _: gzip.compress(_tar({"._review.json": b"x", "review.json": review})),
    "gz in tar": lambda review, _: _tar({"reviews_Books.json.gz": gzip.compress(review)}),
    "Yelp": lambda review, business: _zip(
        {
            "__MACOSX/._yelp_dataset.tar": b"resource fork",
            "Yelp JSON/Agreement_of_reviews.pdf": b"%PDF",
            "Yelp JSON/yelp_dataset.tar": _tar(
                {
                    "Dataset_User_Agreement.pdf": b"%PDF",
                    "yelp_academic_dataset_business.json": business,
                    "yelp_academic_dataset_review.json": review,
                }
            ),
        }
    ),
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_packed_dump_is_read_like_a_plain_one(tmp_path, packer):
    written = _reviews(60)
    names = [{"business_id": f"b{i}", "name": f"Café {i}", "categories": None} for i in range(5)]
    path = tmp_path / "archive"
    path.write_bytes(PACKERS[packer](_ndjson(written), _ndjson(names)))
    assert _read([path]) == (_rows(written), [])
    if "gz" not in packer:
        found, rejects = read_businesses(path, 0.0)
        assert found["name"].to_list() == [f"Café {i}" for i in range(5)] and rejects.is_empty()
        corpus = tmp_path / "corpus"
        both = {"reviews": (str(path),), "businesses": str(path)}
        prepare.run(prepare.PrepareConfig(**both, output=str(corpus), split="by_review"))
        table = pl.read_parquet(corpus / "businesses.parquet")
        assert dict(table["business_id", "name"].rows()) == {f"b{i}": f"Café {i}" for i in range(5)}


def test_businesses_have_their_categories_and_bad_ones_are_rejected(tmp_path):
    path = tmp_path / "business.json"
    given = ["A, B", None, ["A", "B", "A"], [["A", "B"], ["A", "C"]], "", 5, [None], "A"]
    lines = [{"business_id": f"b{i}", "categories": value} for i, value in enumerate(given)]
    path.write_bytes(_ndjson([*lines, {"business_id": "b0", "categories": "late"}]) + b"{}\n[\n")
    found, rejects = read_businesses(path, 1.0)
    names = [["A", "B"], [], ["A", "B"], ["A", "B", "C"], [], ["A"]]
    assert found["categories"].to_list() == names
    assert found["business_id"].to_list() == ["b0", "b1", "b2", "b3", "b4", "b7"]
    assert rejects["line"].to_list() == [6, 7, 10, 11]


def _reference(line: bytes) -> tuple | None:
    """What the json module makes of a line; None where that is no valid review."""
    try:
        record = json.loads(line.decode(), parse_constant=int)  # which fails on NaN
    except (ValueError, RecursionError):
        return None
    return _valid(record) if isinstance(record, dict) else None


def _valid(record: dict) -> tuple | None:
    user, business, stars, text, review_id, raw_date = (
        record.get(name)
        for name in ("user_id", "business_id", "stars", "text", "review_id", "date")
    )
    if not all(
        isinstance(v, str) and re.fullmatch(r"[^\0-\x1f\x7f]+", v) for v in (user, business)
    ):
        return None
    if isinstance(stars, bool) or not isinstance(stars, int | float) or not 0 < stars <= 5:
        return None
    if not isinstance(text, str) or not text.strip() or not isinstance(review_id, str | None):
        return None
    if re.search("[\ud800-\udfff]", user + business + text + (review_id or "")):
        return None
    try:
        date = datetime.strptime(raw_date, FORMAT) if raw_date not in (None, "") else None
    except (TypeError, ValueError):
        return None  # no valid date is written in any other way here
    return review_id or None, user, business, float(np.float32(stars)), date, text


def _expected(name: str, numbered: list[tuple[int, tuple | None]]) -> tuple[list, list]:
    """The rows of `_read`, and file and line of its rejects, by a loop over the records."""
    rows, rejects, seen = [], [], set()
    for line, row in numbered:
        if row is None or row[0] in seen:
            rejects.append((name, line))
        else:
            rows.append((row[0] or f"{name}:{line}", *row[1:]))
            seen |= {row[0]} - {None}
    return rows, rejects


def _numbered(data: bytes) -> list[tuple[int, tuple | None]]:
    lines = enumerate(data.removeprefix(BOM).split(b"\n"), start=1)
    return [(number, _reference(line)) for number, line in lines if line.strip()]


_LINE = 150  # bytes, without the newline


def _many_blocks(folder: Path, newline: bytes) -> tuple[list[Path], list, list]:
    """Four dumps with everything that a cut into blocks may break, and what they hold."""
    line = json.dumps(GOOD | {"review_id": "0000", "text": "q" * 40}).encode()
    line = line.replace(b"q", b"q" * (_LINE - len(line) + 1), 1)
    equal = [line.replace(b"0000", b"%04d" % i) for i in range(20)]  # blocks can end between them
    equal[0] = equal[0].replace(b"qqq", b"", 1)  # after the byte order mark
    two = line.replace(b"0000", b"two1") + b" " + line.replace(b"0000", b"two2")
    long = json.dumps(GOOD | {"review_id": "long", "text": "y" * 600}).encode()
    odd = [b"", b"{", BOM + line, two, b" \t", long, b"\xff", b"[" * 9999, b"null", line, line, b""]
    data = BOM + newline.join([*equal, *odd, *equal[:3], line.replace(b"0000", b"last")])
    plain, packed, table = folder / "a.json", folder / "b.json.gz", folder / "c.csv"
    more = data.replace(b'"review_id": "', b'"review_id": "gz')
    columns = folder / "d.parquet"
    written = _reviews(23), _reviews(17, first=23)
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(more))
    table.write_bytes(_csv(written[0]))
    columns.write_bytes(_parquet(written[1]))
    rows_a, rejects_a = _expected(plain.name, _numbered(data))
    rows_b, rejects_b = _expected(packed.name, _numbered(more))
    assert len(rows_a) == 22 and len(rejects_a) == 11  # so the reference sees both kinds
    rows = rows_a + rows_b + _rows(written[0]) + _rows(written[1])
    return [plain, packed, table, columns], rows, rejects_a + rejects_b


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n"])
@pytest.mark.parametrize("size", [40, _LINE, _LINE + 1, _LINE + 2, 2 * _LINE + 2, 1000, 8 << 20])
def test_the_cut_into_blocks_changes_nothing(tmp_path, monkeypatch, newline, size):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", size)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", min(size, 10_000))
    paths, rows, rejects = _many_blocks(tmp_path, newline)
    found, rejected = _read(paths)
    assert found == rows
    assert [reject[:2] for reject in rejected] == rejects


def test_worker_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 500)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", 5)
    paths, rows, _ = _many_blocks(tmp_path, b"\n")
    by_this_process = _read(paths)
    monkeypatch.setattr(reviews, "_WORTH_PROCESSES", 0)
    assert _read(paths) == by_this_process
    assert by_this_process[0] == rows


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
        ({"date": "yesterday"}, "unreadable date"),
        ({"date": "2018-02-30 10:00:00"}, "unreadable date"),
        ({"date": "0000-01-01 00:00:00"}, "unreadable date"),  # a year that only polars knows
        ({"date": "+10000-01-01 00:00:00"}, "unreadable date"),
        ({"date": 10**400}, "unreadable date"),
        ({"text": " \n"}, "empty text"),
        ({"text": None}, "empty text"),
        (json.dumps(GOOD).encode()[:-9], "truncated"),
        (json.dumps(GOOD).replace("fine", "\0").encode(), "malformed"),
        (json.dumps(GOOD).encode().replace(b"fine", b"\xff"), "not UTF-8"),
        (b"\0\0\0", "malformed"),
        (b"[]", "got `array`"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
        (b"{} {}", "missing required field"),
    ],
)
def test_a_bad_record_is_rejected_and_its_neighbours_are_kept(tmp_path, bad, reason, last):
    line = bad if isinstance(bad, bytes) else json.dumps(GOOD | bad).encode()
    written = _reviews(2)
    lines = [*(json.dumps(review).encode() for review in written), line]
    path = tmp_path / "review.json"
    path.write_bytes(b"\n".join(lines if last else [lines[0], line, lines[1], b""]))
    rows, rejects = _read([path])
    assert rows == _rows(written)
    assert [reject[:2] for reject in rejects] == [(path.name, 3 if last else 2)]
    assert reason in rejects[0][2]


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
    written = _reviews(2)
    written[place] |= change
    path = tmp_path / "review.json"
    path.write_bytes(_ndjson(written))
    assert _read([path]) == (_rows(written), [])


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_dates_in_every_shape_are_read_as_utc(tmp_path, suffix):
    seconds = calendar.timegm((2018, 7, 7, 22, 9, 11))
    same = [MOMENT, "2018-07-07T22:09:11", "2018-07-07T22:09:11Z", "2018-07-08T03:39:11+05:30"]
    same += ["2018-07-07 17:09:11-05:00", seconds, str(seconds), 1000 * seconds, f"{seconds}000"]
    moment = datetime(2018, 7, 7, 22, 9, 11)
    dates = dict.fromkeys(same, moment) | {
        "2018-07-07T22:09:11.250Z": moment.replace(microsecond=250_000),
        "2018-07-07": datetime(2018, 7, 7),
        "": None,
    }
    written = [{**review, "date": date} for review, date in zip(_reviews(99), dates, strict=False)]
    path = tmp_path / f"review.{suffix}"
    path.write_bytes(_csv(written) if suffix == "csv" else _ndjson(written))
    rows, rejects = _read([path])
    assert [row[4] for row in rows] == list(dates.values()) and not rejects


def test_bad_rows_of_a_csv_file_are_rejected_with_their_lines(tmp_path):
    rows = [b"r1,u,b,4,plain,", b"r2,u,b,4", b"r3,u,b,4,x,,,", b'r4,u,b,5,"two\nlines, ""q""",']
    rows += [
        b"r5,u,b,4,\xff,",
        b"r6,u,b,nan,x,",
        b"",
        b"r7,,b,4,x,",
        b"r8,u,b,,x,",
        b"r9,u\0,b,4,x,",
    ]
    rows += [b"r10,u,b,1.5,null,", b'r11,u,b,4,"never closed,']
    path = tmp_path / "reviews.csv"
    path.write_bytes(b"\r\n".join([b"review_id,user_id,business_id,stars,text,date", *rows]))
    found, rejects = _read([path])
    texts = {"r1": "plain", "r4": 'two\nlines, "q"', "r10": "null"}
    assert {row[0]: row[-1] for row in found} == texts
    reasons = {3: "4 fields", 4: "8 fields", 7: "UTF-8", 8: "stars", 10: "user_id", 11: "stars"}
    reasons |= {12: "control character", 14: "5 fields"}
    assert [reject[1] for reject in rejects] == list(reasons)
    assert all(reasons[line] in reason for _, line, reason in rejects)


def test_of_a_repeated_review_id_the_first_is_kept(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    written = [{**review, "review_id": name} for review, name in zip(_reviews(7), "xyxzyzw", strict=True)]
    a.write_bytes(b"not json\n" + _ndjson(written[:4]))
    b.write_bytes(_ndjson(written[4:]))
    rows, rejects = _read([a, b])
    assert rows == _rows([written[i] for i in (0, 1, 3, 6)])
    repeated = [reject[:2] for reject in rejects if reject[2] == "repeated review_id"]
    assert repeated == [("a.json", 4), ("b.json", 1), ("b.json", 2)] and len(rejects) == 4


@pytest.mark.parametrize("kind", ["shorter", "longer", "other text", "bad line", "gz", "parquet"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 300)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", 4)
    write = {"gz": lambda r: gzip.compress(_ndjson(r)), "parquet": _parquet}.get(kind, _ndjson)
    before = [{**review, "text": "same length"} for review in _reviews(60)]
    after = {
        "longer": before * 2,
        "other text": [*before[:30], before[30] | {"text": "other length"}, *before[31:]],
        "bad line": [*before[:30], before[30] | {"stars": "1.0"}, *before[31:]],
    }.get(kind, before[:40])
    paths = [tmp_path / "first", tmp_path / "second"]
    paths[0].write_bytes(write(before))
    paths[1].write_bytes(_ndjson([review | {"review_id": None} for review in before]))
    found = ReviewDumps(paths, {})
    scan = found.scan(0.0)
    paths[0].write_bytes(write(after))
    with pytest.raises(UserError, match="first changed while"):
        list(found.texts(scan.reviews))


def _encrypted(data: bytes) -> bytes:
    """A zip whose flags say so."""
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(header) + flags
        data = data[:at] + b"\x01" + data[at + 1 :]
    return data


DATA = _ndjson(_reviews(60))
BAD_FILES = {
    "truncated.gz": (gzip.compress(DATA)[:-20], "truncated"),
    "truncated.tar": (_tar({"review.json": DATA})[:3000], "truncated"),
    "truncated.zip": (_zip({"review.json": DATA})[:-20], "truncated"),
    "corrupt.zip": (_zip({"review.json": DATA}).replace(b"PK\x01\x02", b"PK\xff\xff"), "damaged"),
    "misnamed.zip": (_zip({"review.json": DATA, "é": b""}).replace("é".encode(), b"\xff\xff"), ""),
    "encrypted.zip": (_encrypted(_zip({"review.json": DATA})), "encrypted"),
    "photos.zip": (_zip({"photos.json": DATA}), "holds no review file"),
    "truncated.parquet": (_parquet(_reviews(60))[:-20], "truncated"),
    "only_its_start.parquet": (b"PAR1", "truncated"),
    "array.json": (json.dumps(_reviews(60)).encode(), "JSON array"),
    "bad.json": (b"neither\n" * 50, "line 1"),
    "bad.csv": (b"x" * 200_000 + b",y\n1,2\n", "line 1"),
    "blank.json": (b"\n\n", "line 1"),
    "some_bad.json": (DATA + b"{}\nx\n", "2 of 62 lines are malformed", "line 61: ", "user_id"),
    "folder": (None, "folder"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_one_line_and_leaves_nothing(tmp_path, name):
    data, *mentions = BAD_FILES[name]
    path = tmp_path / name
    path.mkdir() if data is None else path.write_bytes(data)
    flags = [f"--reviews={path}", f"--output={tmp_path / 'corpus'}"]
    assert_one_line_mistake(run_command("sasnet_jax.prepare", *flags), name, *mentions)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("most", ["texts", "rejects"])
def test_a_full_device_is_one_line_and_leaves_nothing(tmp_path, most):
    path = tmp_path / "review.json"
    noise = np.random.default_rng(0).bytes(30_000).hex()
    written = _reviews(60) + ([GOOD | {"text": noise}] if most == "texts" else [])
    path.write_bytes(_ndjson(written) + (b"{}\n" * 2000 if most == "rejects" else b""))
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
    limited += "runpy.run_module('sasnet_jax.prepare', run_name='__main__')"
    flags = [f"--reviews={path}", f"--output={tmp_path / 'corpus'}", "--max_reject_fraction=1"]
    command = [sys.executable, "-c", limited, *flags, "--split=by_review"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert_one_line_mistake(result, "File too large")
    assert list(tmp_path.iterdir()) == [path]


def _assert_read_as(path: Path, numbered: list[tuple[int, tuple | None]], whole: bool) -> None:
    """The reader and `prepare` give what is expected; a file that is not whole may be refused."""
    output = path.parent / "corpus"
    flags = {"reviews": (str(path),), "output": str(output), "split": "by_review"}
    try:
        rows, rejects = _read([path])
        assert (rows, [reject[:2] for reject in rejects]) == _expected(path.name, numbered)
        prepare.run(prepare.PrepareConfig(**flags, max_reject_fraction=1.0))
    except UserError:
        assert not whole and not output.exists()
        return
    table = pl.read_parquet(output / "reviews.parquet")
    for side, file in (("user", "users"), ("business", "businesses")):
        table = table.join(pl.read_parquet(output / f"{file}.parquet"), on=side)
    kept = table.select("review_id", "user_id", "business_id", "stars", "date", "text").rows()
    assert set(kept) <= set(rows)
    assert len(kept) == len({row[1:3] for row in rows})
    description = json.loads((output / "corpus.json").read_text())
    written = [json.loads(line) for line in (output / "rejects.ndjson").open()]
    assert description["lines"] == description["steps"][0]["reviews"] + len(written)
    assert description["rejected"] == Counter(reject["reason"] for reject in written)


IDS = ["u1", "u2", "../x", "☃", "", None, 5, "a\nb", "\ud800"]
BODY = {
    "user_id": st.sampled_from(IDS),
    "business_id": st.sampled_from(IDS),
    "stars": st.sampled_from([1, 4.5, 5, 0.1, 0, -1, 6, None, "4", True, float("nan"), []]),
    "text": st.sampled_from(["fine", "two\nlines", "\0", "☃", "", " \n", None, 5, "\ud800"]),
}
EXTRA = {"review_id": st.sampled_from(["r1", "x", "y", "", None, 7]), "extra": st.just([{}])}
DATES = st.sampled_from([None, "", MOMENT, "yesterday", "2018-02-30 10:00:00", [], 10**400])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(GOOD)), inner),
    max_leaves=6,
)
RECORDS = st.fixed_dictionaries(BODY, optional=EXTRA).map(lambda r: json.dumps(r).encode())
LINES = st.one_of(
    RECORDS,
    st.fixed_dictionaries(BODY, optional=EXTRA | {"date": DATES}).map(lambda r: _ndjson([r], b"")),
    st.builds(
        lambda line, at, junk: line[:at] + junk.encode() + line[at:],
        RECORDS,
        st.integers(0, 99),
        st.text(max_size=3),
    ),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(
    lines=st.lists(LINES, max_size=15),
    newline=st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"]),
    start=st.sampled_from([b"", BOM]),
    packed=st.booleans(),
    cut=st.just(0) | st.integers(1, 9000),
)
def test_whatever_the_lines_every_one_is_kept_or_rejected(lines, newline, start, packed, cut):
    base = [json.dumps(review).encode() for review in _reviews(60)]
    data = start + newline.join([*base[:50], *lines, *base[50:]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "review.json"
        if packed and cut:
            path.write_bytes(gzip.compress(data)[:-cut])
            if path.stat().st_size > 1:
                with pytest.raises(UserError, match="truncated"):
                    ReviewDumps([path], {})
            return
        data = data[: len(data) - cut]
        path.write_bytes(gzip.compress(data) if packed else data)
        _assert_read_as(path, _numbered(data), whole=not cut)


HEADER = ["review_id", "user_id", "business_id", "stars", "text", "date"]
CELLS = st.tuples(
    st.sampled_from(["", "r1", "x", "y"]),
    st.sampled_from(["u1", "u2", "", "a\tb"]),
    st.sampled_from(["b1", "☃", "", "a\nb"]),
    st.sampled_from(["4", "4.5", "5e0", " 4", "4 ", "nan", "inf", "0", "6", "", "four"]),
    st.sampled_from(["fine", 'a "b", c', "x\r\ny\n", "", " ", "null"]),
    st.sampled_from(["", MOMENT, "yesterday"]),
).map(lambda cells: _csv([dict(zip(HEADER, cells, strict=True))]).split(b"\n", 1)[1])
RAW = (st.text('",\n\rab', max_size=12).map(str.encode) | st.binary(max_size=12)).map(
    lambda raw: raw + b"\n"
)


def _numbered_csv(data: bytes) -> list[tuple[int, tuple | None]]:
    """The same as `_numbered`, by the csv module."""
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
    reader = csv.reader(text)
    header, numbered, line = next(reader), [], 2
    for values in reader:
        if values:
            record = dict(zip(header, values, strict=False))
            if re.fullmatch(r"\d+(\.\d+)?(e\d+)?", record.get("stars", "")):
                record["stars"] = float(record["stars"])
            numbered.append((line, _valid(record) if len(values) == len(header) else None))
        line = reader.line_num + 1
    return numbered


@QUICK
@given(rows=st.lists(CELLS | RAW, max_size=12), start=st.sampled_from([b"", BOM]))
def test_whatever_the_csv_rows_every_one_is_kept_or_rejected(rows, start):
    data = start + _csv(_reviews(60)) + b"".join(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reviews.csv"
        path.write_bytes(data)
        _assert_read_as(path, _numbered_csv(data), whole=True)
