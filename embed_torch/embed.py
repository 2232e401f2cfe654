"""Embeds a corpus: texts -> tokens -> batches by length -> embeddings -> store.

Reviews are embedded in windows of some thousands, in row order: while one window is embedded, the
next is tokenized. Which inputs share a batch depends on token counts and flags only, so a run that
was interrupted, or that has another number of workers with as many threads, writes the same bytes.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from embed_torch import __version__, corpus, dry_run, packing, store
from embed_torch.cli import Preempted, ProgressBar, UserError, on_sigterm
from embed_torch.config import EmbedConfig
from embed_torch.encoder import Encoder
from embed_torch.engines import Engine, Task, open_engine
from embed_torch.files import (
    claim,
    refuse_other_settings,
    say_complete,
    sole_writer,
    texts_sha256,
)
from embed_torch.inputs import Inputs
from embed_torch.manifest import CATEGORIES, MANIFEST, Manifest, read_manifest
from embed_torch.reuse import Reused
from embed_torch.store import StoreWriter

_WINDOW_ROWS = 8192
_FLUSH_SECONDS = 5.0  # most work that a kill undoes, besides the batches in progress


def run(config: EmbedConfig) -> None:
    """Embeds a corpus, or verifies that its store is complete.

    Raises:
      UserError: the corpus, the model or the output has a fault that the user can correct.
      Preempted: SIGTERM arrived, and everything finished is saved.
    """
    with on_sigterm(_stop):
        _run(config)


def _run(config: EmbedConfig) -> None:
    output = Path(config.output)
    claim(output, *store.RECORDS)
    texts = corpus.read_texts(Path(config.corpus))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    encoder = Encoder(config)
    manifest = _describe(encoder, texts)
    if config.dry_run:
        dry_run.report(config, texts, encoder, manifest)
        return
    with sole_writer(output):
        if (output / MANIFEST).exists():
            before = read_manifest(output)
            refuse_other_settings(output, before.settings, manifest.settings)
            store.check(output, before)
            store.remove_scratch(output)
            say_complete(output)
            return
        _Job(config, texts, encoder, manifest).embed()


def _describe(encoder: Encoder, texts: corpus.Texts) -> Manifest:
    """The manifest of the store to write; its counts are still 0."""
    versions = {"python": sys.version.split()[0], "sasnet": __version__}
    versions |= {"torch": str(torch.__version__), "transformers": transformers.__version__}
    return Manifest(
        **encoder.settings(),
        **encoder.to_open_again(),
        texts_sha256=texts.sha256,
        category_names_sha256=texts_sha256(texts.categories) if texts.categories else None,
        rows=len(texts.reviews),
        reused=0,
        truncated=0,
        versions=versions,
    )


class _Job:
    """One run that writes a store, from the beginning or from where its journal ends."""

    def __init__(
        self,
        config: EmbedConfig,
        texts: corpus.Texts,
        encoder: Encoder,
        manifest: Manifest,
    ):
        self._config = config
        self._texts = texts
        self._encoder = encoder
        self._manifest = manifest
        self._batch_tokens = encoder.batch_tokens
        self._reused = Reused(Path(config.reuse), manifest) if config.reuse else None
        self._left: dict[int, set[str]] = {}  # names of batches still to embed, of windows begun
        self._windows_begun = 0

    def embed(self) -> None:
        """Embeds what is still missing, and completes the store."""
        config, started = self._config, time.monotonic()
        print(f"loading {config.model} ...")
        with open_engine(config.engine, self._encoder.loading, config.workers) as engine:
            self._open_store()
            try:
                tokens = self._embed_tasks(engine)
            except UserError:
                self._writer.flush()
                self._writer.discard_if_empty()
                raise
            finally:
                self._writer.flush()
        rate = tokens / (time.monotonic() - started)
        rows = len(self._texts.reviews)
        total = int(self._writer.tokens.sum(dtype=np.int64))
        cut = self._writer.finish(reused=rows - self._rows.size)
        print(
            f"{rows:,} reviews, {total:,} tokens, {cut:,} truncated -> {config.output} "
            f"({tokens:,} tokens embedded, {rate:,.0f} a second, loading included)"
        )

    def _open_store(self) -> None:
        config, texts, reused = self._config, self._texts, self._reused
        plan = {
            "batch_tokens": self._batch_tokens,
            "window_rows": _WINDOW_ROWS,
            "reuse": reused and reused.sha256,
        }
        self._writer = StoreWriter(Path(config.output), self._manifest, len(texts.categories), plan)
        self._writer.text_hashes[:] = store.text_hashes(texts.reviews)
        self._rows = np.arange(len(texts.reviews))
        if reused:
            self._rows = reused.copy_rows(self._writer, self._encoder.poolings)
            print(f"{len(texts.reviews) - self._rows.size:,} reviews copied from {config.reuse}")

    def _embed_tasks(self, engine: Engine) -> int:
        """Embeds all tasks by an engine; returns the number of their tokens."""
        texts = self._rows.size + len(self._texts.categories)
        tokens, in_flight, flushed = 0, 0, time.monotonic()
        with ProgressBar(total=texts, desc="embedding", unit="text", delay=1) as bar:
            tasks, again = self._tasks(skipped=bar.update), deque[Task]()
            while True:
                while in_flight < engine.capacity:
                    task = again.popleft() if again else next(tasks, None)
                    if task is None:
                        break
                    engine.submit(task)
                    in_flight += 1
                if not in_flight:
                    return tokens
                task, result = engine.next_finished()
                in_flight -= 1
                if result is None:
                    again.extend(self._halve(task))
                    continue
                self._write(task, result)
                tokens += sum(map(len, task.batch.ids))
                bar.set_postfix_str(f"{tokens / bar.format_dict['elapsed']:,.0f} tokens/s", False)
                bar.update(len(task.rows))
                if time.monotonic() > flushed + _FLUSH_SECONDS:
                    self._writer.flush()
                    flushed = time.monotonic()

    def _tasks(self, skipped: Callable[[int], Any]) -> Iterator[Task]:
        """Yields the batches that are not done; tells `skipped` how many texts it passes over."""
        journal = self._writer.journal
        for window, inputs in self._windows(skipped):
            self._windows_begun = window + 1
            whole = self._task_of(window, inputs)
            if inputs.of == "review":
                self._writer.tokens[inputs.rows] = [len(ids) for ids in inputs.ids]
                self._writer.tokens_uncut[inputs.rows] = inputs.uncut
            plan = self._encoder.plan(inputs, journal.budget(window, self._batch_tokens))
            batches = {str(number): members for number, members in enumerate(plan)}
            for name in sorted(journal.split[window], key=len):  # a batch before its halves
                if name not in batches:
                    raise journal.damaged()
                batches |= packing.halves(name, batches.pop(name))
            done = journal.done[window]
            skipped(sum(len(members) for name, members in batches.items() if name in done))
            self._left[window] = set(batches) - done
            self._close_if_done(window)
            for name, members in batches.items():
                if name not in done:
                    yield whole.part(name, members)

    def _task_of(self, window: int, inputs: Inputs) -> Task:
        """A task of all inputs of a window."""
        batch = self._encoder.batch(inputs)
        arrays = (CATEGORIES,) if inputs.of == "category" else batch.poolings
        return Task(window, "", arrays, inputs.rows, batch)

    def _windows(self, skipped: Callable[[int], Any]) -> Iterator[tuple[int, Inputs]]:
        """Yields the windows that are not complete, tokenized ahead; category names come last."""
        rows = np.array_split(self._rows, range(_WINDOW_ROWS, self._rows.size, _WINDOW_ROWS))
        names = self._texts.categories
        complete = self._writer.journal.complete
        with ThreadPoolExecutor(1) as background:
            ahead: deque[tuple[int, Future[Inputs]]] = deque()
            for window in range(len(rows) + 1):
                of_reviews = window < len(rows)
                texts = len(rows[window]) if of_reviews else len(names)
                if window in complete or not texts:
                    skipped(texts)
                elif of_reviews:
                    future = background.submit(self._tokenize, rows[window].tolist())
                    ahead.append((window, future))
                else:
                    future = background.submit(self._encoder.category_inputs, names)
                    ahead.append((window, future))
                # One window stays ahead as long as more are to come.
                while len(ahead) > 1 or (ahead and not of_reviews):
                    first, inputs = ahead.popleft()
                    yield first, inputs.result()

    def _tokenize(self, rows: list[int]) -> Inputs:
        return self._encoder.review_inputs(rows, self._texts.reviews.gather(rows).to_list())

    def _write(self, task: Task, result: dict[str, np.ndarray]) -> None:
        arrays = {
            array: result[name]
            for array, name in zip(task.arrays, task.batch.poolings, strict=True)
        }
        self._writer.write(task.window, task.name, task.rows, arrays)
        self._left[task.window].discard(task.name)
        self._close_if_done(task.window)

    def _close_if_done(self, window: int) -> None:
        if not self._left[window]:
            self._writer.flush()
            self._writer.journal.note_complete(window)

    def _halve(self, task: Task) -> list[Task]:
        """Splits a task that did not fit into memory into halves.

        Raises:
          UserError: the task is a single text.
        """
        if len(task.rows) == 1:
            raise UserError(
                f"the memory does not hold review {task.rows[0]} of {len(task.batch.ids[0])} "
                "tokens: cut it by a smaller --max_tokens, or give --dtype=bfloat16"
            )
        journal = self._writer.journal
        unplanned = max(self._windows_begun, journal.windows)  # by this run or an earlier one
        budget = journal.budget(unplanned, self._batch_tokens)
        smaller = max(1, sum(map(len, task.batch.ids)) // 2)
        journal.note_split(
            task.window, task.name, budget=min(budget, smaller), budget_from=unplanned
        )
        names = packing.halves(task.name, list(range(len(task.rows))))
        self._left[task.window].discard(task.name)
        self._left[task.window] |= set(names)
        return [task.part(name, members) for name, members in names.items()]


def _stop(*_: Any) -> None:
    """Handles SIGTERM: finished work is saved on the way out, the rest is redone."""
    raise Preempted("run the same command to resume")
