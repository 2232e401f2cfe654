"""Dumps of reviews written by hand, and what the json and csv modules make of them."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
import tarfile
import unittest.mock
import zipfile
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from sasnet_jax import cli
from sasnet_jax.prepare import command as prepare
from sasnet_jax.prepare.rejects import Rejects
from sasnet_jax.prepare.reviews import ReviewDumps

BOM = b"\xef\xbb\xbf"
GOOD = {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 4.0, "text": "fine"}
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_FIELDS = ("review_id", "user_id", "business_id", "stars", "date", "text")
_TEXTS = ["fine", 'a "quote", a comma', "two\r\nlines\n", "naïve ☃ 😀", " {spaces} ", "null"]

Row = tuple  # of _FIELDS


def reviews(count: int, first: int = 0) -> list[dict]:
    """Reviews in Yelp's columns; no pair of user and business occurs twice."""
    return [
        {
            "review_id": f"r{i}",
            "user_id": f"u{i}",
            "business_id": f"b{i % 5}",
            "stars": 1 + i % 9 / 2,
            "text": f"{_TEXTS[i % len(_TEXTS)]} {i}",
            "date": f"{2010 + i % 10}-03-1{i % 9} 2{i % 4}:09:11",
        }
        for i in range(first, first + count)
    ]


def rows_of(written: list[dict]) -> list[Row]:
    """What `read` should give of valid reviews."""
    dated = [{**r, "date": datetime.strptime(r["date"], DATE_FORMAT)} for r in written]
    return [tuple(review[field] for field in _FIELDS) for review in dated]


def read(paths: list[Path], columns: dict[str, str] | None = None) -> tuple[list[Row], list[Row]]:
    """Every usable review with its text; and `file, line, reason` of the rejects in that order."""
    found, file = ReviewDumps(paths, columns or {}), io.BytesIO()
    rejects = Rejects(file, 1.0)
    scan = found.scan(rejects)
    written = [json.loads(line) for line in file.getvalue().splitlines()]
    assert rejects.by_reason == Counter(reject["reason"] for reject in written)
    assert scan.lines == scan.reviews.height + len(written)
    none = pl.DataFrame(schema={"review_id": pl.String, "text": pl.String})
    table = scan.reviews.hstack(pl.concat([none, *found.texts(scan.reviews)]))
    return table.select(_FIELDS).rows(), sorted(tuple(reject.values()) for reject in written)


def run_prepare(*flags: str) -> subprocess.CompletedProcess:
    """What the command prints and its exit status, without a process of its own."""
    streams, code = [io.StringIO(), io.StringIO()], 0
    with (
        unittest.mock.patch.object(sys, "argv", ["prepare", *flags]),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            cli.main(prepare.PrepareConfig, prepare.run, "")
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return subprocess.CompletedProcess(flags, code, *(text.getvalue() for text in streams))


def ndjson(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def csv_table(records: list[dict], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def parquet(records: list[dict]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(records).write_parquet(file)
    return file.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def expected(name: str, numbered: list[tuple[int, Row | None]]) -> tuple[list[Row], list[Row]]:
    """What `read` should give, minus the reasons: by a loop over the records of file `name`.

    Args:
      name: the file's.
      numbered: the line of each record, and its fields; None where it is no valid review.
    """
    rows, rejects, seen = [], [], set()
    for line, row in numbered:
        if row is None or row[0] in seen:
            rejects.append((name, line))
        else:
            rows.append((row[0] or f"{name}:{line}", *row[1:]))
            seen |= {row[0]} - {None}
    return rows, rejects


def lines_by_json(data: bytes) -> list[tuple[int, Row | None]]:
    """`numbered` of an NDJSON file."""
    numbered: list[tuple[int, Row | None]] = []
    for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), start=1):
        try:
            record = json.loads(line.decode(), parse_constant=int)  # which fails on NaN
        except (ValueError, RecursionError):
            record = None
        if line.strip():
            numbered.append((number, _row(record) if isinstance(record, dict) else None))
    return numbered


def records_by_csv(data: bytes) -> list[tuple[int, Row | None]]:
    """`numbered` of a CSV file."""
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
    reader = csv.reader(text)
    header, numbered, line = next(reader), [], 2
    for values in reader:
        record: dict = dict(zip(header, values, strict=False))
        if re.fullmatch(r"\d+(\.\d+)?(e\d+)?", record.get("stars", "")):
            record["stars"] = float(record["stars"])
        if values:
            numbered.append((line, _row(record) if len(values) == len(header) else None))
        line = reader.line_num + 1
    return numbered


def _row(record: dict) -> Row | None:
    """The fields of a valid review; no valid date is written but in DATE_FORMAT."""
    review_id, user, business, stars, date, text = (record.get(field) for field in _FIELDS)
    ids = (user, business)
    if not all(isinstance(name, str) and re.fullmatch(r"[^\0-\x1f\x7f]+", name) for name in ids):
        return None
    if isinstance(stars, bool) or not isinstance(stars, int | float) or not 0 < stars <= 5:
        return None
    if not isinstance(text, str) or not text.strip() or not isinstance(review_id, str | None):
        return None
    if re.search("[\ud800-\udfff]", f"{user}{business}{text}{review_id}"):
        return None
    try:
        date = datetime.strptime(date, DATE_FORMAT) if date not in (None, "") else None
    except (TypeError, ValueError):
        return None
    return review_id or None, user, business, float(np.float32(stars)), date, text
