"""The store's contract and the encoder, against sentence-transformers and small random models."""

import contextlib
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from conftest import assert_one_line_mistake, run_command, small_files

import embed_torch
from embed_torch import backbone, checkpoint, embed, manifest
from embed_torch import store as store_module
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig, EncoderConfig
from embed_torch.files import texts_sha256
from embed_torch.inputs import Tokenization
from sasnet_jax import manifest as reader_manifest
from sasnet_jax.cli import UserError as ReaderError
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.store import open_store
from sasnet_jax.prepare import command as prepare

TEXTS = [
    "Great food, and the waiter was kind.",
    "Bad.",
    "[SEP] a literal control token [CLS] in a review 🙂\u200b",
    "word " * 600,
    "A review of middling length that says very little about anything at all, twice. " * 2,
    " ",
]


@pytest.fixture(scope="module")
def minilm() -> Tokenization:
    return Tokenization(checkpoint.find_checkpoint("minilm"), EncoderConfig())


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "corpus"
    prepare.run(prepare.PrepareConfig(synthetic=100, output=str(folder)))
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

        return SentenceTransformer(str(checkpoint.minilm_folder()), device="cpu")


@pytest.mark.parametrize("max_tokens", [0, 512])
def test_minilm_equals_sentence_transformers(reference, max_tokens):
    texts = [text.replace("[SEP]", "").replace("[CLS]", "") for text in TEXTS]
    encoder = embed_torch.load_encoder("minilm", max_tokens=max_tokens, device="cpu")
    inputs = encoder.review_inputs(list(range(len(texts))), texts)
    found = encoder.encode(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.max_seq_length = max_tokens or 256
        expected = reference.encode(texts, batch_size=1, show_progress_bar=False)
        reference.max_seq_length = 256
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(inputs.ids[3]) == (max_tokens or 256) and inputs.uncut[3] == 602


def test_a_review_without_tokens_is_embedded_as_its_prompt(minilm):
    inputs = minilm.of_reviews([0], [""])
    (span,) = backbone.Batch(inputs.ids, inputs.around, ("mean",)).spans()
    assert (span.first, span.last) == (0, 2) == (span.start, span.stop)


def test_store_holds_row_i_for_review_i(store, corpus_folder, reference):
    corpus = read_corpus(corpus_folder)
    opened = open_store(store, corpus)
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
    named = texts_sha256(names["category"])
    assert manifest["category_names_sha256"] == named
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


@pytest.mark.parametrize("normalize", [None, True, False])
def test_normalize_gives_length_one_and_minilm_does_so_itself(
    store, corpus_folder, tmp_path, normalize
):
    output = store
    if normalize is not None:
        output, settings = tmp_path / "store", {"normalize": normalize, "max_tokens": 12}
        embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(output), **settings))
    lengths = np.linalg.norm(np.load(output / "mean.npy").astype(np.float32), axis=1)
    np.testing.assert_array_equal(np.abs(lengths - 1) < 2e-3, normalize is not False)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["normalize"] is (normalize is not False)


def test_the_same_command_reuses_and_another_refuses(store, corpus_folder, capsys):
    before = (store / "mean.npy").stat().st_mtime_ns
    embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(store)))
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="normalize"):
        embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(store), normalize=False))
    assert (store / "mean.npy").stat().st_mtime_ns == before


def test_other_category_names_are_another_store_whose_reviews_can_be_reused(
    store, corpus_folder, tmp_path, capsys
):
    corpus = shutil.copytree(corpus_folder, tmp_path / "corpus")
    names = pl.read_parquet(corpus / "categories.parquet")
    names.with_columns(pl.col("category") + " bar").write_parquet(corpus / "categories.parquet")
    common = {"corpus": str(corpus), "device": "cpu"}
    with pytest.raises(UserError, match="category_names_sha256"):
        embed.run(EmbedConfig(**common, output=str(store)))
    embed.run(EmbedConfig(**common, output=str(tmp_path / "new"), reuse=str(store)))
    assert f"{read_corpus(corpus).user.size} reviews copied" in capsys.readouterr().out
    renamed, before = (np.load(folder / "categories.npy") for folder in (tmp_path / "new", store))
    assert (renamed != before).any(axis=1).all()
    assert (tmp_path / "new" / "mean.npy").read_bytes() == (store / "mean.npy").read_bytes()


def test_a_store_without_manifest_is_not_a_store(store, corpus_folder, tmp_path):
    copy = shutil.copytree(store, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    with pytest.raises(ReaderError, match="manifest.json"):
        open_store(copy, read_corpus(corpus_folder))
    embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(copy)))  # the same command repairs
    for name in ("mean.npy", "categories.npy", "tokens.npy", "manifest.json"):
        assert (copy / name).read_bytes() == (store / name).read_bytes()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A random BERT with MiniLM's tokenizer, as safetensors."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.minilm_folder())
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
        ("unexpected weight", ("no place for", "encoder.layer.1")),
        ("pickled weights", ("refused", "safetensors")),
        ("corrupt safetensors", ("--model",)),
        ("tokenizer of another model", ("tokenizer",)),
        ("no tokenizer", ("--model",)),
        ("window", ("--max_tokens=100", "64")),
        ("device", ("--device",)),
        ("no such gpu", ("--device",)),
        ("a run's folder", ("other files",)),
        ("unknown flag", ("color",)),
        ("unknown pooling", ("--poolings", "attentional")),
        ("instruction for an encoder", ("instruction",)),
        ("template without instruction", ("--instruction",)),
        ("too long a review", ("review", "--truncate")),
        ("full disk", ("store cannot take", "File too large")),
        ("folder in use", ("other files",)),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path, corpus_folder, tiny_model, case, mentions
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    corpus = shutil.copytree(corpus_folder, tmp_path / "corpus")
    output = tmp_path / "store"
    limited = False
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
    elif case == "unexpected weight":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors["encoder.layer.1.output.dense.weight"] = torch.zeros(2, 2)
        save_file(tensors, weights, metadata={"format": "pt"})
    elif case == "tokenizer of another model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    elif case == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (model / name).unlink(missing_ok=True)
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
        arguments["color"] = "red"
    elif case == "unknown pooling":
        arguments["poolings"] = "mean,no_such_pooling"
    elif case == "instruction for an encoder":
        arguments["instruction"] = "Analyze"
    elif case == "template without instruction":
        arguments["template"] = "phi3"
    elif case == "too long a review":
        arguments |= {"max_tokens": 12, "truncate": "error"}
    elif case == "full disk":
        limited = True
    elif case == "folder in use":
        output.mkdir()
        (output / "thesis.tex").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    with small_files(2048) if limited else contextlib.nullcontext():
        result = run_command("embed_torch", *flags)
    assert_one_line_mistake(result, *mentions)
    if case != "too long a review":
        assert sorted(tmp_path.rglob("*")) == before
    assert not (output / "manifest.json").exists()


@pytest.fixture
def short_sample(monkeypatch):
    monkeypatch.setattr("embed_torch.dry_run._SAMPLE_SECONDS", 0.1)


def test_a_dry_run_counts_what_would_be_reused(
    corpus_folder, store, tmp_path, capsys, short_sample
):
    rows = read_corpus(corpus_folder).user.size
    same = {"corpus": str(corpus_folder), "output": str(tmp_path / "s"), "device": "cpu"}
    embed.run(EmbedConfig(**same, dry_run=True, reuse=str(store)))
    printed = capsys.readouterr().out
    assert f"{rows:,} reviews would be copied" in printed and ": 0 tokens are left" in printed
    assert "about 00:00" in printed and not list(tmp_path.iterdir())


def test_a_dry_run_tells_and_writes_nothing(corpus_folder, tmp_path, short_sample):
    arguments = [f"--corpus={corpus_folder}", f"--output={tmp_path / 's'}", "--dry_run"]
    printed = run_command("embed_torch", *arguments, "--poolings=mean,max").stdout
    corpus = read_corpus(corpus_folder)
    first = corpus.texts()[0].lower().split()[0].strip(".,")
    for mention in (
        f"{corpus.user.size:,} reviews",
        "tokens",
        "95 %",
        "GB",
        "[CLS]",
        first,
        "s on",
    ):
        assert mention in printed.lower() or mention in printed
    assert not list(tmp_path.iterdir())


def test_a_grown_corpus_embeds_only_what_is_new(corpus_folder, store, tmp_path, capsys):
    """The same reviews in another order, some gone, some new: copied rows are the same bytes."""
    grown = shutil.copytree(corpus_folder, tmp_path / "grown")
    table = pl.read_parquet(grown / "reviews.parquet")
    extra = table.head(7).with_columns(text=pl.col("text") + " And again.")
    old_rows = table.height - 20
    table = pl.concat([table.tail(old_rows).reverse(), extra])
    table.write_parquet(grown / "reviews.parquet")
    description = json.loads((grown / "corpus.json").read_text())
    description["texts_sha256"] = texts_sha256(table["text"])
    (grown / "corpus.json").write_text(json.dumps(description))
    common = {"corpus": str(grown), "device": "cpu"}
    embed.run(EmbedConfig(**common, output=str(tmp_path / "new"), reuse=str(store)))
    assert f"{old_rows} reviews copied" in capsys.readouterr().out
    embed.run(EmbedConfig(**common, output=str(tmp_path / "whole")))
    new, whole = (np.load(tmp_path / name / "mean.npy") for name in ("new", "whole"))
    old = np.load(store / "mean.npy")
    assert np.array_equal(new[:old_rows], old[-old_rows:][::-1])
    np.testing.assert_allclose(new.astype(np.float32), whole.astype(np.float32), atol=1e-3)
    for name in ("tokens.npy", "text_hashes.npy", "truncated.parquet"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("new", "whole")]
        assert files[0] == files[1]
    with pytest.raises(UserError, match="normalize"):
        again = EmbedConfig(**common, output=str(tmp_path / "n"), reuse=str(store), normalize=False)
        embed.run(again)


def test_odd_texts_are_embedded(corpus_folder, tmp_path):
    odd = ["", " \n\t", "\U0001f600\u200b\u200d", "word " * 100_000, "<|end|> [SEP] </s>", "\x00"]
    corpus = shutil.copytree(corpus_folder, tmp_path / "odd")
    table = pl.read_parquet(corpus / "reviews.parquet").head(len(odd))
    table.with_columns(text=pl.Series(odd)).write_parquet(corpus / "reviews.parquet")
    description = json.loads((corpus / "corpus.json").read_text())
    description["texts_sha256"] = texts_sha256(odd)
    (corpus / "corpus.json").write_text(json.dumps(description))
    embed.run(EmbedConfig(corpus=str(corpus), output=str(tmp_path / "s"), device="cpu"))
    assert np.isfinite(np.load(tmp_path / "s" / "mean.npy")).all()
    truncated = pl.read_parquet(tmp_path / "s" / "truncated.parquet")
    assert truncated.rows() == [(3, 100_002, 256)]


def test_a_folder_with_ones_own_array_is_not_filled(corpus_folder, tmp_path):
    np.save(tmp_path / "mean.npy", np.arange(5))
    with pytest.raises(UserError, match="other files"):
        embed.run(EmbedConfig(corpus=str(corpus_folder), output=str(tmp_path)))
    assert np.array_equal(np.load(tmp_path / "mean.npy"), np.arange(5))


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def _replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _exchange_two_rows(path: Path) -> None:
    array = np.load(path)
    array[[0, 1]] = array[[1, 0]]
    np.save(path, array)


# What may happen to an array, and what the message says.
DAMAGES = {
    "absent": (Path.unlink, "does not exist"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole NumPy array"),
    "a bit flipped": (_flip_a_bit, r"rows 0 to \d+ are not as they were written"),
    "zeros": (lambda path: np.save(path, np.load(path) * 0), "rows 0 to .* not as they were"),
    "rows reversed": (
        lambda path: np.save(path, np.load(path)[::-1]),
        "rows 0 to .* not as they were",
    ),
    "two rows exchanged": (_exchange_two_rows, "rows 0 to .* not as they were"),
    "rows cut off": (lambda path: np.save(path, np.load(path)[:-1]), "expected|not as they were"),
    "in Fortran order": (
        lambda path: np.save(path, np.asfortranarray(np.load(path)[::-1])),
        "not as they were",
    ),
    "of another type": (
        lambda path: np.save(path, np.load(path).astype("S2")),
        "expected .* of (float16|int32|uint64)",
    ),
    "a FIFO": (_replace_by_a_fifo, "is not a regular file"),
    "a nested header": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\xf4\x01" + b"(" * 500),
        "not a whole NumPy array",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_refused_with_its_rows_and_a_remedy(store, tmp_path, damage):
    copy = shutil.copytree(store, tmp_path / "copy")
    change, message = DAMAGES[damage]
    for name in ("mean", "categories", "tokens", "text_hashes"):
        change(copy / f"{name}.npy")
        with pytest.raises(UserError, match=message) as refused:
            manifest.read_array(copy, manifest.read_manifest(copy), name)
        assert str(refused.value).startswith(str(copy / f"{name}.npy"))
        remedy = f"remove {copy} and run python -m embed_torch --output={copy} again"
        assert str(refused.value).endswith(remedy)
        with pytest.raises(ReaderError, match=message):
            reader_manifest.read_array(copy, reader_manifest.read_manifest(copy), name)


@pytest.mark.parametrize("damage", ["changed", "absent", "a FIFO"])
def test_a_damaged_list_of_cuts_is_refused(store, tmp_path, damage):
    copy = shutil.copytree(store, tmp_path / "copy")
    path = copy / "truncated.parquet"
    change = {"changed": _flip_a_bit, "absent": Path.unlink, "a FIFO": _replace_by_a_fifo}
    change[damage](path)
    with pytest.raises(UserError, match="truncated.parquet .*: remove .*copy and run"):
        store_module.check(copy, manifest.read_manifest(copy))


def test_a_damaged_store_is_neither_complete_nor_reused_until_its_remedy_is_typed(
    corpus_folder, store, tmp_path, capsys
):
    copy = shutil.copytree(store, tmp_path / "copy")
    _flip_a_bit(copy / "mean.npy")
    same = {"corpus": str(corpus_folder), "device": "cpu"}
    for settings in ({"output": copy}, {"output": tmp_path / "new", "reuse": copy}):
        texts = {name: str(path) for name, path in settings.items()}
        with pytest.raises(UserError, match=r"copy/mean.npy: rows .*: remove .*copy and run"):
            embed.run(EmbedConfig(**same, **texts))
    shutil.rmtree(copy)
    embed.run(EmbedConfig(**same, output=str(copy)))
    assert (copy / "mean.npy").read_bytes() == (store / "mean.npy").read_bytes()


def test_a_store_older_than_hashes_opens_with_one_line(corpus_folder, store, tmp_path, capsys):
    copy = shutil.copytree(store, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    old = {key: value for key, value in manifest.items() if key not in ("hashes", "sha256")}
    (copy / "manifest.json").write_text(json.dumps(old))
    corpus = read_corpus(corpus_folder)
    opened = open_store(copy, corpus)
    open_store(copy, corpus)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{copy} was written before" in line and f"remove {copy} and run" in line
    assert opened.identity == open_store(store, corpus).identity
    # As earlier versions wrote it: every key of the manifest but these.
    others = {"format_version", "rows", "truncated", "versions", "category_names_sha256"}
    assert opened.identity == {k: v for k, v in old.items() if k not in others} | {
        "pooling": "mean"
    }
    table = np.load(copy / "mean.npy")
    table[5, 7] = np.nan
    np.save(copy / "mean.npy", table)
    with pytest.raises(ReaderError, match="row 5 .* not finite"):
        open_store(copy, corpus)
    reusing = EmbedConfig(corpus=str(corpus_folder), output=str(tmp_path / "n"), reuse=str(copy))
    with pytest.raises(UserError, match="row 5 .* not finite"):
        embed.run(reusing)


def test_a_mistake_at_the_first_batch_does_not_bar_the_mended_command(corpus_folder, tmp_path):
    same = {"corpus": str(corpus_folder), "output": str(tmp_path / "s"), "device": "cpu"}
    with pytest.raises(UserError, match="--truncate"):
        embed.run(EmbedConfig(**same, max_tokens=12, truncate="error"))
    embed.run(EmbedConfig(**same, max_tokens=12, truncate="tail"))


def test_an_interrupted_reuse_gives_the_same_bytes(corpus_folder, store, tmp_path, monkeypatch):
    grown = shutil.copytree(corpus_folder, tmp_path / "grown")
    table = pl.read_parquet(grown / "reviews.parquet")
    table = pl.concat([table, table.with_columns(text=pl.col("text") + " And again.")])
    table.write_parquet(grown / "reviews.parquet")
    description = json.loads((grown / "corpus.json").read_text())
    description["texts_sha256"] = texts_sha256(table["text"])
    (grown / "corpus.json").write_text(json.dumps(description))
    same = {"corpus": str(grown), "reuse": str(store), "device": "cpu", "batch_tokens": 500}
    embed.run(EmbedConfig(**same, output=str(tmp_path / "whole")))

    class Stop(Exception):
        pass

    write = embed.StoreWriter.write

    def stop(self, window, batch, rows, found):
        if batch == "3":
            raise Stop
        write(self, window, batch, rows, found)

    monkeypatch.setattr(embed.StoreWriter, "write", stop)
    with pytest.raises(Stop):
        embed.run(EmbedConfig(**same, output=str(tmp_path / "again")))
    monkeypatch.undo()
    embed.run(EmbedConfig(**same, output=str(tmp_path / "again")))
    for path in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("config_class", "packs"),
    [(transformers.RobertaConfig, True), (transformers.MPNetConfig, False)],
)
def test_positions_counted_from_the_padding_token(
    tiny_model, corpus_folder, tmp_path, config_class, packs
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = config_class(
        vocab_size=31000, intermediate_size=16, max_position_embeddings=20, pad_token_id=1, **sizes
    )
    transformers.AutoModel.from_config(config).save_pretrained(model)
    settings = {"corpus": str(corpus_folder), "model": str(model)}
    embed.run(EmbedConfig(**settings, output=str(tmp_path / "s")))
    assert np.load(tmp_path / "s" / "tokens.npy").max() == 18
    attentional = EmbedConfig(**settings, output=str(tmp_path / "a"), poolings="attentional")
    if packs:
        embed.run(attentional)
        return
    with pytest.raises(
        UserError, match=r"attentional.*does not \(its attention cannot be replaced"
    ):
        embed.run(attentional)
    assert not (tmp_path / "a").exists()
