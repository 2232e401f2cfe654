"""The store's contract and the encoder, against sentence-transformers and small random models."""

import json
import shutil
import warnings

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from conftest import assert_one_line_mistake, run_command

from embed_torch import backbone, embed, packing, pooling
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig
from embed_torch.store import StoreWriter
from sasnet_jax import prepare
from sasnet_jax.data import embeddings
from sasnet_jax.data.corpus import read_corpus

TEXTS = [
    "Great food, and the waiter was kind.",
    "Bad.",
    "[SEP] a literal control token [CLS] in a review 🙂\u200b",
    "word " * 600,
    "A review of middling length that says very little about anything at all, twice. " * 2,
    " ",
]


@pytest.fixture(scope="module")
def minilm() -> backbone.Encoder:
    return backbone.load("minilm", max_tokens=0, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "corpus"
    prepare.run(prepare.PrepareConfig(synthetic=200, output=str(folder)))
    return folder


@pytest.fixture(scope="module")
def store(corpus_folder):
    folder = corpus_folder.parent / "minilm"
    embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(folder), device="cpu"))
    return folder


@pytest.fixture(scope="module")
def reference():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(backbone.minilm_folder()), device="cpu")


def test_minilm_equals_sentence_transformers(minilm, reference):
    texts = [text.replace("[SEP]", "").replace("[CLS]", "") for text in TEXTS]
    ids = [minilm.truncate(row) for row in minilm.tokenize(texts)]
    found = minilm.embed(ids)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.encode(texts, batch_size=1, show_progress_bar=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(ids[3]) == minilm.window == 256


def test_embedding_does_not_depend_on_the_batch(minilm):
    ids = [minilm.truncate(row) for row in minilm.tokenize(TEXTS)]
    together = minilm.embed(ids)
    for row, alone in zip(together, ids, strict=True):
        difference = np.linalg.norm(minilm.embed([alone])[0] - row)
        assert difference <= 1e-5 * np.linalg.norm(row)


def test_a_literal_control_token_is_plain_text(minilm):
    (ids,) = minilm.tokenize(["[SEP] fine [CLS]"])
    special = minilm.tokenizer.all_special_ids
    assert [token for token in ids if token in special] == [ids[0], ids[-1]]


def test_truncation_keeps_the_head_and_the_closing_token(minilm):
    (ids,) = minilm.tokenize(["word " * 400])
    cut = minilm.truncate(ids)
    assert len(cut) == 256 and cut[:255] == ids[:255] and cut[-1] == ids[-1]
    assert minilm.truncate(ids[:256]) == ids[:256]


def test_mean_pooling_equals_a_loop():
    rng = np.random.default_rng(0)
    states, mask = rng.normal(size=(3, 7, 4)), rng.random((3, 7)) < 0.5
    mask[:, 3] = True
    expected = [states[b][mask[b]].mean(axis=0) for b in range(3)]
    found = pooling.mean(torch.tensor(states), torch.tensor(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [1, 50, 333, 10**6])
def test_batches_hold_every_row_once_within_the_budget(budget):
    counts = np.random.default_rng(1).integers(1, 100, 500).tolist()
    batches = packing.plan_batches(counts, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    for batch in batches:
        assert len(batch) == 1 or max(counts[row] for row in batch) * len(batch) <= budget
    assert packing.plan_batches(counts, budget) == batches


def test_batches_of_like_length_waste_little():
    counts = np.random.default_rng(2).integers(5, 250, 2000).tolist()
    padded = sum(
        max(counts[row] for row in batch) * len(batch)
        for batch in packing.plan_batches(counts, 8192)
    )
    assert padded < 1.05 * sum(counts)


def test_store_holds_row_i_for_review_i(store, corpus_folder, reference):
    corpus = read_corpus(corpus_folder)
    opened = embeddings.open_store(store, corpus)
    table = np.load(store / "mean.npy", mmap_mode="r", allow_pickle=False)
    assert table.dtype == np.float16 and table.shape == (corpus.user.size, 384)
    assert np.array_equal(opened.table, table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.encode(corpus.texts().to_list(), show_progress_bar=False)
    unit = table / np.linalg.norm(table.astype(np.float32), axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, atol=2e-3)  # float16


def test_store_names_what_it_was_made_of(store, corpus_folder):
    manifest = json.loads((store / "manifest.json").read_text())
    corpus = read_corpus(corpus_folder)
    assert manifest["texts_sha256"] == corpus.texts_sha256
    assert manifest["rows"] == corpus.user.size and manifest["dim"] == 384
    tokens = np.load(store / "tokens.npy", allow_pickle=False)
    assert tokens.dtype == np.int32 and tokens.shape == (corpus.user.size,)
    categories = np.load(store / "categories.npy", allow_pickle=False)
    names = pl.read_parquet(corpus_folder / "categories.parquet")
    assert categories.shape == (names.height, 384)
    truncated = pl.read_parquet(store / "truncated.parquet")
    assert truncated.columns == ["row", "tokens_before", "tokens_after"]


def test_truncated_reviews_are_listed(corpus_folder, tmp_path):
    config = EmbedConfig(corpus=str(corpus_folder), output=str(tmp_path / "short"), max_tokens=12)
    embed.run(config)
    truncated = pl.read_parquet(tmp_path / "short" / "truncated.parquet")
    tokens = np.load(tmp_path / "short" / "tokens.npy")
    assert truncated.height and (truncated["tokens_after"] == 12).all()
    assert (truncated["tokens_before"] > 12).all()
    assert (tokens[truncated["row"].to_numpy()] == 12).all() and tokens.max() == 12


def test_normalize_gives_length_one(corpus_folder, tmp_path):
    output = tmp_path / "unit"
    embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(output), normalize=True))
    lengths = np.linalg.norm(np.load(output / "mean.npy").astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)


def test_the_same_command_reuses_and_another_refuses(store, corpus_folder, capsys):
    before = (store / "mean.npy").stat().st_mtime_ns
    embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(store)))
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="normalize"):
        embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(store), normalize=True))
    assert (store / "mean.npy").stat().st_mtime_ns == before


def test_a_store_without_manifest_is_not_a_store(store, corpus_folder, tmp_path):
    copy = shutil.copytree(store, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    from sasnet_jax.cli import UserError as ReaderError

    with pytest.raises(ReaderError, match="manifest.json"):
        embeddings.open_store(copy, read_corpus(corpus_folder))
    embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(copy)))  # the same command repairs
    for name in ("mean.npy", "categories.npy", "tokens.npy", "manifest.json"):
        assert (copy / name).read_bytes() == (store / name).read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_float16_cannot_hold_stops_and_names_the_review(tmp_path, value):
    writer = StoreWriter(tmp_path, ("mean",), 10, 3, "float16")
    bad = np.ones((2, 3), np.float32)
    bad[1, 2] = value
    with pytest.raises(UserError, match="review 7"):
        writer.write("mean", [4, 7], bad)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A random BERT with MiniLM's tokenizer, as safetensors."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone.minilm_folder())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), intermediate_size=16, max_position_embeddings=64, **sizes
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("case", "mentions"),
    [
        ("no corpus", ("corpus.json",)),
        ("other texts", ("texts",)),
        ("no model", ("--model",)),
        ("missing weight", ("lacks the weight",)),
        ("pickled weights", ("--model", "safetensors")),
        ("corrupt safetensors", ("--model",)),
        ("window", ("--max_tokens=100", "64")),
        ("device", ("--device",)),
        ("no such gpu", ("--device",)),
        ("a run's folder", ("other files",)),
        ("unknown flag", ("colour",)),
        ("folder in use", ("other files",)),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path, corpus_folder, tiny_model, case, mentions
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    corpus = shutil.copytree(corpus_folder, tmp_path / "corpus")
    output = tmp_path / "store"
    arguments = {"corpus": corpus, "model": model, "output": output, "device": "cpu"}
    weights = model / "model.safetensors"
    if case == "no corpus":
        arguments["corpus"] = tmp_path / "nowhere"
    elif case == "other texts":
        table = pl.read_parquet(corpus / "reviews.parquet")
        table.with_columns(text=pl.col("text") + "!").write_parquet(corpus / "reviews.parquet")
    elif case == "no model":
        arguments["model"] = tmp_path / "nowhere"
    elif case == "missing weight":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["encoder.layer.0.output.dense.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif case == "pickled weights":
        torch.save({}, model / "pytorch_model.bin")
        weights.unlink()
    elif case == "corrupt safetensors":
        weights.write_bytes(b"\xff" * 100)
    elif case == "window":
        arguments["max_tokens"] = 100
    elif case == "device":
        arguments["device"] = "abacus"
    elif case == "no such gpu":
        arguments["device"] = "cuda:77"
    elif case == "a run's folder":
        output.mkdir()
        (output / ".lock").touch()
        (output / "checkpoints").mkdir()
    elif case == "unknown flag":
        arguments["colour"] = "red"
    elif case == "folder in use":
        output.mkdir()
        (output / "thesis.tex").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    result = run_command("embed_torch", *(f"--{k}={v}" for k, v in arguments.items()))
    assert_one_line_mistake(result, *mentions)
    assert sorted(tmp_path.rglob("*")) == before
