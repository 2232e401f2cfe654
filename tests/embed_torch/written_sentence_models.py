"""Small random checkpoints as sentence-transformers lays them out, one of each kind in use."""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
import written_tokenizers

from embed_torch import checkpoint

DIM = 16
TASK = "Instruct: Find what the review is about\nQuery:"
_SIZES = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3}
E5 = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
TANH = {"activation_function": "torch.nn.modules.activation.Tanh"}
IDENTITY = {"activation_function": "torch.nn.modules.linear.Identity", "bias": False}
# Arguments of `write_sentence_model`, by the model that each resembles.
KINDS: dict[str, dict[str, Any]] = {
    "BGE": {"mode": "cls", "normalize": True},
    "mean": {},
    "as written by an old version": {"old": True, "mode": "cls"},
    "E5": {"normalize": True, "prompts": E5},
    "E5, prompt not pooled": {"prompts": E5, "include_prompt": False},
    "E5, multilingual": {"prompts": E5, "tokenizer": "unigram"},
    "LaBSE": {"mode": "cls", "dense": [TANH | {"out_features": 24}], "normalize": True},
    "two projections": {"dense": [IDENTITY | {"out_features": 8}, TANH | {"out_features": 12}]},
    "weighted mean": {"mode": "weightedmean"},
    "max": {"mode": "max"},
    "lowercased": {"tokenizer": "unigram", "settings": {"do_lower_case": True}},
    "short": {"settings": {"max_seq_length": 12}},
    "Qwen3-Embedding": {"mode": "lasttoken", "normalize": True, "tokenizer": "byte level"},
    "Qwen3-Embedding, prompted": {
        "mode": "lasttoken",
        "tokenizer": "byte level",
        "prompts": {"prompts": {"query": TASK}, "default_prompt_name": "query"},
    },
    "e5-mistral": {"mode": "lasttoken", "normalize": True, "tokenizer": "metaspace"},
    "causal mean": {"tokenizer": "metaspace", "settings": {"max_seq_length": 20}},
}


def write_sentence_model(
    folder: Path,
    *,
    mode: str = "mean",
    normalize: bool = False,
    dense: list[dict] | None = None,
    prompts: dict | None = None,
    include_prompt: bool = True,
    settings: dict | None = None,
    tokenizer: str = "minilm",
    old: bool = False,
) -> Path:
    """Writes a checkpoint.

    Args:
      folder: to make.
      mode: of pooling.
      normalize: whether the last module is Normalize.
      dense: configurations of Dense modules, without their `in_features`.
      prompts: of config_sentence_transformers.json.
      include_prompt: of the Pooling module.
      settings: sentence_bert_config.json.
      tokenizer: minilm, or unigram: of a BERT; byte level or metaspace: of a language model whose
        tokenizer ends texts.
      old: name modules and modes as before version 5.
    """
    _write_network(folder, tokenizer)
    package = "sentence_transformers.models" if old else "sentence_transformers.base.modules"
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    pooling = {"embedding_dimension": DIM, "pooling_mode": mode, "include_prompt": include_prompt}
    if old:
        pooling = {"word_embedding_dimension": DIM, f"pooling_mode_{mode}_token": True}
        pooling["pooling_mode_mean_tokens"] = False
    _write(folder / "1_Pooling" / "config.json", pooling)
    width = DIM
    for number, config in enumerate(dense or [], 2):
        part = folder / f"{number}_Dense"
        modules.append(("Dense", part.name))
        _write(part / "config.json", {"in_features": width, "bias": True, **config})
        tensors = {"linear.weight": torch.randn(config["out_features"], width) / 4}
        if config.get("bias", True):
            tensors["linear.bias"] = torch.randn(config["out_features"]) / 4
        safetensors.torch.save_file(tensors, part / "model.safetensors")
        width = config["out_features"]
    if normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir()
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    if not old:  # each in its own file since
        places = {"Transformer": "base.modules.transformer", "Dense": "base.modules.dense"}
        places |= {"Normalize": "base.modules.normalize"}
        places |= {"Pooling": "sentence_transformer.modules.pooling"}
        for module, (kind, _) in zip(listed, modules, strict=True):
            module["type"] = f"sentence_transformers.{places[kind]}.{kind}"
    _write(folder / "modules.json", listed)
    if prompts:
        _write(folder / "config_sentence_transformers.json", prompts)
    if settings:
        _write(folder / "sentence_bert_config.json", settings)
    return folder


def _write_network(folder: Path, tokenizer: str) -> None:
    torch.manual_seed(len(tokenizer))
    if tokenizer == "minilm":
        folder.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copy(checkpoint.minilm_folder() / name, folder)
        config = transformers.BertConfig(vocab_size=30522, **_SIZES)
        transformers.BertModel(config).save_pretrained(folder)
    elif tokenizer == "unigram":
        written_tokenizers.write_unigram_tokenizer(folder)
        config = transformers.BertConfig(vocab_size=written_tokenizers.VOCAB_SIZE, **_SIZES)
        transformers.BertModel(config).save_pretrained(folder)
    else:
        if tokenizer == "byte level":
            written_tokenizers.write_byte_level_tokenizer(folder, around="$A <|endoftext|>")
        else:
            written_tokenizers.write_metaspace_tokenizer(folder, around="<s> $A </s>")
        sizes = _SIZES | {"max_position_embeddings": 256}
        config = transformers.Qwen2Config(
            vocab_size=written_tokenizers.VOCAB_SIZE, num_key_value_heads=2, **sizes
        )
        transformers.Qwen2ForCausalLM(config).save_pretrained(folder)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
