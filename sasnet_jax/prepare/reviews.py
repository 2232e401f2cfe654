"""Reads raw review dumps: the first step of `prepare`.

In: files as `dumps.py` opens them, with records as `records.py` validates them. Out: the usable
reviews and the rejects. A dump is read twice, by one process per core: `ReviewDumps.scan` keeps
everything but the texts; `ReviewDumps.texts` then reads those of the reviews that were chosen. So
the texts of millions of reviews never have to be in memory.
"""

import bisect
import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from loky import ProcessPoolExecutor

from sasnet_jax.cli import ProgressBar, UserError
from sasnet_jax.prepare import dumps, filters, formats, records
from sasnet_jax.prepare.dumps import Block
from sasnet_jax.prepare.formats import Columns
from sasnet_jax.prepare.rejects import REPEATED_ID, Rejects

_REQUIRED = ("user_id", "business_id", "stars")  # without them a record is malformed
_WORTH_PROCESSES = 32 << 20  # bytes of input above which starting processes pays off
_BLOCKS_AHEAD = 3  # per process


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """What the dumps hold, minus the texts.

    `reviews` are the usable ones in file order: `user_id, business_id, stars, date, text_length`
    (characters), and `block` and `line`, by which `ReviewDumps.texts` finds them again. `lines`
    counts the rejects too.
    """

    reviews: pl.DataFrame
    lines: int


class ReviewDumps:
    """One or more dumps of reviews, read in the order given.

    Args:
      paths: the files.
      columns: what the dumps call a field of FORMATS, if no known format fits.

    Raises:
      UserError: a file is missing, damaged, or in no known format.
    """

    def __init__(self, paths: Sequence[Path], columns: Mapping[str, str]):
        self._dumps = [dumps.open_dump(path, "review") for path in paths]
        recognized = [formats.recognise_reviews(dump, columns) for dump in self._dumps]
        self.formats = [name for name, _ in recognized]
        self._columns = [names for _, names in recognized]
        names = [path.name for path in paths]
        unambiguous = len(set(names)) == len(names)
        self._names = names if unambiguous else [str(path) for path in paths]
        # Known after the first reading, for each block of all dumps:
        self._dump_of_block: list[int] = []
        self._lines_before_block: list[int] = []  # in its dump

    def scan(self, rejects: Rejects) -> Scan:
        """Validates every record, and keeps everything but the text of each usable one.

        Args:
          rejects: where the unusable ones are added.

        Raises:
          UserError: a file is damaged, or too many of the records are malformed.
        """
        rejects.expect(
            sum(
                dump.most_records([theirs for ours, theirs in columns if ours in _REQUIRED])
                for dump, columns in zip(self._dumps, self._columns, strict=True)
            )
        )
        reviews, lines = [pl.DataFrame(schema=records.SCANNED)], 0
        with self._workers() as apply:
            for index, columns in enumerate(self._columns):
                before = 0
                blocks = self._blocks(index, "reading")
                tasks = ((block, columns, rejects.most_malformed) for block in blocks)
                for usable, rejected, newlines in apply(records.scan_block, tasks):
                    reviews.append(usable)
                    rejects.add(self._names[index], rejected, before)
                    lines += usable.height + sum(map(len, rejected.values()))
                    self._dump_of_block.append(index)
                    self._lines_before_block.append(before)
                    before += newlines
        rows = [part.height for part in reviews[1:]]
        usable_reviews = pl.concat(reviews)
        del reviews
        usable_reviews = usable_reviews.with_columns(
            pl.Series("block", np.repeat(np.arange(len(rows), dtype=np.int32), rows)),
            pl.col("line") + np.repeat(np.array(self._lines_before_block, int), rows),
        )
        rejects.refuse_wrong_format(lines)
        repeated = self._repeated_ids(usable_reviews)
        if repeated.any():  # otherwise millions of rows would be copied in vain
            self._reject_repeated(usable_reviews.filter(repeated), rejects)
            usable_reviews = usable_reviews.filter(~repeated)
        return Scan(usable_reviews.drop("id_hash"), lines)

    def texts(self, chosen: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Reads the texts of some reviews.

        Args:
          chosen: rows of `Scan.reviews`, in file order.

        Yields:
          Frames `review_id, text` that together have the rows of `chosen`. A review without an
          id is named after its file and line.

        Raises:
          UserError: a file has changed since the scan.
        """
        parts = chosen.partition_by("block", maintain_order=True)
        with self._workers() as apply:
            results = apply(records.read_texts, self._text_tasks(parts))
            for part, texts in zip(parts, results, strict=True):
                index = self._dump_of_block[part["block"][0]]
                name = self._names[index]
                if not texts["text"].str.len_chars().equals(part["text_length"].cast(pl.UInt32)):
                    raise UserError(f"{self._dumps[index].path} changed while it was being read")
                place = pl.format("{}:{}", pl.lit(name), part["line"])
                yield texts.with_columns(pl.col("review_id").fill_null(place))

    def _text_tasks(self, parts: list[pl.DataFrame]) -> Iterator[tuple[Block, Columns, list[int]]]:
        lines_of = {part["block"][0]: part["line"] for part in parts}
        number = 0
        for index, dump in enumerate(self._dumps):
            for block in self._blocks(index, "reading texts of"):
                if number in lines_of:
                    lines = lines_of[number] - self._lines_before_block[number]
                    yield block, self._columns[index], lines.to_list()
                number += 1
            if number != bisect.bisect(self._dump_of_block, index):
                raise UserError(f"{dump.path} changed while it was being read")

    def _blocks(self, index: int, doing: str) -> Iterator[Block]:
        """The blocks of one dump, under a progress bar."""
        dump = self._dumps[index]
        with ProgressBar(
            total=dump.path.stat().st_size,
            desc=f"{doing} {dump.path.name}",
            unit="B",
            unit_scale=True,
            delay=5,
            mininterval=1,
        ) as bar:
            for block, behind in dump.blocks([theirs for _, theirs in self._columns[index]]):
                yield block
                bar.update(behind - bar.n)

    def _repeated_ids(self, found: pl.DataFrame) -> pl.Series:
        """Whether each review's id occurred before; ids with equal hashes are read again."""
        repeated = pl.zeros(found.height, pl.Boolean, eager=True).alias("repeated")
        candidates = filters.is_repeated(found["id_hash"]).fill_null(False).arg_true()
        if candidates.is_empty():
            return repeated
        ids = pl.concat([part["review_id"] for part in self.texts(found[candidates])])
        return repeated.scatter(candidates.filter(~ids.is_first_distinct()), True)

    def _reject_repeated(self, repeated: pl.DataFrame, rejects: Rejects) -> None:
        dump = pl.Series(self._dump_of_block)[repeated["block"]]
        for (index,), part in repeated.group_by(dump, maintain_order=True):
            rejects.add(self._names[index], {REPEATED_ID: array("q", part["line"])})

    @contextlib.contextmanager
    def _workers(self) -> Iterator[Callable[[Callable, Iterable[tuple]], Iterator[Any]]]:
        """Yields a lazy, ordered `starmap`: in this process, or for large inputs one per core."""
        if sum(dump.path.stat().st_size for dump in self._dumps) < _WORTH_PROCESSES:
            yield itertools.starmap
            return
        has_affinity = hasattr(os, "sched_getaffinity")  # macOS has not
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        with_one_thread: dict[str, Any] = {
            "env": {"POLARS_MAX_THREADS": "1"},
            "initializer": signal.signal,
            "initargs": (signal.SIGINT, signal.SIG_IGN),  # the parent stops its workers
        }
        try:
            with ProcessPoolExecutor(cores, **with_one_thread) as pool:
                yield functools.partial(_starmap, pool, cores * _BLOCKS_AHEAD)
        except BrokenProcessPool:
            raise UserError(
                "a process that read the dumps was killed, likely for lack of memory: free some"
            ) from None


def read_businesses(path: Path, rejects: Rejects) -> pl.DataFrame:
    """Reads businesses: `business_id, name, city, categories` (a list of names).

    Args:
      path: the dump.
      rejects: where malformed records are added, and those that repeat an id.

    Raises:
      UserError: the file is missing or damaged, or too many records are malformed.
    """
    dump = dumps.open_dump(path, "business")
    _, columns = formats.recognise_businesses(dump)
    businesses = [pl.DataFrame(schema=records.BUSINESSES)]
    rejects.expect(dump.most_records([dict(columns)["business_id"]]))
    before = lines = 0
    for block, _ in dump.blocks([theirs for _, theirs in columns]):
        found, rejected, newlines = records.read_businesses(block, columns, rejects.most_malformed)
        businesses.append(found.with_columns(pl.col("line") + before))
        rejects.add(path.name, rejected, before)
        lines += found.height + sum(map(len, rejected.values()))
        before += newlines
    frame = pl.concat(businesses)
    rejects.refuse_wrong_format(lines)
    first = frame["business_id"].is_first_distinct()
    repeated = array("q", frame["line"].filter(~first))
    rejects.add(path.name, {REPEATED_ID: repeated} if repeated else {})
    return frame.filter(first).drop("line")


def _starmap(
    pool: ProcessPoolExecutor, ahead: int, function: Callable, tasks: Iterable[tuple]
) -> Iterator[Any]:
    """`itertools.starmap` on a pool, in order, with at most `ahead` results pending."""
    begun: collections.deque = collections.deque()
    for task in tasks:
        begun.append(pool.submit(function, *task))
        if len(begun) >= ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
