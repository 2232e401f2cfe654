"""Sentence embeddings from token states (paper section 2.2; DESIGN section 4)."""

import torch
from jaxtyping import Bool, Float


def mean(states: Float[torch.Tensor, "b t e"], mask: Bool[torch.Tensor, "b t"]) -> torch.Tensor:
    """Average of the token states where `mask` is True, in float32: [b, e]."""
    weights = mask.to(torch.float32)
    return torch.einsum("bte,bt->be", states.float(), weights) / weights.sum(1, keepdim=True)
