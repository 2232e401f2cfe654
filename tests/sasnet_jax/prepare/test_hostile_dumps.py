import contextlib
import gzip
import io
import json
import os
import random
import socket
import tarfile
import tracemalloc
import zipfile

import polars as pl
import pytest
from conftest import assert_one_line_mistake
from written_dumps import (
    GOOD,
    csv_table,
    ndjson,
    parquet,
    read,
    reviews,
    rows_of,
    run_prepare,
    tarred,
    zipped,
)

from sasnet_jax.cli import UserError
from sasnet_jax.prepare import archives, dumps, filters, records
from sasnet_jax.prepare.rejects import Rejects
from sasnet_jax.prepare.reviews import ReviewDumps

MB = 1 << 20


@contextlib.contextmanager
def _memory_below(most_bytes: int):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


@pytest.fixture
def small_limits(monkeypatch):
    """A megabyte for a line and for what a packed file may unpack to."""
    monkeypatch.setattr(dumps, "BLOCK_BYTES", MB // 4)
    for module in (archives, dumps):
        monkeypatch.setattr(module, "LONGEST_LINE", MB)
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 3 * MB)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_line_is_rejected_and_never_in_memory(tmp_path, small_limits, packed, ended):
    written = reviews(40)
    endless = b'{"user_id": "' + random.Random(0).randbytes(3 * MB).hex().encode()
    parts = [ndjson(written[:20]), endless, b'"}\n' + ndjson(written[20:]) if ended else b""]
    path = tmp_path / "review.json"
    path.write_bytes(gzip.compress(b"".join(parts)) if packed else b"".join(parts))
    del endless, parts
    with _memory_below(8 * MB):
        rows, rejects = read([path])
    assert rows == rows_of(written if ended else written[:20])
    assert rejects == [(path.name, 21, "line longer than 64 MB")]


@pytest.mark.parametrize("size", [MB - 1, MB, MB + 1])
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_as_long_as_the_limit_is_kept(tmp_path, small_limits, packed, size):
    lines = ndjson(reviews(1)), json.dumps(GOOD).encode() + b"\n", ndjson(reviews(2)[1:])
    data = lines[0] + lines[1].replace(b"fine", b"x" * (size - len(lines[1]) + 4)) + lines[2]
    path = tmp_path / "review.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    rows, rejects = read([path])
    assert len(rows) == (3 if size <= MB else 2) and len(rejects) == 3 - len(rows)


@pytest.mark.parametrize(
    ("name", "start", "endless"),
    [
        ("line.json", b"", b"x"),
        ("line.csv", csv_table(reviews(20)), b"b,"),
        ("quote.csv", csv_table(reviews(20)) + b'u,b,4,"', b"never closed\n"),
        ("fields.csv", csv_table(reviews(20)), b'"\n",'),
    ],
)
def test_a_dump_of_one_endless_record_is_refused(tmp_path, small_limits, name, start, endless):
    path = tmp_path / name
    path.write_bytes(start + endless * (4 * MB // len(endless)))
    with _memory_below(40 * MB):
        result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    assert_one_line_mistake(result, name, " MB")
    assert list(tmp_path.iterdir()) == [path]


def _tar_of_one_header(size: int) -> bytes:
    """A tar with an extended header of digits, in which a search takes its square."""
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XHDTYPE, size
    return header.tobuf(tarfile.USTAR_FORMAT) + b"1" * size


PACKED = {
    "gz": lambda data: gzip.compress(data),
    "gz in gz": lambda data: gzip.compress(gzip.compress(data)),
    "zip": lambda data: zipped({"review.json": data}),
    "tar in gz": lambda data: gzip.compress(tarred({"review.json": data})),
    "behind": lambda data: gzip.compress(tarred({"x.txt": data, "review.json": ndjson([GOOD])})),
    "directory": lambda data: gzip.compress(
        zipped({"x" * 60_000 + str(i): b"" for i in range(40)})
    ),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_file_that_unpacks_to_more_than_text_can_is_refused(tmp_path, small_limits, kind):
    lines = ndjson([GOOD | {"text": "x" * 10_000, "review_id": str(i)} for i in range(1000)])
    path = tmp_path / "review"
    path.write_bytes(PACKED[kind](lines))
    with _memory_below(12 * MB):
        result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    said = (
        () if kind in ("directory", "header") else (f"{path.stat().st_size:,} bytes", "unpack it")
    )
    assert_one_line_mistake(result, str(path), *said)
    assert list(tmp_path.iterdir()) == [path]


def _parquet_of_one_text(**changes) -> bytes:
    frame = pl.DataFrame([{**review, "text": "x" * 20_000} for review in reviews(1000)])
    file = io.BytesIO()
    frame.with_columns(**changes).write_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize(
    "changes",
    [{}, {"text": pl.col("text").cast(pl.Categorical)}, {"text": pl.lit("x").repeat_by(2000)}],
    ids=["text", "category", "list"],
)
def test_a_parquet_file_of_a_value_over_and_over_is_refused(tmp_path, small_limits, changes):
    path = tmp_path / "review.parquet"
    path.write_bytes(_parquet_of_one_text(**changes))
    assert path.stat().st_size < MB // 10
    with _memory_below(8 * MB):
        result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    assert_one_line_mistake(result, "review.parquet", f"{path.stat().st_size:,} bytes", "NDJSON")
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_parquet_that_are_too_long_are_rejected(tmp_path, monkeypatch):
    from sasnet_jax.prepare import parquet as reader

    monkeypatch.setattr(reader, "LONGEST_LINE", 5000)
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 300)
    written = reviews(60)
    long = [
        {**review, "text": "x" * 6000} if i % 7 == 3 else review for i, review in enumerate(written)
    ]
    path = tmp_path / "review.parquet"
    path.write_bytes(parquet(long))
    rows, rejects = read([path])
    assert rows == rows_of([review for i, review in enumerate(written) if i % 7 != 3])
    assert [reject[1] for reject in rejects] == list(range(4, 61, 7))


FORMATS = {"json": ndjson, "json.gz": lambda rs: gzip.compress(ndjson(rs)), "csv": csv_table}
FORMATS |= {"parquet": parquet, "zip": lambda rs: zipped({"review.json": ndjson(rs)})}


def _outcome(paths, fraction: float) -> str:
    try:
        ReviewDumps(paths, {}).scan(Rejects(io.BytesIO(), fraction))
    except UserError as error:
        assert "are malformed" in str(error)
        return "refused"
    return "read"


@pytest.mark.parametrize("bad_first", [True, False])
@pytest.mark.parametrize("suffix", FORMATS)
def test_stopping_early_never_refuses_what_the_whole_allows(
    tmp_path, monkeypatch, suffix, bad_first
):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 100)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", 3)
    rng = random.Random(suffix)
    for bad in (0, 1, 7, 39, 40):
        short = [{**r, "user_id": "u", "business_id": "b", "text": ""} for r in reviews(40)]
        written = [{**r, "stars": 9.0} if i < bad else r for i, r in enumerate(short)]
        rng.shuffle(written)
        written.sort(key=lambda r: (r["stars"] == 9) != bad_first)
        paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
        for path, part in zip(paths, (written[:25], written[25:]), strict=True):
            path.write_bytes(FORMATS[suffix](part))
        assert _outcome(paths, bad / 40) == "read"
        if bad:
            assert _outcome(paths, (bad - 0.5) / 40) == "refused"


@pytest.mark.parametrize("suffix", ["json", "zip", "csv", "parquet"])
def test_a_dump_of_malformed_records_is_not_read_to_its_end(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(dumps, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(dumps, "_BLOCK_RECORDS", 20)
    scanned, scan = [], records.scan_block
    monkeypatch.setattr(records, "scan_block", lambda *args: scanned.append(1) or scan(*args))
    path = tmp_path / f"review.{suffix}"
    path.write_bytes(FORMATS[suffix]([{**review, "stars": 9.0} for review in reviews(20_000)]))
    assert _outcome([path], 0.001) == "refused"
    blocks = sum(1 for _ in dumps.open_dump(path, "review").blocks(list(GOOD)))
    assert len(scanned) < blocks / 10


def test_rejects_take_less_memory_than_their_lines(tmp_path):
    path = tmp_path / "review.json"
    path.write_bytes(ndjson(reviews(100)) + b"x\n" * 60_000)
    found = ReviewDumps([path], {})
    with (tmp_path / "rejects").open("wb") as file, _memory_below(8 * MB):
        found.scan(Rejects(file, 1.0))
    assert (tmp_path / "rejects").read_bytes().count(b"\n") == 60_000


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_dump_that_is_rewritten_between_the_passes_is_refused(tmp_path, monkeypatch, how):
    path, filtered = tmp_path / "review.json", filters.with_enough_reviews
    before = [{**review, "text": "first version"} for review in reviews(60)]
    path.write_bytes(ndjson(before))

    def rewrite(*args):
        times = path.stat()
        if how == "replaced":
            path.rename(tmp_path / "old")
        path.write_bytes(ndjson(before).replace(b"first version", b"other version"))
        if how == "replaced":  # as `cp -p` does
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        else:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
        return filtered(*args)

    monkeypatch.setattr(filters, "with_enough_reviews", rewrite)
    result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    assert_one_line_mistake(result, "review.json changed while it was being read")
    assert not (tmp_path / "corpus").exists()


EVIL = "\x1b[31mred\n" + "x" * 60_000
NAMED = {
    "names.zip": zipped({EVIL: b"", "a\rb.txt": b""}),
    "names.tar": tarred({EVIL[:5000]: b"", "a\rb.txt": b""}),
    "names.json": json.dumps({EVIL: 1, "a\nb": 2, "plain": 3}).encode() + b"\n",
    "many.zip": zipped({f"{i}.txt": b"" for i in range(5000)}),
    "lied.zip": zipped({f"{EVIL[:200]}review.json": ndjson(reviews(9))}).replace(
        b"\x1b", b"\x1c", 1
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_names_from_data_are_shown_short_and_printable(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(NAMED[name])
    result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    assert_one_line_mistake(result, name)
    assert result.stderr.rstrip("\n").isprintable() and len(result.stderr) < 1000


@pytest.mark.parametrize("flag", ["reviews", "businesses"])
@pytest.mark.parametrize(
    ("kind", "mention"),
    [
        ("pipe", "is not a regular file"),
        ("socket", "is not a regular file"),
        ("device", "is not a regular file"),
        ("folder", "is a folder"),
        ("missing", "does not exist"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, flag, kind, mention):
    paths = {"reviews": tmp_path / "review.json", "businesses": tmp_path / "business.json"}
    paths["reviews"].write_bytes(ndjson(reviews(60)))
    paths["businesses"].write_bytes(ndjson([{"business_id": "b"}]))
    paths[flag].unlink()
    listener = socket.socket(socket.AF_UNIX)
    if kind == "pipe":
        os.mkfifo(paths[flag])
    elif kind == "socket":
        with contextlib.chdir(tmp_path):  # a socket's path is short
            listener.bind(paths[flag].name)
    elif kind == "folder":
        paths[flag].mkdir()
    elif kind == "device":
        paths[flag].symlink_to("/dev/zero")
    flags = [f"--{name}={path}" for name, path in paths.items()]
    result = run_prepare(*flags, f"--output={tmp_path / 'corpus'}")
    listener.close()
    assert_one_line_mistake(result, str(paths[flag]), mention)
    assert not (tmp_path / "corpus").exists()


def test_a_zip_of_another_method_says_to_unpack_it(tmp_path):
    path = tmp_path / "review.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("review.json", ndjson(reviews(60)))
    result = run_prepare(f"--reviews={path}", f"--output={tmp_path / 'corpus'}")
    assert_one_line_mistake(result, "review.zip", "unpack it")


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_ten_thousand_columns_are_read(tmp_path, suffix):
    more = {f"c{i}": "" for i in range(10_000)}
    path = tmp_path / f"review.{suffix}"
    path.write_bytes(FORMATS[suffix]([{**review, **more} for review in reviews(5)]))
    assert read([path]) == (rows_of(reviews(5)), [])


def test_an_id_of_a_text_is_rejected(tmp_path):
    path = tmp_path / "review.json"
    path.write_bytes(ndjson([*reviews(2), GOOD | {"user_id": "u" * 1001}]))
    rows, [(_, line, reason)] = read([path])
    assert rows == rows_of(reviews(2)) and line == 3 and "<= 1000" in reason
