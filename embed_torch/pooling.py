"""Pools token states into sentence embeddings (paper section 2.2; docs/design.md 4.1).

In: the states [t, e] of packed texts, and which tokens of each are pooled. Out: one vector [e] per
text and pooling, in float32. Texts of one length are pooled together; beyond rounding, no text
affects another's result.

Shapes: t tokens of all texts, e embedding width, b texts, k of them of one length l, p tokens of
each that are pooled, n heads, g key-value heads, h head width.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float

from embed_torch.attention import LastAttention, visible

Pooling = Literal["mean", "max", "first", "last", "positional", "attentional"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
_ROWS_AT_ONCE = 128  # queries per text whose attention, of all heads, is held at once
# Attention shares held at once: as many as fit into a CPU's cache, or keep a GPU busy.
_SHARES_ON_CPU, _SHARES_ON_GPU = 1 << 20, 1 << 25


def parse(names: str) -> tuple[str, ...]:
    """The poolings in a comma-separated list; raises ValueError for an unknown or repeated one.

    An empty list gives none, which means the checkpoint's own.
    """
    poolings = tuple(name.strip() for name in names.split(",")) if names else ()
    if set(poolings) - set(POOLINGS) or len(set(poolings)) < len(poolings):
        raise ValueError(f"must be some of {','.join(POOLINGS)}, each once")
    return poolings


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A text among packed ones, and its pooled tokens."""

    start: int  # first token of the text
    stop: int
    first: int  # first pooled token
    last: int  # one past the last


@dataclasses.dataclass(frozen=True, slots=True)
class Alike:
    """Consecutive texts of one length, pooled over the same tokens, and so by one kernel."""

    start: int  # first token of the first text
    texts: int  # k
    length: int  # l, tokens of each text
    pooled: slice  # among the tokens of each text

    def of(self, values: Float[torch.Tensor, "t ..."]) -> Float[torch.Tensor, "k l ..."]:
        """The values of its tokens, text by text."""
        stop = self.start + self.texts * self.length
        return values[self.start : stop].unflatten(0, (self.texts, self.length))


@torch.inference_mode()
def pool(
    states: Float[torch.Tensor, "t e"],
    spans: Sequence[Span],
    poolings: Sequence[str],
    attention: LastAttention | None,
) -> dict[str, Float[torch.Tensor, "b e"]]:
    """The embeddings of each text by pooling.

    With T pooled tokens x_1..x_T: `mean`; `max`, per dimension; `first`, x_1, the CLS token of an
    encoder pooled over all; `last`, x_T; `positional`, weights t / (1 + ... + T); `attentional`,
    the mean of A X with A the last block's attention averaged over heads, restricted to the pooled
    tokens and its rows scaled to sum to 1.

    Args:
      states: after the final norm.
      spans: one per text, each with at least one pooled token.
      poolings: some of POOLINGS.
      attention: that of the last block, needed for `attentional`.
    """
    pooled_by: dict[str, list[torch.Tensor]] = {pooling: [] for pooling in poolings}
    heads = len(attention.query) if attention and "attentional" in pooled_by else 0
    for alike in _alike(spans, heads, states.device.type):
        pooled = alike.of(states)[:, alike.pooled].float()  # [k, p, e]
        positions = torch.arange(1, pooled.shape[1] + 1, device=states.device, dtype=torch.float32)
        weights = {}
        if "mean" in pooled_by:
            weights["mean"] = torch.ones_like(positions) / len(positions)
        if "positional" in pooled_by:
            weights["positional"] = positions / positions.sum()
        if "attentional" in pooled_by:
            assert attention is not None  # asked for by the caller of a network that has it
            weights["attentional"] = attention_received(attention, alike)
        if weights:
            rows = [weight.expand(pooled.shape[:2]) for weight in weights.values()]
            sums = torch.stack(rows, 1) @ pooled
            for pooling, embeddings in zip(weights, sums.unbind(1), strict=True):
                pooled_by[pooling].append(embeddings)
        if "max" in pooled_by:
            pooled_by["max"].append(pooled.amax(1))
        if "first" in pooled_by:
            pooled_by["first"].append(pooled[:, 0])
        if "last" in pooled_by:
            pooled_by["last"].append(pooled[:, -1])
    return {pooling: torch.cat(embeddings) for pooling, embeddings in pooled_by.items()}


def attention_received(attention: LastAttention, alike: Alike) -> Float[torch.Tensor, "k p"]:
    """The share of attention that each pooled token receives from all pooled tokens; sums to 1.

    These are the column means of A, which are all that mean_i (A X)_i needs: A itself is computed
    some rows at a time and never kept.
    """
    query, key = (  # [n, k, l, h], [g, k, l, h]
        alike.of(part.transpose(0, 1)).permute(2, 0, 1, 3)
        for part in (attention.query, attention.key)
    )
    key = key.float().repeat_interleave(len(query) // len(key), dim=0)
    pooled = alike.pooled.stop - alike.pooled.start
    received = torch.zeros(alike.texts, pooled, device=key.device)
    for start in range(alike.pooled.start, alike.pooled.stop, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, alike.pooled.stop))
        scores = query[:, :, rows].float() @ key.mT * attention.scaling  # [n, k, rows, l]
        seen = visible(rows, alike.length, attention.causal, attention.sliding_window, key.device)
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1).mean(0)[..., alike.pooled]
        received += (shares / shares.sum(-1, keepdim=True)).sum(1)
    return received / pooled


def _alike(spans: Sequence[Span], heads: int, device_type: str) -> Iterator[Alike]:
    """Groups all texts in order, as many at a time as the attention of `heads` heads allows."""

    def kind(span: Span) -> tuple[int, int, int]:
        return span.stop - span.start, span.first - span.start, span.last - span.start

    at_once = _SHARES_ON_CPU if device_type == "cpu" else _SHARES_ON_GPU
    for (length, first, last), group in itertools.groupby(spans, kind):
        same = list(group)
        shares = heads * min(length, _ROWS_AT_ONCE) * length
        most = max(1, at_once // shares) if shares else len(same)
        for index in range(0, len(same), most):
            texts = min(most, len(same) - index)
            yield Alike(same[index].start, texts, length, slice(first, last))
