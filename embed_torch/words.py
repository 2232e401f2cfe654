"""Embeds a review by hashing its word pieces (Weinberger et al. 2009), without a network.

`--model=words` needs no weights but MiniLM's vocabulary, and no GPU. It knows neither meaning nor
order, only which words occur, which is what sentence embeddings blur (docs/findings.md).
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Int
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

NAME = "words"
SHA256 = hashlib.sha256(b"hashed words, version 1").hexdigest()  # instead of that of weights
_DIM = 1024
_POSITIONS = 8192
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: Fibonacci hashing (Knuth, section 6.4)


class HashedWords(transformers.PreTrainedModel):
    """Each word piece is one of 1024 unit vectors, or its negative, by a hash of its id."""

    config_class = transformers.PreTrainedConfig

    def __init__(self, config: transformers.PreTrainedConfig):
        super().__init__(config)
        hashes = [(piece + 1) * _MULTIPLIER % 2**64 for piece in range(config.vocab_size)]
        place = torch.tensor([hashed >> 54 for hashed in hashes])
        sign = torch.tensor([1.0 - 2 * (hashed >> 53 & 1) for hashed in hashes])
        self.place = torch.nn.Parameter(place, requires_grad=False)
        self.sign = torch.nn.Parameter(sign, requires_grad=False)

    def forward(self, input_ids: Int[torch.Tensor, "b t"], **_: object) -> BaseModelOutput:
        """States [b, t, 1024], each from its own token only."""
        states = functional.one_hot(self.place[input_ids], _DIM) * self.sign[input_ids][..., None]
        return BaseModelOutput(last_hidden_state=states)


def config(folder: Path) -> transformers.PreTrainedConfig:
    """The configuration of the network over the vocabulary of the checkpoint in `folder`."""
    of_pieces = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    settings: dict[str, Any] = {
        "hidden_size": _DIM,
        "vocab_size": of_pieces.vocab_size,
        "max_position_embeddings": _POSITIONS,
        "pad_token_id": of_pieces.pad_token_id,
    }
    return transformers.PreTrainedConfig(**settings)
