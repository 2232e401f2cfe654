"""Reads the settings of a sentence-transformers checkpoint: pooling, projections, length, prompt.

In: a folder with `modules.json` and what it names. Out: `SentenceModules`; without
`modules.json`, with all defaults but the longest input. Settings that would change the embeddings
and are not supported here are refused.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import normalizers

from embed_torch import gptq
from embed_torch.cli import UserError
from embed_torch.files import read_json

_MADE_BY = "the download of the checkpoint"
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLINGS = {  # ours by sentence-transformers' names
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "weightedmean": "positional",
    "lasttoken": "last",
}
# The keys before version 5.4 of sentence-transformers, in its order.
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The names that sentence-transformers tries for the settings of a Transformer, in its order.
_TRANSFORMER_CONFIGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Values of settings that change nothing; settings not named here must be empty.
_PLAIN_TRANSFORMER: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "unpad_inputs": True,  # how texts are batched
}
_PLAIN_PLACES = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
_ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Dense:
    """A projection after pooling: `Linear`, then an activation."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str  # of _ACTIVATIONS

    def load(self, device: torch.device) -> torch.nn.Module:
        """The layer on a device, in float32.

        Raises:
          UserError: its weights are pickled, missing, damaged or of another shape.
        """
        linear = torch.nn.Linear(self.inputs, self.outputs, self.bias)
        wanted = {f"linear.{name}": tuple(part.shape) for name, part in linear.named_parameters()}
        path = min(gptq.weight_files(self.folder))
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): download it again") from None
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != wanted:
            raise UserError(
                f"{path} holds {shapes}, but its config.json asks for {wanted}: download it again"
            )
        linear.load_state_dict({name[7:]: tensor.float() for name, tensor in tensors.items()})
        layer = torch.nn.Sequential(linear, _ACTIVATIONS[self.activation]())
        return layer.requires_grad_(False).to(device)


@dataclasses.dataclass(frozen=True, slots=True)
class SentenceModules:
    """What the author of a checkpoint does with texts and token states."""

    given: bool = False  # whether there is a modules.json
    modes: tuple[str, ...] = ("mean",)  # of pooling, in sentence-transformers' names
    include_prompt: bool = True  # whether the tokens of the prefix are pooled
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    prefix: str = ""  # put before every text
    lowercase: bool = False  # whether texts are lowercased before they are tokenized
    max_seq_length: int | None = None  # most tokens of an input; None: as the tokenizer says
    pooling_config: Path | None = None

    @property
    def pooling(self) -> str:
        """The checkpoint's own pooling.

        Raises:
          UserError: it is not supported here.
        """
        names = [_POOLINGS.get(mode) for mode in self.modes]
        if len(names) > 1 or names[0] is None or (names[0] != "mean" and not self.include_prompt):
            without = "" if self.include_prompt else " without the prompt"
            raise UserError(
                f"{self.pooling_config} pools by {' beside '.join(self.modes)}{without}, which is "
                "not known here: choose --poolings, or another model"
            )
        return names[0]

    def deciding_files(self, causal: bool) -> list[Path]:
        """The files that decide embeddings besides the settings in a store's manifest."""
        files = []
        if self.pooling_config and (causal or not self.include_prompt):
            # The tokens around the text of a language model then follow its tokenizer.
            files.append(self.pooling_config)
        for dense in self.dense:
            files += [dense.folder / "config.json", *gptq.weight_files(dense.folder)]
        return files


def read_modules(folder: Path) -> SentenceModules:
    """Reads `modules.json` of a checkpoint and the settings next to it.

    Raises:
      UserError: a module or one of its settings is not known here, or a file is malformed.
    """
    path = folder / "modules.json"
    max_seq_length, lowercase = _read_transformer(folder)
    if not path.is_file():
        return SentenceModules(max_seq_length=max_seq_length)
    try:
        modules = [(str(part["type"]), str(part["path"])) for part in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is not a list of modules: download the checkpoint again") from None
    for name, _ in modules:
        package, kind = name.partition(".")[0], name.rpartition(".")[2]
        if package != "sentence_transformers" or kind not in _KINDS:
            raise UserError(
                f"{path}: the module {name} is not known here, and no code of a checkpoint is run: "
                f"take a model of {', '.join(_KINDS)}"
            )
    order = " ".join(name.rpartition(".")[2] for name, _ in modules)
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)?", order):
        raise UserError(f"{path}: {order} are not {', '.join(_KINDS)} in this order")
    folders = [folder / Path(name).name for _, name in modules]
    if folders[0] != folder:
        raise UserError(f"{path}: its network lies in {folders[0]}: give that folder as --model")
    pooling_config = folders[1] / "config.json"
    modes, include_prompt = _read_pooling(pooling_config)
    if order.endswith("Normalize"):
        config = folders[-1] / "config.json"
        _refuse_others(_optional(config), config, (), _PLAIN_PLACES)
    return SentenceModules(
        given=True,
        modes=modes,
        include_prompt=include_prompt,
        dense=tuple(_read_dense(part) for part in folders[2 : 2 + order.count("Dense")]),
        normalize=order.endswith("Normalize"),
        prefix=_read_prefix(folder / "config_sentence_transformers.json"),
        lowercase=lowercase,
        max_seq_length=max_seq_length,
        pooling_config=pooling_config,
    )


def lowercase(tokenizer: tokenizers.Tokenizer) -> None:
    """Makes a tokenizer lowercase all texts first, as `do_lower_case` asks."""
    normalizer = tokenizer.normalizer
    parts = [normalizers.Lowercase(), *([normalizer] if normalizer else [])]
    tokenizer.normalizer = normalizers.Sequence(parts)


def _optional(path: Path) -> dict[str, Any]:
    """The settings in a file that need not exist."""
    return read_json(path, _MADE_BY) if path.is_file() else {}


def _refuse_others(
    config: Mapping[str, Any], path: Path, read: Collection[str], plain: Mapping[str, Any]
) -> None:
    """Refuses settings that are not empty, not `read` by the caller, and not as in `plain`."""
    for key, value in config.items():
        if value and key not in read and value != plain.get(key):
            raise UserError(
                f"{path}: {key} is {value!r}, which is not known here: take a model without it"
            )


def _typed(config: dict[str, Any], path: Path, key: str, default: Any, kind: type) -> Any:
    """A setting, checked: null stands for the default, and an int must be at least 1."""
    value: Any = default if config.get(key) is None else config[key]
    too_small = kind is int and isinstance(value, int) and value < 1
    if value is not None and (type(value) is not kind or too_small):
        what = {int: "a positive integer", bool: "true or false", dict: "an object"}[kind]
        raise UserError(
            f"{path}: {key} is {config[key]!r}, not {what}: download the checkpoint again"
        )
    return value


def _read_transformer(folder: Path) -> tuple[int | None, bool]:
    """The longest input, and whether texts are lowercased whatever the tokenizer does."""
    for name in _TRANSFORMER_CONFIGS:
        path = folder / name
        config = _optional(path)
        if config:
            break
    _refuse_others(config, path, ("max_seq_length", "do_lower_case"), _PLAIN_TRANSFORMER)
    max_seq_length = _typed(config, path, "max_seq_length", None, int)
    return max_seq_length, _typed(config, path, "do_lower_case", False, bool)


def _read_pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """The modes of pooling, and whether the prompt is pooled too."""
    config = read_json(path, _MADE_BY)
    widths = ("embedding_dimension", "word_embedding_dimension")
    _refuse_others(config, path, {*widths, "pooling_mode", "include_prompt", *_OLD_MODES}, {})
    modes = config.get("pooling_mode") or [
        mode for key, mode in _OLD_MODES.items() if config.get(key)
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if not isinstance(modes, list):
        raise UserError(f"{path}: pooling_mode is {modes!r}, not a name or a list of them")
    return tuple(map(str, modes)), _typed(config, path, "include_prompt", True, bool)


def _read_dense(folder: Path) -> Dense:
    path = folder / "config.json"
    sizes = ("in_features", "out_features")
    config = read_json(path, _MADE_BY, sizes)
    _refuse_others(config, path, (*sizes, "bias", "activation_function"), _PLAIN_PLACES)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if str(activation) not in _ACTIVATIONS:
        known = ", ".join(name.rpartition(".")[2] for name in _ACTIVATIONS)
        raise UserError(f"{path}: the activation {activation} is none of {known}")
    inputs, outputs = (_typed(config, path, key, 0, int) for key in sizes)
    return Dense(folder, inputs, outputs, _typed(config, path, "bias", True, bool), activation)


def _read_prefix(path: Path) -> str:
    """The checkpoint's default prompt."""
    config = _optional(path)
    if config.get("truncate_dim"):
        raise UserError(f"{path}: truncate_dim is not known here: remove it for whole embeddings")
    name, prompts = config.get("default_prompt_name"), _typed(config, path, "prompts", {}, dict)
    if name is None:
        return ""
    if not isinstance(name, str) or not isinstance(prompts.get(name), str):
        raise UserError(f"{path}: default_prompt_name is {name!r}, which is none of its prompts")
    return prompts[name]
