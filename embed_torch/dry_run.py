"""Reports what an embedding run would do and how long it would take; writes nothing."""

import itertools
import shutil
import time
from pathlib import Path

import numpy as np

from embed_torch import store
from embed_torch.cli import ProgressBar, UserError
from embed_torch.config import EmbedConfig
from embed_torch.corpus import Texts
from embed_torch.encoder import Encoder
from embed_torch.manifest import Manifest
from embed_torch.reuse import Reused

_ROWS_AT_ONCE = 4096
_SAMPLE = 64  # reviews of all lengths, whose embedding is timed
_SAMPLE_SECONDS = 3.0
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


def report(config: EmbedConfig, texts: Texts, encoder: Encoder, manifest: Manifest) -> None:
    """Prints rows, tokens, length percentiles, disk, expected time and the first prompt.

    The time is extrapolated from a small sample, embedded on the device.
    """
    if not len(texts.reviews):
        raise UserError(f"{config.corpus} has no reviews")
    lengths, uncut = _lengths(texts, encoder)
    percentiles = zip(_PERCENTILES, np.percentile(lengths, _PERCENTILES), strict=True)
    shares = ", ".join(f"{share} % <= {length:.0f}" for share, length in percentiles)
    print(f"{lengths.size:,} reviews, {len(texts.categories):,} category names")
    print(f"{lengths.sum():,} tokens; of the reviews, {shares}")
    cut = (uncut > lengths).sum()
    print(
        f"{cut:,} reviews have more than {encoder.max_tokens} tokens: --truncate={config.truncate}"
    )
    rows, scaled = lengths.size, "to length 1" if encoder.normalize else "not"
    print(f"poolings {','.join(encoder.poolings)}, over {config.pool_over}; {scaled} normalized")
    needed = store.bytes_needed(store.kinds_of(manifest, len(texts.categories)))
    free = shutil.disk_usage(_existing(Path(config.output))).free
    print(f"{needed / 1e9:.2f} GB on disk, where {free / 1e9:.2f} GB are free")
    left = lengths.sum()
    if config.reuse:
        reused = Reused(Path(config.reuse), manifest)
        copied, _ = reused.look_up(store.text_hashes(texts.reviews))
        left -= lengths[copied].sum()
        print(
            f"{copied.size:,} reviews would be copied from {config.reuse}: {left:,} tokens are left"
        )
    print(f"the first input:\n{encoder.input_text(texts.reviews[0])}")
    sample = np.argsort(lengths, kind="stable")[:: max(1, rows // _SAMPLE)]
    rate = _tokens_per_second(encoder, texts.reviews.gather(sample).to_list())
    duration = ProgressBar.format_interval(left / rate)
    print(f"{rate:,.0f} tokens/s on a sample of {sample.size}: about {duration} with one worker")


def _lengths(texts: Texts, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each review's input, cut and uncut."""
    lengths: list[int] = []
    uncut: list[int] = []
    with ProgressBar(total=len(texts.reviews), desc="tokenizing", unit="review", delay=5) as bar:
        for first in range(0, len(texts.reviews), _ROWS_AT_ONCE):
            part = texts.reviews[first : first + _ROWS_AT_ONCE].to_list()
            inputs = encoder.review_inputs(list(range(first, first + len(part))), part)
            lengths += map(len, inputs.ids)
            uncut += inputs.uncut
            bar.update(len(part))
    return np.array(lengths), np.array(uncut)


def _tokens_per_second(encoder: Encoder, texts: list[str]) -> float:
    """Measures the speed on whole batches of a sample."""
    inputs = encoder.review_inputs(list(range(len(texts))), texts)
    whole = encoder.batch(inputs)
    batches = [whole.part(members) for members in encoder.plan(inputs)]
    network = encoder.network
    network.embed(batches[0])  # the first use of a shape is slow
    tokens, started = 0, time.perf_counter()
    for batch in itertools.cycle(batches):
        network.embed(batch)
        tokens += sum(map(len, batch.ids))
        seconds = time.perf_counter() - started
        if seconds > _SAMPLE_SECONDS:
            break
    return tokens / seconds


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
