"""Runs a network over texts packed one after the other, without a token of padding.

In: token ids of several texts. Out: the states [t, e] of all their tokens after the final norm, and
what the last block's attention was computed from, for attentional pooling. Hugging Face networks
ask `AttentionInterface` for their attention function by name; the one registered here lets each
token see its own text only. A network whose attention cannot be replaced, or whose positions are
not plain (RoBERTa, MPNet), runs over texts of equal length instead, which need no padding either.

Shapes: t tokens of all texts, n heads, g key-value heads, h head width, e embedding width.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

NAME = "sasnet_packed"
# What networks tell their attention function that changes nothing here (no cache, no dropout).
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}


@dataclasses.dataclass(frozen=True, slots=True)
class LastAttention:
    """From what a block computed its attention: queries and keys of packed texts, rotated."""

    query: Float[torch.Tensor, "n t h"]
    key: Float[torch.Tensor, "g t h"]
    scaling: float
    causal: bool
    sliding_window: int | None  # keys that a query sees, itself included; None: all


class Texts:
    """Packed texts on their way through a network."""

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.lengths = list(lengths)
        self.offsets = [0, *itertools.accumulate(lengths)]
        self.boundaries = _to(device, torch.tensor(self.offsets, dtype=torch.int32))
        self.last: LastAttention | None = None  # of the latest block

    def of_one_length(self) -> list[tuple[int, int, int]]:
        """(first token, texts, tokens a text) of consecutive texts of one length."""
        found, start = [], 0
        for length, group in itertools.groupby(self.lengths):
            texts = sum(1 for _ in group)
            found.append((start, texts, length))
            start += texts * length
        return found


@torch.inference_mode()
def states_of(
    network: transformers.PreTrainedModel, batch: Sequence[Sequence[int]]
) -> tuple[Float[torch.Tensor, "t e"], LastAttention | None]:
    """States of all tokens of a batch, text after text, and the last block's attention.

    Without packed attention (`use_packed_attention`) the latter is None.
    """
    device = network.device
    texts = Texts([len(ids) for ids in batch], device)
    flat = torch.tensor(list(itertools.chain.from_iterable(batch)), dtype=torch.long)
    positions = torch.cat([torch.arange(length) for length in texts.lengths])
    flat = _to(device, flat)
    # A causal network would keep the keys and values of every block for tokens yet to come.
    no_cache = {"use_cache": False} if hasattr(network.config, "use_cache") else {}
    if network.config._attn_implementation != NAME:
        parts = []
        for start, count, length in texts.of_one_length():
            ids = flat[start : start + count * length].view(count, length)
            parts.append(network(input_ids=ids, **no_cache).last_hidden_state.flatten(0, 1))
        return torch.cat(parts), None
    output = network(
        input_ids=flat[None],
        position_ids=_to(device, positions)[None],
        packed_texts=texts,
        **no_cache,
    )
    return output.last_hidden_state[0], texts.last


def _to(device: torch.device, values: torch.Tensor) -> torch.Tensor:
    """A copy on a device, of which a GPU need not be waited for."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def use_packed_attention(network: transformers.PreTrainedModel) -> bool:
    """Lets a network run over packed texts, if it then does what it does over single ones.

    Its RMS norms become PyTorch's then.

    Returns:
      Whether it does. If not, the network is left as it was.
    """
    own = network.config._attn_implementation
    generator = torch.Generator().manual_seed(0)
    vocabulary = network.config.vocab_size
    batch: list[list[int]] = [
        torch.randint(vocabulary, (length,), generator=generator).tolist() for length in (9, 5, 5)
    ]
    alone = torch.cat([states_of(network, [ids])[0] for ids in batch]).float()
    replaced = _fuse_norms(network)
    try:
        network.set_attn_implementation(NAME)
        together, last = states_of(network, batch)
    except (ValueError, TypeError, RuntimeError, IndexError):
        together, last = torch.full_like(alone, torch.nan), None
    tolerance = 1e-4 if network.dtype == torch.float32 else 5e-2
    difference = (together.float() - alone).norm(dim=1) / alone.norm(dim=1)
    if last is not None and (difference <= tolerance).all():
        return True
    network.set_attn_implementation(own)
    for parent, name, norm in replaced:
        setattr(parent, name, norm)
    return False


def _fuse_norms(network: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    """RMS norms by PyTorch's kernel: one pass over the states on a GPU, not Hugging Face's six.

    Returns:
      What was replaced: parent, name, and the norm that was there.
    """
    replaced = []
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            fused = _fused(norm)
            if fused is not None:
                setattr(parent, name, fused)
                replaced.append((parent, name, norm))
    return replaced


@torch.inference_mode()
def _fused(norm: Any) -> torch.nn.RMSNorm | None:
    """PyTorch's norm of the same weight, where it gives the same."""
    weight: Any = getattr(norm, "weight", None)
    arguments = list(inspect.signature(norm.forward).parameters)
    is_plain = isinstance(weight, torch.nn.Parameter) and weight.dim() == 1
    if not (hasattr(norm, "variance_epsilon") and is_plain and arguments == ["hidden_states"]):
        return None
    fused = torch.nn.RMSNorm(weight.shape, norm.variance_epsilon, device="meta")
    fused.weight = weight
    states = torch.linspace(-3, 3, 2 * len(weight)).view(2, -1).to(weight)
    expected, found = norm(states), fused(states)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 1e-2
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    return fused if found.dtype == expected.dtype and difference <= tolerance else None


def _packed_attention(
    module: torch.nn.Module,
    query: Float[torch.Tensor, "1 n t h"],
    key: Float[torch.Tensor, "1 g t h"],
    value: Float[torch.Tensor, "1 g t h"],
    attention_mask: None,
    *,
    packed_texts: Texts,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Float[torch.Tensor, "1 t n h"], None]:
    """Attention of every token to the tokens of its own text.

    Raises:
      ValueError: the network wants more than this function does.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = others.get("is_causal")
    causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    wanted = {name for name, value in others.items() if value is not None} - _HARMLESS
    if wanted or (sliding_window is not None and not causal):
        raise ValueError(f"packed attention does not know {wanted or 'two-sided windows'}")
    packed_texts.last = LastAttention(query[0], key[0], scaling, causal, sliding_window)
    attend = _by_length
    if query.is_cuda and query.dtype != torch.float32:  # flash attention knows no float32
        attend = _flash
    return attend(query[0], key[0], value[0], packed_texts)[None], None


def _flash(
    query: Float[torch.Tensor, "n t h"],
    key: Float[torch.Tensor, "g t h"],
    value: Float[torch.Tensor, "g t h"],
    texts: Texts,
) -> Float[torch.Tensor, "t n h"]:
    """All texts in one kernel."""
    assert texts.last is not None  # set by the caller
    longest, window = max(texts.lengths), texts.last.sliding_window
    before = window - 1 if window else -1
    attended = varlen_attn(
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1).contiguous(),
        value.transpose(0, 1).contiguous(),
        texts.boundaries,
        texts.boundaries,
        longest,
        longest,
        scale=texts.last.scaling,
        window_size=(before, 0 if texts.last.causal else before),
        enable_gqa=len(query) != len(key),
    )
    assert isinstance(attended, torch.Tensor)  # a tuple only where more is asked for
    return attended


def _by_length(
    query: Float[torch.Tensor, "n t h"],
    key: Float[torch.Tensor, "g t h"],
    value: Float[torch.Tensor, "g t h"],
    texts: Texts,
) -> Float[torch.Tensor, "t n h"]:
    """Texts of one length at a time."""
    assert texts.last is not None  # set by the caller
    causal, window = texts.last.causal, texts.last.sliding_window
    parts = []
    for start, count, length in texts.of_one_length():
        run = slice(start, start + count * length)
        q, k, v = (  # [count, n, length, h]
            states[:, run].unflatten(1, (count, length)).transpose(0, 1)
            for states in (query, key, value)
        )
        mask = None
        if window is not None and window < length:
            mask = visible(slice(0, length), length, causal, window, query.device)
        attended = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=texts.last.scaling,
            enable_gqa=len(query) != len(key),
        )
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def visible(
    rows: slice, length: int, causal: bool, sliding_window: int | None, device: torch.device
) -> torch.Tensor:
    """Which keys [rows, length] the queries of some rows see: bool, True = seen."""
    distance = torch.arange(rows.start, rows.stop, device=device)[:, None] - torch.arange(
        length, device=device
    )
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if sliding_window is None else seen & (distance.abs() < sliding_window)


transformers.AttentionInterface.register(NAME, _packed_attention)
# Each text sees itself only, whatever mask a network would make.
transformers.AttentionMaskInterface.register(NAME, lambda *_, **__: None)
