"""Checkpoints of sentence-transformers, against `SentenceTransformer.encode`."""

import hashlib
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from written_sentence_models import DIM, KINDS, TANH, write_sentence_model

import embed_torch
from embed_torch import checkpoint, embed
from embed_torch.cli import UserError
from embed_torch.config import EmbedConfig, EncoderConfig
from embed_torch.encoder import Encoder
from sasnet_jax.prepare import command as prepare

TEXTS = [
    "Great food, and the waiter was kind.",
    "Bad.",
    "THE SOUP was cold, Again!",
    "word " * 300,
    "A review of middling length that says very little about anything at all, twice. " * 2,
    "best pizza in town: thin, crisp and cheap",
    "",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentence_models")
    return {
        kind: write_sentence_model(folder / str(number), **arguments)
        for number, (kind, arguments) in enumerate(KINDS.items())
    }


@pytest.fixture
def edit(written, tmp_path):
    """A copy of a checkpoint, one of its JSON files changed."""

    def copy(kind: str, name: str, change):
        folder = shutil.copytree(written[kind], tmp_path / "model")
        path = folder / name
        value = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(change(value)))
        return folder

    return copy


def reference(folder, texts, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu")
        return model.encode(texts, batch_size=1, show_progress_bar=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_equal_sentence_transformers(written, kind):
    encoder = embed_torch.load_encoder(written[kind], device="cpu")
    found, expected = encoder.encode(TEXTS), reference(written[kind], TEXTS)
    assert found.shape == (len(TEXTS), encoder.dim)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "query: ", "About"])
def test_prefix_takes_the_place_of_the_checkpoints_own(written, prefix):
    encoder = embed_torch.load_encoder(written["E5"], prefix=prefix, device="cpu")
    expected = reference(written["E5"], TEXTS[:-1], prompt=prefix)
    np.testing.assert_allclose(encoder.encode(TEXTS[:-1]), expected, atol=2e-5)


def test_what_the_user_says_goes_before_the_checkpoints_own(written):
    said = {"poolings": "mean,max", "normalize": False, "store_dtype": "float32"}
    encoder = Encoder(EncoderConfig(model=str(written["BGE"]), **said))
    assert (encoder.poolings, encoder.normalize) == (("mean", "max"), False)
    np.testing.assert_allclose(
        encoder.encode(TEXTS), reference(written["mean"], TEXTS), atol=2e-5, rtol=1e-5
    )


def test_a_store_by_default_is_what_the_checkpoint_gives(written, tmp_path):
    prepare.run(prepare.PrepareConfig(synthetic=120, output=str(tmp_path / "corpus")))
    same = {"corpus": str(tmp_path / "corpus"), "store_dtype": "float32", "device": "cpu"}
    for kind, array in {"LaBSE": "first", "Qwen3-Embedding": "last", "E5": "mean"}.items():
        output = tmp_path / kind
        embed.run(EmbedConfig(**same, model=str(written[kind]), output=str(output)))
        table = np.load(output / f"{array}.npy")
        texts = embed.corpus.read_texts(tmp_path / "corpus").reviews.to_list()
        np.testing.assert_allclose(table, reference(written[kind], texts), atol=2e-5)
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["default_pooling"] == array and manifest["normalize"]
        assert manifest["dim"] == table.shape[1] == np.load(output / "categories.npy").shape[1]
        assert manifest.get("prefix") == ("passage: " if kind == "E5" else None)


def test_a_language_model_without_modules_reads_no_end_of_text(written, tmp_path):
    plain = shutil.copytree(written["e5-mistral"], tmp_path / "plain")
    (plain / "modules.json").unlink()
    ends = {}
    for folder in (written["e5-mistral"], plain):
        encoder = Encoder(EncoderConfig(model=str(folder)))
        (ids,) = encoder.review_inputs([0], ["Great food"]).ids
        ends[folder] = ids[-1] == 2
        assert ids[0] == 1
    assert ends == {written["e5-mistral"]: True, plain: False}


def _plain_hash(folder) -> str:
    lines = [
        f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n"
        for name in ("config.json", "model.safetensors")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_hash_of_weights_covers_what_the_settings_do_not_say(written, edit):
    """It is also what it was before modules were read, unless they say otherwise."""
    plain = {"BGE", "mean", "as written by an old version", "E5", "E5, multilingual", "max"}
    plain |= {"weighted mean", "lowercased", "short"}
    for kind, folder in written.items():
        unchanged = checkpoint.find_checkpoint(str(folder)).weights_sha256() == _plain_hash(folder)
        assert unchanged == (kind in plain), kind
    minilm = checkpoint.find_checkpoint("minilm")
    assert minilm.weights_sha256() == _plain_hash(minilm.folder)
    before = checkpoint.find_checkpoint(str(written["LaBSE"])).weights_sha256()
    other = edit(
        "LaBSE", "2_Dense/config.json", lambda value: value | {"activation_function": IDENT}
    )
    assert checkpoint.find_checkpoint(str(other)).weights_sha256() != before


IDENT = "torch.nn.modules.linear.Identity"


def _module(kind: str):
    """Adds a module of another type to modules.json."""
    return lambda modules: [*modules, {"idx": 9, "name": "9", "path": "9_Other", "type": kind}]


@pytest.mark.parametrize(
    ("name", "change", "mentions"),
    [
        ("modules.json", _module("sentence_transformers.models.LSTM"), "LSTM is not known"),
        ("modules.json", _module("sentence_transformers.models.Asym"), "Asym is not known"),
        ("modules.json", _module("custom_st.Pooling"), "custom_st.Pooling is not known"),
        ("modules.json", _module("sentence_transformers.models.Pooling"), "in this order"),
        ("modules.json", lambda modules: modules[:1], "in this order"),
        ("modules.json", lambda modules: {"type": "Pooling"}, "not a list of modules"),
        ("modules.json", lambda m: [m[0] | {"path": "0_T"}, *m[1:]], "0_T: give that folder"),
        ("1_Pooling/config.json", lambda c: c | {"pooling_mode": ["cls", "mean"]}, "cls beside"),
        ("1_Pooling/config.json", lambda c: c | {"pooling_mode": "mean_sqrt_len_tokens"}, "sqrt"),
        ("1_Pooling/config.json", lambda c: c | {"include_prompt": False}, "without the prompt"),
        ("2_Dense/config.json", lambda c: c | {"use_residual": True}, "use_residual is True"),
        ("2_Dense/config.json", lambda c: c | {"activation_function": "os.system"}, "os.system"),
        ("2_Dense/config.json", lambda c: c | {"out_features": 7}, "holds .* asks for"),
        ("config_sentence_transformers.json", lambda _: {"truncate_dim": 8}, "truncate_dim"),
        ("config_sentence_transformers.json", lambda _: {"default_prompt_name": "q"}, "'q'"),
        ("sentence_bert_config.json", lambda _: {"transformer_task": "fill-mask"}, "fill-mask"),
        (
            "config_sentence_transformers.json",
            lambda _: {"prompts": [1]},
            "prompts is .1., not an object",
        ),
        (
            "config_sentence_transformers.json",
            lambda _: {"prompts": {}, "default_prompt_name": ["q"]},
            "none of its prompts",
        ),
        (
            "2_Dense/config.json",
            lambda c: c | {"in_features": "16"},
            "in_features is '16', not a positive",
        ),
        (
            "2_Dense/config.json",
            lambda c: c | {"out_features": None},
            "out_features is None, not a positive",
        ),
        (
            "2_Dense/config.json",
            lambda c: c | {"in_features": 17},
            "in_features is 17, where .* gives 16",
        ),
        ("2_Dense/config.json", lambda c: c | {"bias": "no"}, "bias is 'no', not true or false"),
        ("2_Dense/config.json", lambda c: c | {"activation_function": ["x"]}, "is none of"),
        (
            "2_Dense/config.json",
            lambda c: c | {"module_input_name": "token_embeddings"},
            "token_embeddings",
        ),
        ("2_Dense/config.json", lambda c: c | {"dropout": 0.1}, "dropout is 0.1"),
        ("1_Pooling/config.json", lambda c: c | {"pooling_mode": 5}, "pooling_mode is 5"),
        ("1_Pooling/config.json", lambda c: c | {"include_prompt": "no"}, "include_prompt is 'no'"),
        ("1_Pooling/config.json", lambda c: c | {"temperature": 2}, "temperature is 2"),
        (
            "3_Normalize/config.json",
            lambda _: {"module_input_name": "token_embeddings"},
            "token_embeddings",
        ),
        ("3_Normalize/config.json", lambda _: {"p": 1}, "p is 1"),
        (
            "sentence_bert_config.json",
            lambda _: {"max_seq_length": "12"},
            "max_seq_length is '12', not a positive",
        ),
        (
            "sentence_bert_config.json",
            lambda _: {"max_seq_length": 0},
            "max_seq_length is 0, not a positive",
        ),
        ("sentence_bert_config.json", lambda _: {"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
        ("sentence_bert_config.json", lambda _: {"query_length": 4}, "query_length is 4"),
        (
            "sentence_bert_config.json",
            lambda _: {"tokenizer_args": {"do_lower_case": True}},
            "tokenizer_args is",
        ),
        (
            "sentence_bert_config.json",
            lambda _: {"config_kwargs": {"num_hidden_layers": 1}},
            "config_kwargs is",
        ),
        (
            "sentence_bert_config.json",
            lambda _: {"processing_kwargs": {"text": {"max_length": 4}}},
            "processing_kwargs is",
        ),
        (
            "sentence_bert_config.json",
            lambda _: {"tokenizer_name_or_path": "bert"},
            "tokenizer_name_or_path is",
        ),
        (
            "sentence_bert_config.json",
            lambda _: {"modality_config": {"message": {}}},
            "modality_config is",
        ),
        (
            "sentence_xlnet_config.json",
            lambda _: {"model_args": {"dtype": "float16"}},
            "model_args is",
        ),
    ],
)
def test_what_is_not_known_of_modules_is_refused_in_one_line(edit, name, change, mentions):
    folder = edit("LaBSE", name, change)
    with pytest.raises(UserError, match=mentions) as refused:
        embed_torch.load_encoder(folder, device="cpu")
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_a_projection_as_wide_as_the_one_before_it_is_told_from_others(written, tmp_path):
    folder = shutil.copytree(written["two projections"], tmp_path / "model")
    path = folder / "3_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_features": DIM}))
    with pytest.raises(UserError, match="3_Dense.*in_features is 16, where .* gives 8"):
        embed_torch.load_encoder(folder, device="cpu")


SETTINGS_FILES = ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]


@pytest.mark.parametrize("kind", SETTINGS_FILES)
def test_settings_of_any_name_are_followed(written, edit, kind):
    name = f"sentence_{kind}_config.json"
    folder = edit("mean", name, lambda _: {"max_seq_length": 9, "do_lower_case": True})
    (folder / "sentence_bert_config.json").write_text("{}")  # empty: the next is tried
    encoder = embed_torch.load_encoder(folder, device="cpu")
    found = encoder.encode(TEXTS)
    assert encoder.max_tokens == 9
    np.testing.assert_allclose(found, reference(folder, TEXTS), atol=2e-5, rtol=1e-5)


def test_the_first_settings_that_say_something_count(edit):
    folder = edit("short", "sentence_roberta_config.json", lambda _: {"max_seq_length": 9})
    found = embed_torch.load_encoder(folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, reference(folder, TEXTS), atol=2e-5, rtol=1e-5)


def test_settings_as_sentence_transformers_saves_them_pass(written, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(written["LaBSE"]), device="cpu").save(str(tmp_path / "saved"))
    settings = json.loads((tmp_path / "saved" / "sentence_bert_config.json").read_text())
    assert "modality_config" in settings
    found = embed_torch.load_encoder(tmp_path / "saved", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, reference(written["LaBSE"], TEXTS), atol=2e-5, rtol=1e-5)


def test_a_pooling_that_is_not_known_is_replaced_by_poolings(edit):
    modes = ["cls", "mean"]
    folder = edit("mean", "1_Pooling/config.json", lambda c: c | {"pooling_mode": modes})
    assert embed_torch.load_encoder(folder, pooling="mean", device="cpu").dim == DIM


def test_pickled_projections_are_refused(written, tmp_path):
    folder = shutil.copytree(written["LaBSE"], tmp_path / "model")
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(UserError, match="2_Dense.*pickled weights can execute code"):
        embed_torch.load_encoder(folder, device="cpu")


def test_a_prefix_with_a_control_token_is_refused(written):
    with pytest.raises(UserError, match="--prefix spells a control token"):
        embed_torch.load_encoder(written["E5"], prefix="query [SEP] ", device="cpu")
    with pytest.raises(UserError, match="--prefix and --instruction"):
        EncoderConfig(prefix="query: ", instruction="Analyze.")


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoder_decoders_are_refused(written, tmp_path, kind):
    folder = shutil.copytree(written["mean"], tmp_path / "model")
    sizes = {"d_model": DIM, "vocab_size": 30522}
    if kind == "bart":
        sizes |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
        sizes |= {"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        network = transformers.BartModel(transformers.BartConfig(**sizes))
    else:
        sizes |= {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        network = transformers.T5Model(transformers.T5Config(**sizes))
    network.save_pretrained(folder)
    with pytest.raises(UserError, match=rf"encoder-decoder \({kind}\).*take an encoder"):
        embed_torch.load_encoder(folder, device="cpu")


def test_a_projection_is_kept_in_float32(written):
    encoder = embed_torch.load_encoder(written["LaBSE"], dtype="bfloat16", device="cpu")
    assert {p.dtype for p in encoder.network._dense[0].parameters()} == {torch.float32}
    assert KINDS["LaBSE"]["dense"][0].items() > TANH.items()
