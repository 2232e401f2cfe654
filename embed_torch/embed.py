"""The embedding run: corpus texts -> tokens -> batches by length -> embeddings -> store."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import transformers
from tqdm import tqdm

from embed_torch import __version__, backbone, corpus, packing
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig
from embed_torch.files import read_json, sole_writer
from embed_torch.store import FILES, MANIFEST, StoreWriter

_POOLINGS = ("mean",)
_TOKENIZE_AT_ONCE = 1000  # texts


def run(config: EmbedConfig) -> None:
    """Embeds a corpus, or finds that its store is complete.

    Raises:
      UserError: anything about the corpus, the model or the output that the user can mend.
    """
    texts = corpus.read_texts(Path(config.corpus))
    output = Path(config.output)
    _refuse_foreign_folder(output)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    encoder = backbone.load(
        config.model, max_tokens=config.max_tokens, dtype=config.dtype, device=config.device
    )
    settings = {
        "encoder": encoder.name,
        "weights_sha256": encoder.weights_sha256,
        "tokenizer_sha256": encoder.tokenizer_sha256,
        "template_sha256": None,  # a plain encoder has neither template nor instruction
        "instruction": None,
        "poolings": list(_POOLINGS),
        "default_pooling": _POOLINGS[0],
        "pool_over": "all",
        "normalize": config.normalize,
        "compute_dtype": config.dtype,
        "dtype": config.store_dtype,
        "dim": encoder.dim,
        "truncate": "head",
        "max_tokens": encoder.window,
        "texts_sha256": texts.sha256,
    }
    with sole_writer(output):
        if (output / MANIFEST).exists():
            _refuse_other_store(output, settings)
            print(f"store {output} is already complete: nothing to do")
            return
        _embed(texts, encoder, config, settings, output)


def _embed(
    texts: corpus.Texts,
    encoder: backbone.Encoder,
    config: EmbedConfig,
    settings: dict[str, Any],
    output: Path,
) -> None:
    ids = _tokenize(encoder, texts.reviews)
    before = np.array([len(row) for row in ids], np.int32)
    ids = [encoder.truncate(row) for row in ids]
    tokens = np.array([len(row) for row in ids], np.int32)
    store = StoreWriter(output, _POOLINGS, len(ids), encoder.dim, config.store_dtype)
    with tqdm(total=len(ids), desc="embedding", unit="review") as bar:
        for rows in packing.plan_batches(tokens.tolist(), config.batch_tokens):
            embeddings = encoder.embed([ids[row] for row in rows])
            store.write("mean", rows, _scale(embeddings, config.normalize))
            bar.update(len(rows))
    categories = np.zeros((0, encoder.dim), np.float32)
    if texts.categories:
        names = [encoder.truncate(row) for row in encoder.tokenize(texts.categories)]
        categories = np.zeros((len(names), encoder.dim), np.float32)
        for rows in packing.plan_batches([len(name) for name in names], config.batch_tokens):
            found = encoder.embed([names[row] for row in rows])
            categories[rows] = _scale(found, config.normalize)
    cut = np.flatnonzero(before > tokens)
    truncated = pl.DataFrame(
        {"row": cut.astype(np.int32), "tokens_before": before[cut], "tokens_after": tokens[cut]}
    )
    versions = {"python": sys.version.split()[0], "sasnet": __version__}
    versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    store.finish(
        categories=categories,
        tokens=tokens,
        truncated=truncated,
        manifest={**settings, "rows": len(ids), "truncated": cut.size, "versions": versions},
    )
    print(f"{len(ids):,} reviews, {tokens.sum():,} tokens, {cut.size:,} truncated -> {output}")


def _tokenize(encoder: backbone.Encoder, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    with tqdm(total=len(texts), desc="tokenizing", unit="review", delay=5) as bar:
        for first in range(0, len(texts), _TOKENIZE_AT_ONCE):
            ids += encoder.tokenize(texts[first : first + _TOKENIZE_AT_ONCE])
            bar.update(len(ids) - bar.n)
    return ids


def _scale(embeddings: np.ndarray, normalize: bool) -> np.ndarray:
    if not normalize:
        return embeddings
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _refuse_foreign_folder(output: Path) -> None:
    """A folder may be filled if it is new, or holds a store, finished or interrupted."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output={output} is a file, not a folder")
    if {path.name for path in output.iterdir()} - FILES - {f"{name}.npy" for name in _POOLINGS}:
        raise UserError(f"--output={output} holds other files: choose a new folder")


def _refuse_other_store(output: Path, settings: dict[str, Any]) -> None:
    manifest = read_json(output / MANIFEST, "python -m embed_torch")
    changed = [name for name, value in settings.items() if manifest.get(name) != value]
    if changed:
        raise UserError(
            f"{output} holds a store made with other {', '.join(changed)}: "
            "choose another --output, or remove it"
        )
