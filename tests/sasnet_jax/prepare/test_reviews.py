import calendar
import gzip
import io
import json
import time
from datetime import datetime

import polars as pl
import pytest
from written_dumps import (
    BOM,
    DATE_FORMAT,
    GOOD,
    csv_table,
    expected,
    lines_by_json,
    ndjson,
    parquet,
    read,
    reviews,
    rows_of,
    tarred,
    zipped,
)

from sasnet_jax.cli import UserError
from sasnet_jax.prepare import command as prepare
from sasnet_jax.prepare import dumps
from sasnet_jax.prepare import reviews as reader
from sasnet_jax.prepare.rejects import Rejects
from sasnet_jax.prepare.reviews import ReviewDumps, read_businesses


def _epoch(review: dict) -> int:
    return calendar.timegm(time.strptime(review["date"], DATE_FORMAT))


def _amazon_2018(review: dict) -> dict:
    return {
        "overall": review["stars"],
        "verified": True,
        "reviewerID": review["user_id"],
        "asin": review["business_id"],
        "style": {"Format:": " Kindle"},
        "reviewText": review["text"],
        "unixReviewTime": _epoch(review),
    }


def _amazon_2023(review: dict) -> dict:
    return {
        "rating": review["stars"],
        "text": review["text"],
        "images": [],
        "asin": "of a variant",
        "parent_asin": review["business_id"],
        "user_id": review["user_id"],
        "timestamp": 1000 * _epoch(review),
    }


def _own(review: dict) -> dict:
    names = ["key", "who", "what", "score", "words", "when"]
    return dict(zip(names, review.values(), strict=True))


def _whole(review: dict) -> dict:
    """Numbers for ids, and a date for a date."""
    ids = {"who": int(review["user_id"][1:]), "what": int(review["business_id"][1:])}
    return _own(review) | ids | {"when": datetime.strptime(review["date"], DATE_FORMAT)}


OWN = {"user_id": "who", "business_id": "what", "stars": "score", "text": "words"}
OWN |= {"date": "when", "review_id": "key"}
FORMATS = {
    "yelp_academic_dataset_review.json": lambda rs: ndjson([{**r, "useful": 0} for r in rs]),
    "Books_5.json": lambda rs: ndjson([_amazon_2018(r) for r in rs]),
    "Books.jsonl": lambda rs: ndjson([_amazon_2023(r) for r in rs]),
    "yelp.csv": csv_table,
    "yelp.tsv": lambda rs: csv_table(rs, "\t"),
    "yelp.txt": lambda rs: csv_table(rs, ";"),
    "yelp [1].parquet": parquet,
    "own.csv": lambda rs: csv_table([_own(r) for r in rs]),
    "own.parquet": lambda rs: parquet([_own(r) for r in rs]),
    "whole.parquet": lambda rs: parquet([_whole(r) for r in rs]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_reviews_that_were_written(tmp_path, name):
    path, written = tmp_path / name, reviews(30)
    path.write_bytes(FORMATS[name](written))
    rows = rows_of(written)
    if name.startswith("Books"):  # Amazon's reviews have no ids
        rows = [(f"{name}:{line}", *row[1:]) for line, row in enumerate(rows, start=1)]
    if name.startswith("whole"):
        rows = [(row[0], row[1][1:], row[2][1:], *row[3:]) for row in rows]
    assert read([path], OWN if name.startswith(("own", "whole")) else {}) == (rows, [])


PACKERS = {
    "gz": lambda review, _: gzip.compress(review),
    "zip": lambda review, business: zipped({"business.json": business, "d/review.json": review}),
    "tar": lambda review, business: tarred({"d/business.json": business, "review.json": review}),
    "tar.gz": lambda review, _: gzip.compress(
        tarred({"._review.json": b"", "review.json": review})
    ),
    "gz in gz": lambda review, _: gzip.compress(gzip.compress(review)),
    "zip in gz": lambda review, _: gzip.compress(zipped({"x.txt": b"", "review.json": review})),
    "zip in zip": lambda review, business: zipped(
        {"all.zip": zipped({"business.json": business, "review.json": review})}
    ),
    "zip in tar in gz": lambda review, _: gzip.compress(
        tarred({"x.txt": b"", "all.ZIP": zipped({"review.json": review})})
    ),
    "gz in tar": lambda review, _: tarred({"reviews_Books.json.gz": gzip.compress(review)}),
    "Yelp": lambda review, business: zipped(
        {
            "__MACOSX/._yelp_dataset.tar": b"resource fork",
            "Yelp JSON/Agreement_of_reviews.pdf": b"%PDF",
            "Yelp JSON/yelp_dataset.tar": tarred(
                {
                    "yelp_academic_dataset_business.json": business,
                    "yelp_academic_dataset_review.json": review,
                }
            ),
        }
    ),
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_packed_dump_is_read_like_a_plain_one(tmp_path, packer):
    written = reviews(60)
    names = {f"b{i}": f"Café {i}" for i in range(5)}
    businesses = [{"business_id": business, "name": names[business]} for business in names]
    path = tmp_path / "archive"
    path.write_bytes(PACKERS[packer](ndjson(written), ndjson(businesses)))
    assert read([path]) == (rows_of(written), [])
    if "gz" not in packer:
        both = {"reviews": (str(path),), "businesses": str(path)}
        output = tmp_path / "corpus"
        prepare.run(prepare.PrepareConfig(**both, output=str(output), split="by_review"))
        table = pl.read_parquet(output / "businesses.parquet")
        assert dict(table["business_id", "name"].rows()) == names


def test_businesses_have_their_categories_and_bad_ones_are_rejected(tmp_path):
    path = tmp_path / "business.json"
    given = ["A, B", None, ["A", "B", "A"], [["A", "B"], ["A", "C"]], "", 5, [None], "A"]
    lines = [{"business_id": f"b{i}", "categories": value} for i, value in enumerate(given)]
    path.write_bytes(ndjson([*lines, {"business_id": "b0", "categories": "late"}]) + b"{}\n[\n")
    file = io.BytesIO()
    found = read_businesses(path, Rejects(file, 1.0))
    names = [["A", "B"], [], ["A", "B"], ["A", "B", "C"], [], ["A"]]
    assert found["categories"].to_list() == names
    assert found["business_id"].to_list() == ["b0", "b1", "b2", "b3", "b4", "b7"]
    lines = [json.loads(reject)["line"] for reject in file.getvalue().splitlines()]
    assert sorted(lines) == [6, 7, 9, 10, 11]


LINE = 150  # bytes, without the newline


def _many_blocks(folder, newline: bytes) -> tuple[list, list, list]:
    """Four dumps with everything that a cut into blocks may break, and what they hold."""
    line = json.dumps(GOOD | {"review_id": "0000", "text": "q"}).encode()
    line = line.replace(b"q", b"q" * (LINE - len(line) + 1))
    equal = [line.replace(b"0000", b"%04d" % i) for i in range(20)]  # blocks can end between them
    equal[0] = equal[0].replace(b"qqq", b"", 1)  # after the byte order mark
    two = line.replace(b"0000", b"two1") + b" " + line.replace(b"0000", b"two2")
    long = line.replace(b"0000", b"long").replace(b"q", b"long")
    odd = [
        BOM + line.replace(b"0000", b"mark"),
        b"",
        b"{",
        two,
        b" \t",
        long,
        b"\xff",
        b"[" * 9999,
        b"null",
        line,
        line,
        b"",
    ]
    data = BOM + newline.join([*equal, *odd, *equal[:3], line.replace(b"0000", b"last")])
    more = data.replace(b'"review_id": "', b'"review_id": "gz')
    table, frame = reviews(23), reviews(17, first=23)
    contents = {"a.json": data, "b.json.gz": gzip.compress(more)}
    contents |= {"c.csv": csv_table(table), "d.parquet": parquet(frame)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    rows_a, rejects_a = expected("a.json", lines_by_json(data))
    rows_b, rejects_b = expected("b.json.gz", lines_by_json(more))
    assert len(rows_a) == 22 and len(rejects_a) == 11  # so the reference sees both kinds
    rows = rows_a + rows_b + rows_of(table) + rows_of(frame)
    return [folder / name for name in contents], rows, rejects_a + rejects_b


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n"])
@pytest.mark.parametrize("size", [40, LINE, LINE + 1, LINE + 2, 2 * LINE + 2, 1000, 8 << 20])
def test_the_cut_into_blocks_changes_nothing(tmp_path, monkeypatch, newline, size):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", size)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", size // 20)
    paths, rows, rejects = _many_blocks(tmp_path, newline)
    found, rejected = read(paths)
    assert found == rows
    assert [reject[:2] for reject in rejected] == rejects


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("start", [b"", BOM])
def test_the_pieces_of_the_blocks_are_the_lines_of_the_file(tmp_path, monkeypatch, packed, start):
    lines = [
        b"{}\n",
        b"\n",
        b"{" + b" " * 9 + b"}\n",
        b"{}  \r\n",
        b"{" + b" " * 40 + b"}\n",
        b"{}",
    ]
    content = start + b"".join(lines)
    path = tmp_path / ("review.json" + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    for block in range(len(BOM) + 1, len(content) + 2):
        for piece in (2, 3, 4, 7, 16, 100):
            monkeypatch.setattr(dumps, "BLOCK_BYTES", block)
            monkeypatch.setattr(dumps, "_PIECE_BYTES", piece)
            blocks = dumps.open_dump(path, "review").blocks(())
            assert [line for part, _ in blocks for some in part.pieces() for line in some] == lines


def test_worker_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 500)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", 5)
    paths, rows, _ = _many_blocks(tmp_path, b"\n")
    by_this_process = read(paths)
    monkeypatch.setattr(reader, "_WORTH_PROCESSES", 0)
    assert read(paths) == by_this_process
    assert by_this_process[0] == rows


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_dates_in_every_shape_are_read_as_utc(tmp_path, suffix):
    moment = datetime(2018, 7, 7, 22, 9, 11)
    seconds = calendar.timegm(moment.timetuple())
    same = ["2018-07-07 22:09:11", "2018-07-07T22:09:11", "2018-07-07T22:09:11Z", seconds]
    same += ["2018-07-08T03:39:11+05:30", "2018-07-07 17:09:11-05:00", 1000 * seconds]
    dates = dict.fromkeys([*same, str(seconds), f"{seconds}000"], moment) | {
        "2018-07-07T22:09:11.250Z": moment.replace(microsecond=250_000),
        seconds + 0.5: moment.replace(microsecond=500_000),
        "2018-07-07": datetime(2018, 7, 7),
        "": None,
    }
    pairs = zip(reviews(len(dates)), dates, strict=True)
    written = [{**review, "date": date} for review, date in pairs]
    path = tmp_path / f"review.{suffix}"
    path.write_bytes(csv_table(written) if suffix == "csv" else ndjson(written))
    rows, rejects = read([path])
    assert [row[4] for row in rows] == list(dates.values()) and not rejects


def test_of_a_repeated_review_id_the_first_is_kept(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    pairs = zip(reviews(7), "xyxzyzw", strict=True)
    written = [{**review, "review_id": name} for review, name in pairs]
    a.write_bytes(b"{}\n" + ndjson(written[:4]))
    b.write_bytes(ndjson(written[4:]))
    rows, rejects = read([a, b])
    assert rows == rows_of([written[i] for i in (0, 1, 3, 6)])
    repeated = [reject[:2] for reject in rejects if reject[2] == "repeated id"]
    assert repeated == [("a.json", 4), ("b.json", 1), ("b.json", 2)] and len(rejects) == 4


@pytest.mark.parametrize("kind", ["shorter", "longer", "other text", "bad line", "gz", "parquet"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 300)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", 4)
    write = {"gz": lambda rs: gzip.compress(ndjson(rs)), "parquet": parquet}.get(kind, ndjson)
    before = [{**review, "text": "same length"} for review in reviews(60)]
    after = {
        "longer": before * 2,
        "other text": [*before[:30], before[30] | {"text": "other length"}, *before[31:]],
        "bad line": [*before[:30], before[30] | {"stars": "1.0"}, *before[31:]],
    }.get(kind, before[:40])
    paths = [tmp_path / "first", tmp_path / "second"]
    paths[0].write_bytes(write(before))
    paths[1].write_bytes(ndjson([review | {"review_id": None} for review in before]))
    found = ReviewDumps(paths, {})
    scan = found.scan(Rejects(io.BytesIO(), 0.0))
    paths[0].write_bytes(write(after))
    with pytest.raises(UserError, match="first changed while"):
        list(found.texts(scan.reviews))
