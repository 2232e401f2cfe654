"""Sentence embeddings from token states (paper section 2.2; DESIGN section 4).

In: the states [t, e] of packed texts, and which tokens of each are pooled. Out: one vector [e] a
text and pooling, in float32. Every text is pooled on its own, so that no other text of its batch
can touch the result.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float

from embed_torch.attention import LastAttention, visible

Pooling = Literal["mean", "max", "last", "positional", "attentional"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
_ROWS_AT_ONCE = 128  # queries whose attention is in memory, of all heads


def parse(names: str) -> tuple[str, ...]:
    """The poolings in a comma-separated list; raises ValueError for an unknown or repeated one."""
    found = tuple(name.strip() for name in names.split(","))
    if set(found) - set(POOLINGS) or len(set(found)) < len(found):
        raise ValueError(f"must be some of {','.join(POOLINGS)}, each once")
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A text among packed ones, and its pooled tokens."""

    start: int  # first token of the text
    stop: int
    first: int  # first pooled token
    last: int  # one past the last


@torch.inference_mode()
def pool(
    states: Float[torch.Tensor, "t e"],
    spans: Sequence[Span],
    poolings: Sequence[str],
    attention: LastAttention | None,
) -> dict[str, Float[torch.Tensor, "b e"]]:
    """The embeddings of each text by pooling.

    With T pooled tokens x_1..x_T: `mean`; `max`, per dimension; `last`, x_T; `positional`, weights
    t / (1 + ... + T); `attentional`, the mean of A X with A the last block's attention averaged
    over heads, restricted to the pooled tokens and its rows scaled to sum to 1.

    Args:
      states: after the final norm.
      spans: one a text, of at least one pooled token.
      poolings: of POOLINGS.
      attention: the last block's, needed for `attentional`.
    """
    found: dict[str, list[torch.Tensor]] = {pooling: [] for pooling in poolings}
    for span in spans:
        pooled = states[span.first : span.last].float()
        weights = {}
        if "mean" in found:
            weights["mean"] = torch.full((len(pooled),), 1 / len(pooled), device=pooled.device)
        if "positional" in found:
            positions = torch.arange(1, len(pooled) + 1, device=pooled.device, dtype=torch.float32)
            weights["positional"] = positions / positions.sum()
        if "attentional" in found:
            assert attention is not None  # asked for by the caller of a network that has it
            weights["attentional"] = attention_received(attention, span)
        if weights:
            sums = torch.stack(list(weights.values())) @ pooled
            for pooling, embedding in zip(weights, sums, strict=True):
                found[pooling].append(embedding)
        if "max" in found:
            found["max"].append(pooled.amax(0))
        if "last" in found:
            found["last"].append(pooled[-1])
    return {pooling: torch.stack(embeddings) for pooling, embeddings in found.items()}


def attention_received(attention: LastAttention, span: Span) -> Float[torch.Tensor, "pooled"]:
    """The share of attention that each pooled token receives from all pooled tokens; sums to 1.

    These are the column means of A, which are all that mean_i (A X)_i needs: A itself is made some
    rows at a time and never kept.
    """
    key = attention.key[:, span.start : span.stop].float()
    key = key.repeat_interleave(len(attention.query) // len(key), dim=0)  # [n, T, h]
    pooled = slice(span.first - span.start, span.last - span.start)
    received = torch.zeros(pooled.stop - pooled.start, device=key.device)
    for start in range(pooled.start, pooled.stop, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, pooled.stop))
        query = attention.query[:, span.start + rows.start : span.start + rows.stop].float()
        scores = query @ key.transpose(1, 2) * attention.scaling  # [n, rows, T]
        seen = visible(rows, key.shape[1], attention.causal, attention.sliding_window, key.device)
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1).mean(0)[:, pooled]
        received += (shares / shares.sum(1, keepdim=True)).sum(0)
    return received / len(received)
