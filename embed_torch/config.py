"""Settings of `python -m embed_torch`."""

import dataclasses
from typing import Literal

from embed_torch.cli import UserError, setting


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """What to embed, with what, and how."""

    corpus: str = setting("", help="corpus folder written by prepare", topic="files", required=True)
    output: str = setting("", help="store folder to write", topic="files", required=True)
    model: str = setting(
        "minilm", help="directory or hub name of an encoder, or minilm (as packaged)", topic="model"
    )
    normalize: bool = setting(
        False, help="scale embeddings to length 1, as MiniLM's own last step", topic="model"
    )
    max_tokens: int = setting(
        0, help="tokens of a review, the rest cut; 0 = the encoder's own window", topic="model"
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", help="of the forward pass", topic="model"
    )
    store_dtype: Literal["float16", "float32"] = setting(
        "float16", help="of the stored embeddings", topic="files"
    )
    device: str = setting(
        "", help="torch device; empty = cuda where there is one, else cpu", topic="speed"
    )
    batch_tokens: int = setting(8192, help="tokens in a batch, padding included", topic="speed")

    def __post_init__(self):
        """Refuses what cannot be meant."""
        if self.batch_tokens < 1:
            raise UserError(f"--batch_tokens={self.batch_tokens} must be positive")
        if self.max_tokens < 0:
            raise UserError(f"--max_tokens={self.max_tokens} must not be negative")
