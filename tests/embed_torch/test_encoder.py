"""The encoder of a store or a model: a store's text encoded again gives its row."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jaxtyping
import numpy as np
import pytest
from conftest import ROOT
from written_checkpoints import write_phi3
from written_sentence_models import write_sentence_model
from written_tokenizers import write_metaspace_tokenizer, write_phi3_tokenizer

import embed_torch
from embed_torch import backbone, corpus, embed
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig, EncoderConfig
from embed_torch.prompts import PHI3
from sasnet_jax.corpus.corpus import read_corpus
from sasnet_jax.corpus.store import open_store
from sasnet_jax.prepare import command as prepare

INSTRUCTED = {"model": "phi3", "instruction": "Analyze the review."}
STORES = {
    "words": {"model": "words"},
    "words in float32": {"model": "words", "store_dtype": "float32", "normalize": True},
    "encoder": {"model": "bert"},
    "encoder, review": {"model": "bert", "pool_over": "review", "poolings": "max,mean"},
    "encoder, cut": {"model": "bert", "normalize": True, "max_tokens": 30, "truncate": "head_tail"},
    "encoder, prefixed": {"model": "bert", "prefix": "query: ", "poolings": "first"},
    "causal": {"model": "phi3", "poolings": "last"},
    "instructed": {**INSTRUCTED, "poolings": "attentional,mean,positional"},
    "instructed, review": {**INSTRUCTED, "pool_over": "review", "normalize": True},
    "instructed, cut": {**INSTRUCTED, "max_tokens": 90, "truncate": "tail", "template": "file"},
    "projected": {"model": "labse"},
    "in float32": {"model": "bert", "store_dtype": "float32"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    prepare.run(prepare.PrepareConfig(synthetic=150, output=str(folder / "corpus")))
    write_sentence_model(folder / "bert")
    write_sentence_model(folder / "labse", mode="cls", dense=[{"out_features": 24}], normalize=True)
    write_phi3(folder / "phi3", hidden_size=32, num_hidden_layers=2)
    write_phi3_tokenizer(folder / "phi3")
    (folder / "template.jinja").write_text(PHI3.replace("<|end|>", " <|end|>"))
    return folder


def write_store(world: Path, output: Path, **settings) -> Path:
    if settings.get("template") == "file":
        settings["template"] = str(world / "template.jinja")
    if (world / settings["model"]).exists():
        settings["model"] = str(world / settings["model"])
    embed.run(
        EmbedConfig(corpus=str(world / "corpus"), output=str(output), device="cpu", **settings)
    )
    return output


@pytest.fixture(scope="module")
def stores(world):
    """Every store of STORES, written when it is first asked for."""

    def store(name: str) -> Path:
        output = world / "stores" / name
        return output if output.exists() else write_store(world, output, **STORES[name])

    return store


@pytest.fixture(scope="module")
def texts(world) -> list[str]:
    return corpus.read_texts(world / "corpus").reviews.to_list()


@pytest.fixture
def unchecked():
    """Passes types as a user would, without the checks of the tests' import hook."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def units_in_the_last_place(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many numbers of the type of `expected` lie between the two."""
    kind = {"float16": np.int16, "float32": np.int32}[str(expected.dtype)]
    ordered = []
    for values in (found.astype(expected.dtype), expected):
        bits = np.ascontiguousarray(values).view(kind).astype(np.int64)
        ordered.append(np.where(bits < 0, -(bits & np.iinfo(kind).max), bits))
    return np.abs(ordered[0] - ordered[1])


@pytest.mark.parametrize("name", STORES)
def test_a_stores_text_encoded_again_gives_its_row(stores, texts, name):
    """Texts are encoded in one call, alone, and in batches of every size and order."""
    store = stores(name)
    encoder = embed_torch.load_encoder(store, device="cpu")
    table = np.load(store / f"{encoder.poolings[0]}.npy")
    found = np.zeros_like(table, dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(texts))
    sizes = [1, 1, 2, 3, 5, 8, 13, 21, 34]
    for rows in np.split(order, np.cumsum(sizes)):
        found[rows] = encoder.encode([texts[row] for row in rows])
    again = encoder.encode(texts)
    assert again.dtype == np.float32 and again.shape == table.shape
    most = 0 if encoder.name == "words" else 1
    assert units_in_the_last_place(found, table).max() <= most
    assert units_in_the_last_place(again, table).max() <= most


def test_every_pooling_of_a_store_can_be_chosen(stores, texts):
    store = stores("instructed")
    for pooling in ("attentional", "mean", "positional"):
        encoder = embed_torch.load_encoder(store, pooling=pooling, device="cpu")
        table = np.load(store / f"{pooling}.npy")
        assert units_in_the_last_place(encoder.encode(texts[:9]), table[:9]).max() <= 1
    with pytest.raises(UserError, match="has no pooling 'max', only attentional, mean, positional"):
        embed_torch.load_encoder(store, pooling="max")


def test_no_texts_are_no_rows_and_a_text_is_no_list(stores):
    encoder = embed_torch.load_encoder(stores("words"))
    assert encoder.encode([]).shape == (0, 1024) and encoder.encode([]).dtype == np.float32
    with pytest.raises(TypeError, match="a list of texts"):
        encoder.encode("The soup was cold.")


def test_a_model_that_has_moved_is_found_by_model(world, texts, tmp_path):
    phi3 = shutil.copytree(world / "phi3", tmp_path / "phi3")
    store = tmp_path / "store"
    write_store(world, store, **INSTRUCTED | {"model": str(phi3)})
    phi3.rename(tmp_path / "moved")
    missing = r"store .*store was made with .*the folder .*phi3 does not exist .*model=FOLDER"
    with pytest.raises(UserError, match=missing):
        embed_torch.load_encoder(store, device="cpu")
    encoder = embed_torch.load_encoder(store, model=tmp_path / "moved", device="cpu")
    row = np.load(store / "mean.npy")[:1]
    assert units_in_the_last_place(encoder.encode(texts[:1]), row).max() <= 1


def test_a_relative_model_is_found_from_another_folder(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    arguments = {"corpus": "corpus", "model": "bert", "device": "cpu"}
    embed.run(EmbedConfig(**arguments, output=str(tmp_path / "store")))
    monkeypatch.chdir(tmp_path)
    assert embed_torch.load_encoder(tmp_path / "store", device="cpu").dim == 16


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda folder: write_phi3(folder, seed=1, hidden_size=32, num_hidden_layers=2), "weights"),
        (write_metaspace_tokenizer, "tokenizer"),
    ],
    ids=["weights", "tokenizer"],
)
def test_another_model_is_refused_by_store_and_name(world, stores, tmp_path, change, differs):
    other = shutil.copytree(world / "phi3", tmp_path / "other")
    change(other)
    with pytest.raises(UserError, match=rf"{differs}_sha256 differ") as refused:
        embed_torch.load_encoder(stores("instructed"), model=other, device="cpu")
    message = str(refused.value)
    assert "instructed" in message and str(other) in message and "\n" not in message


def test_stores_of_before_open_and_need_a_template_that_came_from_a_file(world, stores, tmp_path):
    """The manifest lacks every key that was added later."""
    later = ("template", "encoder_folder", "encoder_revision", "prefix", "sha256", "hashes")
    for name in ("words", "encoder", "instructed", "instructed, cut"):
        old = shutil.copytree(stores(name), tmp_path / name)
        manifest = json.loads((old / "manifest.json").read_text())
        kept = {key: value for key, value in manifest.items() if key not in later}
        (old / "manifest.json").write_text(json.dumps(kept))
        if name == "instructed, cut":
            with pytest.raises(UserError, match=r"template_sha256 differ \(give template=FILE"):
                embed_torch.load_encoder(old, device="cpu")
            template = world / "template.jinja"
            embed_torch.load_encoder(old, template=template, device="cpu")
        else:
            embed_torch.load_encoder(old, device="cpu")
        identities = [
            open_store(folder, read_corpus(world / "corpus")).identity
            for folder in (old, stores(name))
        ]
        assert identities[0] == identities[1]  # so that a run of the one opens with the other


def test_an_old_store_is_complete_and_can_be_reused(world, stores, tmp_path, capsys):
    old = shutil.copytree(stores("instructed"), tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    later = ("template", "encoder_folder", "sha256", "hashes")
    kept = {k: v for k, v in manifest.items() if k not in later}
    (old / "manifest.json").write_text(json.dumps(kept))
    (old / ".lock").touch()
    write_store(world, old, **STORES["instructed"])
    assert "already complete" in capsys.readouterr().out
    write_store(world, tmp_path / "new", **STORES["instructed"], reuse=str(old))
    rows = kept["rows"]
    assert f"{rows} reviews copied" in capsys.readouterr().out
    for name in ("mean.npy", "tokens.npy"):
        assert (tmp_path / "new" / name).read_bytes() == (old / name).read_bytes()


def test_a_store_has_its_own_settings_and_a_model_no_other_model(world, stores):
    for setting in ({"instruction": "Read."}, {"normalize": False}, {"dtype": "float16"}):
        with pytest.raises(UserError, match=f"{next(iter(setting))} cannot be chosen: store"):
            embed_torch.load_encoder(stores("encoder"), **setting)
    with pytest.raises(
        UserError, match=r"model=.* applies only to a store, and .*bert has no manifest"
    ):
        embed_torch.load_encoder(world / "bert", model=world / "bert")


def test_an_unfinished_store_is_refused(stores, tmp_path):
    unfinished = shutil.copytree(stores("encoder"), tmp_path / "unfinished")
    (unfinished / "manifest.json").rename(unfinished / "journal.ndjson")
    with pytest.raises(UserError, match="manifest.json does not exist; python -m embed_torch"):
        embed_torch.load_encoder(unfinished)
    with pytest.raises(UserError, match="the folder .*nowhere does not exist"):
        embed_torch.load_encoder(tmp_path / "nowhere")


def test_a_relative_model_that_has_moved_is_named_by_its_folder(world, tmp_path, monkeypatch):
    shutil.copytree(world / "bert", tmp_path / "models" / "bert")
    monkeypatch.chdir(tmp_path)
    arguments = {"corpus": str(world / "corpus"), "model": "models/bert", "device": "cpu"}
    embed.run(EmbedConfig(**arguments, output="store"))
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(UserError, match=f"the folder {tmp_path}/models/bert does not exist"):
        embed_torch.load_encoder("store")


def test_a_packaged_model_is_opened_again_beside_a_folder_of_its_name(
    world, texts, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("minilm", "words"):
        (tmp_path / name).mkdir()
        store = write_store(world, tmp_path / f"{name}_store", model=name, max_tokens=16)
        assert "encoder_folder" not in json.loads((store / "manifest.json").read_text())
        row = np.load(store / "mean.npy")[:1]
        found = embed_torch.load_encoder(store, device="cpu").encode(texts[:1])
        assert units_in_the_last_place(found, row).max() <= 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"store_dtype": "int8"}, "--store_dtype='int8' must be one of float16, float32"),
        ({"pool_over": "zz"}, "--pool_over='zz' must be one of all, review"),
        ({"dtype": "float99"}, "--dtype='float99' must be one of float32, bfloat16, float16"),
        ({"truncate": "middle"}, "--truncate='middle' must be one of head, "),
        ({"gptq": ["packed"]}, "--gptq=.*must be one of dequantize, packed"),
        ({"max_tokens": "5"}, "--max_tokens='5' must be int"),
        ({"max_tokens": True}, "--max_tokens=True must be int"),
        ({"normalize": 1}, r"--normalize=1 must be bool or None"),
        ({"prefix": 1}, r"--prefix=1 must be str or None"),
        ({"instruction": None}, "--instruction=None must be str"),
    ],
    ids=str,
)
def test_a_setting_of_another_type_is_refused_by_its_flag(unchecked, setting, message):
    with pytest.raises(UserError, match=message):
        EncoderConfig(**setting)
    with pytest.raises(UserError, match=message):
        embed_torch.load_encoder("words", **setting)


@pytest.mark.parametrize("name", ["poolings", "corpus", "stor_dtype"])
def test_a_setting_that_is_not_known_is_a_type_error(stores, name):
    for source in ("words", stores("words")):
        with pytest.raises(TypeError, match=f"load_encoder.* unexpected keyword argument '{name}'"):
            embed_torch.load_encoder(source, **{name: "max"})


def test_an_empty_source_is_refused(world, monkeypatch):
    monkeypatch.chdir(world / "bert")
    with pytest.raises(UserError, match="source is empty"):
        embed_torch.load_encoder("")
    with pytest.raises(UserError, match="--model is empty"):
        EncoderConfig(model="")


def test_half_a_surrogate_pair_is_named_by_its_place(stores):
    encoder = embed_torch.load_encoder(stores("words"))
    with pytest.raises(UserError, match="text 2 is not valid Unicode.*surrogates") as refused:
        encoder.encode(["Good", "\U0001f642", "half \ud83d"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, this program reads 1"),
        ({"format_version": None}, "format version None, this program reads 1"),
        ({"poolings": 5}, "Expected `array`, got `int` - at `\\$.poolings`"),
        ({"poolings": [["mean"]]}, "Expected `str`, got `array` - at `\\$.poolings"),
        ({"poolings": []}, "length >= 1 - at `\\$.poolings"),
        ({"poolings": ["../mean"]}, "matching regex .* - at `\\$.poolings"),
        ({"default_pooling": "max"}, "default_pooling is 'max', not among poolings"),
        ({"encoder": 5}, "at `\\$.encoder`"),
        ({"encoder_folder": 5}, "at `\\$.encoder_folder`"),
        ({"instruction": 5}, "at `\\$.instruction`"),
        ({"max_tokens": "9"}, "at `\\$.max_tokens`"),
        ({"rows": -1}, "at `\\$.rows`"),
        ({"dim": 0}, "at `\\$.dim`"),
        ({"dtype": "int8"}, "at `\\$.dtype`"),
        ({"normalize": "no"}, "at `\\$.normalize`"),
        ({"weights_sha256": "1" * 63}, "at `\\$.weights_sha256`"),
        ({"hashes": {"mean.npy": ["0"]}}, "at `\\$.hashes"),
    ],
    ids=str,
)
def test_a_manifest_of_another_version_or_type_is_refused_in_one_line(
    unchecked, stores, tmp_path, change, message
):
    store = shutil.copytree(stores("words"), tmp_path / "store")
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | change))
    if "format_version" not in change:
        with pytest.raises(UserError, match="manifest.json was changed after it was written"):
            embed_torch.load_encoder(store)
        del manifest["sha256"]
        (store / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=message) as refused:
        embed_torch.load_encoder(store)
    assert "\n" not in str(refused.value) and str(store) in str(refused.value)


def test_a_store_of_another_version_is_neither_reused_nor_complete(world, stores, tmp_path):
    store = shutil.copytree(stores("words"), tmp_path / "store")
    (store / ".lock").touch()
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(UserError, match="format version 2"):
        write_store(world, store, model="words")
    with pytest.raises(UserError, match="format version 2"):
        write_store(world, tmp_path / "new", model="words", reuse=str(store))


def test_a_hub_name_is_opened_at_the_commit_it_was_embedded_with(world, tmp_path, monkeypatch):
    """A folder stands in for the hub, with a snapshot per commit."""
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        return str(tmp_path / "snapshots" / (revision or "newest0"))

    shutil.copytree(world / "bert", tmp_path / "snapshots" / "newest0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    write_store(world, tmp_path / "store", model="some/bert")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["encoder_revision"] == "newest0" and "encoder_folder" not in manifest
    embed_torch.load_encoder(tmp_path / "store", device="cpu")
    assert asked == [("some/bert", None), ("some/bert", "newest0")]


def test_an_embedding_too_large_for_the_store_is_refused(world, tmp_path):
    model = shutil.copytree(world / "labse", tmp_path / "model")
    config = json.loads((model / "2_Dense" / "config.json").read_text())
    config["activation_function"] = "torch.nn.modules.linear.Identity"
    (model / "2_Dense" / "config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    path = model / "2_Dense" / "model.safetensors"
    save_file({name: tensor * 1e7 for name, tensor in load_file(path).items()}, path)
    settings = {"normalize": False, "store_dtype": "float16", "device": "cpu"}
    with pytest.raises(UserError, match="text 0 holds .* which float16 cannot store"):
        embed_torch.load_encoder(model, **settings).encode(["Great food"])


@pytest.mark.parametrize("name", ["encoder, review", "encoder, cut", "instructed, review"])
def test_a_dry_run_times_what_the_run_embeds(world, tmp_path, monkeypatch, name):
    """The same tokens are pooled by the same poolings, and normalized alike."""
    seen: dict[bool, set] = {True: set(), False: set()}
    whole = backbone.Backbone.start

    def start(self, batch):
        finish = whole(self, batch)

        def finish_and_note():
            result = finish()
            lengths = np.concatenate([np.linalg.norm(rows, axis=1) for rows in result.values()])
            unit = bool(np.allclose(lengths, 1, atol=1e-3))
            seen[dry].add((batch.around, batch.poolings, unit))
            return result

        return finish_and_note

    monkeypatch.setattr(backbone.Backbone, "start", start)
    monkeypatch.setattr("embed_torch.dry_run._SAMPLE_SECONDS", 0.1)
    for dry in (True, False):
        write_store(world, tmp_path / "store", **STORES[name], dry_run=dry)
    assert len(seen[True]) == 1 and seen[True] <= seen[False]  # which has category names besides


def test_importing_the_package_loads_no_framework_and_names_the_library():
    code = (
        "import sys, embed_torch; print('torch' in sys.modules, dir(embed_torch)); "
        "from embed_torch import Encoder, load_encoder; print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    first, second = result.stdout.splitlines()
    assert first.startswith("False") and "'Encoder'" in first and "'load_encoder'" in first
    assert second == "True"
    with pytest.raises(AttributeError, match="no attribute 'decoder'"):
        _ = embed_torch.decoder
