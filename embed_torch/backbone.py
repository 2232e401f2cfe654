"""Loads a network, and turns batches of token ids into embeddings.

In: a checkpoint, and ids of whole inputs. Out: float32 embeddings [b, e] by pooling. Weights come
from safetensors only, and all of them from the checkpoint.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from embed_torch import attention, gptq, packing, pooling, words
from embed_torch.cli import UserError
from embed_torch.pooling import Span
from embed_torch.sentence_modules import Dense


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Inputs that go through the network together.

    Attributes:
      ids: token ids of each input, including the prompt's.
      around: tokens before and after each review that are not pooled.
      poolings: some of `pooling.POOLINGS`.
    """

    ids: list[list[int]]
    around: tuple[int, int]
    poolings: tuple[str, ...]

    def part(self, members: list[int]) -> "Batch":
        """A batch of some of its inputs."""
        return dataclasses.replace(self, ids=[self.ids[member] for member in members])

    def filled(self, tokens: int) -> "Batch":
        """The same inputs, repeated until there are at least `tokens` tokens."""
        times = -(-tokens // sum(map(len, self.ids)))
        return dataclasses.replace(self, ids=self.ids * max(times, 1))

    def spans(self) -> list[Span]:
        """Where each input lies when packed; one without review tokens is pooled whole."""
        spans, start = [], 0
        for ids in self.ids:
            stop = start + len(ids)
            first, last = start + self.around[0], stop - self.around[1]
            spans.append(Span(start, stop, *((first, last) if first < last else (start, stop))))
            start = stop
        return spans


@dataclasses.dataclass(frozen=True, slots=True)
class Loading:
    """How to load a network, as told to each worker."""

    name: str
    folder: Path
    dtype: str
    device: str
    gptq: Literal["dequantize", "packed"]
    attentional: bool = False  # whether the last block's attention is needed
    dense: tuple[Dense, ...] = ()  # projections of the pooled embeddings
    normalize: bool = False  # whether embeddings are scaled to length 1


class Backbone:
    """A network on its device.

    Raises:
      UserError: there are no safetensors or there is no such device, or weights are missing or
        damaged.
    """

    def __init__(self, loading: Loading):
        self._device = device_named(loading.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # for events and pinned copies
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
        """The device on which the network runs."""
        return self._device

    @functools.cached_property
    def fill(self) -> int:
        """The batch size, in tokens, from which on size changes no bits; 0 if unknown."""
        layers = self._network.modules() if self._packs and self._device.type == "cpu" else ()
        return packing.least_tokens(
            [layer.in_features for layer in layers if isinstance(layer, torch.nn.Linear)]
        )

    def embed(self, batch: Batch) -> dict[str, np.ndarray]:
        """Embeds a batch: float32 [b, e] by pooling."""
        return self.start(batch)()

    def start(self, batch: Batch) -> Callable[[], dict[str, np.ndarray]]:
        """Begins to embed a batch, and returns a function that waits for the result.

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
        embeddings = {name: values.numpy() for name, values in pooled.items()}
        if self._normalize:
            for name, values in embeddings.items():
                lengths = np.linalg.norm(values, axis=1, keepdims=True)
                embeddings[name] = values / np.maximum(lengths, np.finfo(np.float32).tiny)
        return embeddings


def device_named(name: str) -> torch.device:
    """The device that --device names; raises UserError if it does not exist."""
    try:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.empty(1, device=name or default).device  # with "cuda" resolved to one GPU
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
        network, report = transformers.AutoModel.from_pretrained(
            loading.folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = str(error)
        if "ignore_mismatched_sizes" in why:  # advice meant for developers
            why = "its weights have other shapes than its config.json says: download it again"
        raise UserError(f"--model={loading.name} cannot be loaded: {why}") from None
    prefix = f"{network.base_model_prefix}."
    parts = {name for name, _ in network.named_children()}
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    mismatched = [str(entry[0]) for entry in report["mismatched_keys"]]
    unexpected = [  # a head's weights are not needed
        name
        for name in report["unexpected_keys"]
        if name.removeprefix(prefix).partition(".")[0] in parts
    ]
    faults = {"lacks": missing, "has another shape of": mismatched, "has no place for": unexpected}
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"--model={loading.name} {fault} the weight {min(names)}{more}")
    return network.to(device)
