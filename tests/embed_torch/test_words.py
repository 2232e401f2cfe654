"""Hashed words, against a count in a dictionary."""

import numpy as np

from embed_torch import checkpoint, embed
from embed_torch.config import EmbedConfig, EncoderConfig
from embed_torch.encoder import Encoder
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.store import open_store
from sasnet_jax.prepare import command as prepare


def _expected(tokenizer, text: str) -> np.ndarray:
    """The mean over word pieces of a unit vector or its negative: multiply, keep the top bits."""
    ids = tokenizer(text)["input_ids"]
    found = np.zeros(1024)
    for piece in ids:
        hashed = ((piece + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
        found[hashed // 2**54] += -1 if (hashed // 2**53) % 2 else 1
    return found / len(ids)


def test_a_store_of_words_is_a_signed_count(tmp_path):
    prepare.run(prepare.PrepareConfig(synthetic=300, output=str(tmp_path / "corpus")))
    store = tmp_path / "words"
    embed.run(EmbedConfig(corpus=str(tmp_path / "corpus"), output=str(store), model="words"))
    corpus = read_corpus(tmp_path / "corpus")
    opened = open_store(store, corpus)
    tokenizer = checkpoint.find_checkpoint("minilm").tokenizer
    expected = np.stack([_expected(tokenizer, text) for text in corpus.texts()])
    np.testing.assert_allclose(opened.table, expected, atol=1e-3)
    assert opened.manifest.truncated == 0


def test_words_are_not_minilm_to_those_who_reuse_stores():
    words, minilm = checkpoint.find_checkpoint("words"), checkpoint.find_checkpoint("minilm")
    assert words.weights_sha256() != minilm.weights_sha256()
    assert words.dim == 1024 and words.window > minilm.window
    # Twenty thousand pieces over 1024 places and two signs: nearly uniform.
    network = Encoder(EncoderConfig(model="words")).network._network
    counts = np.bincount(network.place.numpy(), minlength=1024)
    expected = network.place.numel() / 1024
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)
    assert abs(float(network.sign.mean())) < 0.03
