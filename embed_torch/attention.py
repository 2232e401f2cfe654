"""Runs a network over texts packed one after the other, without any padding.

In: token ids of several texts. Out: the states [t, e] of all their tokens after the final norm, and
what the last block's attention was computed from, for attentional pooling. Hugging Face networks
ask `AttentionInterface` for their attention function by name; the function registered here lets
each token see its own text only. A network whose states change when packed (MPNet, with biases by
distance; Llama 4, with masks in chunks) runs over texts of one length instead, which need no
padding either.

Shapes: t tokens of all texts, n heads, g key-value heads, h head width, e embedding width.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

NAME = "sasnet_packed"
_CHECKED = "sasnet_packed_checked"  # the same for one text, but checks the masks that are asked for
# Arguments of a network's attention function that change nothing here (no cache, no dropout; the
# masks decide the windows, as in Hugging Face's own attention).
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions"}
_HARMLESS |= {"sliding_window"}
# How much the states of a packed text may differ from those of the text alone, relative to their
# norm: some multiple of the rounding noise; at least what an embedding may depend on its batch
# (float32, half precision); and never so much that a wrong answer would pass.
_TIMES_NOISE, _SAME_ANSWER, _SAME_ANSWER_IN_HALF, _MOST = 4, 1e-5, 2e-2, 0.25


class CannotPack(Exception):
    """A network computes something else over packed texts than over single ones; says what."""


@dataclasses.dataclass(frozen=True, slots=True)
class LastAttention:
    """What a block computed its attention from: rotated queries and keys of packed texts."""

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
        self.last: LastAttention | None = None  # of the block that ran last

    def of_one_length(self) -> list[tuple[int, int, int]]:
        """(first token, texts, tokens per text) of each run of texts of one length."""
        runs, start = [], 0
        for length, group in itertools.groupby(self.lengths):
            texts = sum(1 for _ in group)
            runs.append((start, texts, length))
            start += texts * length
        return runs


@torch.inference_mode()
def states_of(
    network: transformers.PreTrainedModel, batch: Sequence[Sequence[int]]
) -> tuple[Float[torch.Tensor, "t e"], LastAttention | None]:
    """States of all tokens of a batch, text after text, and the last block's attention.

    Without packed attention (`use_packed_attention`) the last block's attention is None.
    """
    device = network.device
    texts = Texts([len(ids) for ids in batch], device)
    flat = torch.tensor(list(itertools.chain.from_iterable(batch)), dtype=torch.long)
    flat = _to(device, flat)
    # A causal network would keep the keys and values of every block for tokens yet to come.
    no_cache = {"use_cache": False} if hasattr(network.config, "use_cache") else {}
    if network.config._attn_implementation not in (NAME, _CHECKED):
        parts = []
        for start, count, length in texts.of_one_length():
            ids = flat[start : start + count * length].view(count, length)
            parts.append(network(input_ids=ids, **no_cache).last_hidden_state.flatten(0, 1))
        return torch.cat(parts), None
    positions = torch.cat([torch.arange(length) for length in texts.lengths])
    output = network(
        input_ids=flat[None],
        position_ids=_to(device, positions + network.config.first_packed_position)[None],
        packed_texts=texts,
        **no_cache,
    )
    return output.last_hidden_state[0], texts.last


def _to(device: torch.device, values: torch.Tensor) -> torch.Tensor:
    """Copies values to a device, without waiting for a GPU."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def use_packed_attention(network: transformers.PreTrainedModel) -> None:
    """Lets a network run over packed texts, if its states then stay those of single texts.

    Its RMS norms are then replaced by PyTorch's.

    Raises:
      CannotPack: its states differ; the network is left as it was.
    """
    config = network.config
    own, batch = config._attn_implementation, _probe(config)
    alone = torch.cat([states_of(network, [ids])[0] for ids in batch])
    floor = _SAME_ANSWER if network.dtype == torch.float32 else _SAME_ANSWER_IN_HALF
    allowed = max(floor, min(_TIMES_NOISE * _noise(network, batch, alone), _MOST))
    reasons = []
    for first in _first_positions(config, len(batch[0])):
        try:
            difference = _difference(_packed_states(network, batch, first), alone)
        except Exception as error:  # each network fails in its own way
            reasons.append(str(error).partition("\n")[0] or type(error).__name__)
            continue
        if difference <= allowed:
            _fuse_norms(network)
            return
        reasons.append(
            f"with positions from {first} its states differ by {difference:.1e}, "
            f"and {allowed:.1e} is allowed"
        )
    network.set_attn_implementation(own)
    raise CannotPack("; ".join(dict.fromkeys(reasons)))


def _probe(config: transformers.PreTrainedConfig) -> list[list[int]]:
    """Three texts, two of them half as long as the first, without padding tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size - 1, (24,), generator=generator)
    ids += ids == getattr(config, "pad_token_id", None)
    return [part.tolist() for part in ids.split((12, 6, 6))]


def _noise(
    network: transformers.PreTrainedModel,
    batch: Sequence[Sequence[int]],
    alone: Float[torch.Tensor, "t e"],
) -> float:
    """How much states differ with the order of sums: copies of a text, eager attention."""
    network.set_attn_implementation("eager")
    long, *short = batch
    copies = [long, long, *short, *short]  # as many tokens of each length as in the batch
    states, _ = states_of(network, copies)
    return _difference(states.view(2, 2, -1, alone.shape[1])[:, 0].flatten(0, 1), alone)


def _first_positions(config: transformers.PreTrainedConfig, length: int) -> list[int]:
    """Where the positions of a text may begin: at 0 or, as RoBERTa's, after that of padding."""
    padding = getattr(config, "pad_token_id", None)
    # On a GPU, trying a position that is not in the table would crash the process.
    if padding is None or padding + 1 + length > config.max_position_embeddings:
        return [0]
    return [0, padding + 1]


def _packed_states(
    network: transformers.PreTrainedModel, batch: Sequence[Sequence[int]], first: int
) -> Float[torch.Tensor, "t e"]:
    """Runs the network packed, with positions from `first`; raises ValueError if it cannot."""
    network.config.first_packed_position = first
    network.set_attn_implementation(_CHECKED)
    states_of(network, batch[:1])
    network.set_attn_implementation(NAME)
    states, last = states_of(network, batch)
    if last is None:
        raise ValueError("its attention cannot be replaced")
    return states


def _difference(states: Float[torch.Tensor, "t e"], expected: Float[torch.Tensor, "t e"]) -> float:
    """The largest distance of a token's states, relative to the norm of the expected ones."""
    expected = expected.float()
    return ((states.float() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def _fuse_norms(network: torch.nn.Module) -> None:
    """Replaces RMS norms by PyTorch's: one pass over the states on a GPU, not six."""
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            fused = _fused(norm)
            if fused is not None:
                setattr(parent, name, fused)


@torch.inference_mode()
def _fused(norm: Any) -> torch.nn.RMSNorm | None:
    """PyTorch's norm with the same weight, if it gives the same result; else None."""
    weight: Any = getattr(norm, "weight", None)
    arguments = list(inspect.signature(norm.forward).parameters)
    is_plain = isinstance(weight, torch.nn.Parameter) and weight.dim() == 1
    if not (hasattr(norm, "variance_epsilon") and is_plain and arguments == ["hidden_states"]):
        return None
    fused = torch.nn.RMSNorm(weight.shape, norm.variance_epsilon, device="meta")
    fused.weight = weight
    states = torch.linspace(-3, 3, 2 * len(weight)).view(2, -1).to(weight)
    expected, actual = norm(states), fused(states)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 1e-2
    difference = (actual.float() - expected.float()).norm() / expected.float().norm()
    return fused if actual.dtype == expected.dtype and difference <= tolerance else None


def _packed_attention(
    module: torch.nn.Module,
    query: Float[torch.Tensor, "1 n t h"],
    key: Float[torch.Tensor, "1 g t h"],
    value: Float[torch.Tensor, "1 g t h"],
    attention_mask: Any,
    *,
    packed_texts: Texts | None = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Float[torch.Tensor, "1 t n h"], None]:
    """Attention of every token to the tokens of its own text.

    `attention_mask` is the mask's sliding window, an int, or None (`_window`).

    Raises:
      ValueError: the network asks for something that this function does not do.
    """
    if packed_texts is None:
        raise ValueError("the network does not pass on what its attention is told")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = others.get("is_causal")
    causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    wanted = {name for name, value in others.items() if value is not None} - _HARMLESS
    if wanted:
        raise ValueError(f"packed attention does not support {', '.join(sorted(wanted))}")
    if not isinstance(attention_mask, int | None) or (attention_mask is not None and not causal):
        raise ValueError("packed attention does not support its masks")
    packed_texts.last = LastAttention(query[0], key[0], scaling, causal, attention_mask)
    # Flash attention does not support float32.
    attend = _flash if query.is_cuda and query.dtype != torch.float32 else _by_length
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
    assert isinstance(attended, torch.Tensor)  # a tuple only if more is asked for
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


def _window(*_: Any, local_size: int | None = None, **__: Any) -> int | None:
    """The sliding window of the mask that a network asks for; packing itself separates texts."""
    return local_size


def _checked_window(
    *_: Any,
    mask_function: Callable[..., torch.Tensor],
    device: torch.device,
    local_size: int | None = None,
    use_vmap: bool = False,
    **__: Any,
) -> int | str | None:
    """The same, or, if the mask is no sliding window, a value that packed attention refuses.

    The mask is checked at the window's edges, even if no text is that long. `mask_function` says
    whether (text, head, query, key) is seen; `use_vmap` says that the function is not a plain one.
    """
    if local_size is None and not use_vmap:
        return None
    if local_size is None or use_vmap:
        return "of its own"
    near = torch.arange(-3, 4, device=device)
    edges = torch.cat([near + local_size * windows for windows in range(3)]).clamp(min=0)
    query, key = edges[:, None], edges[None]
    seen = mask_function(0, 0, query, key)
    plain = (key <= query) & (query - key < local_size)
    return local_size if torch.equal(seen, plain) else "of its own"


for _name, _mask in ((NAME, _window), (_CHECKED, _checked_window)):
    transformers.AttentionInterface.register(_name, _packed_attention)
    transformers.AttentionMaskInterface.register(_name, _mask)
