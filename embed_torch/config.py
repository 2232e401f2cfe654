"""Settings of `python -m embed_torch`."""

import dataclasses
from typing import Literal

from embed_torch import pooling
from embed_torch.cli import UserError, setting
from embed_torch.prompts import Truncate


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """What to embed, with what, and how."""

    corpus: str = setting("", help="corpus folder written by prepare", topic="files", required=True)
    output: str = setting("", help="store folder to write", topic="files", required=True)
    reuse: str = setting(
        "", help="store from which reviews of the same text are copied", topic="files"
    )
    store_dtype: Literal["float16", "float32"] = setting(
        "float16", help="of the stored embeddings", topic="files"
    )
    dry_run: bool = setting(
        False,
        help="say what it would do and how long it would take, and write nothing",
        topic="files",
    )
    model: str = setting(
        "minilm",
        help="directory or hub name of a network, minilm (as packaged), or words (hashed)",
        topic="model",
    )
    gptq: Literal["dequantize", "packed"] = setting(
        "dequantize", help="4-bit weights to dense ones, or kept packed by gptqmodel", topic="model"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", help="of the forward pass", topic="model"
    )
    instruction: str = setting("", help="system message; empty = plain review", topic="input")
    template: str = setting(
        "", help="chat template: empty = the model's own, phi3, or a Jinja file", topic="input"
    )
    max_tokens: int = setting(
        0, help="tokens of an input with its prompt; 0 = the model's own window", topic="input"
    )
    truncate: Truncate = setting(
        "head", help="which part stays of a review that is too long", topic="input"
    )
    poolings: str = setting(
        "mean",
        help=f"one or more of {','.join(pooling.POOLINGS)}; the first is the default",
        topic="output",
    )
    pool_over: Literal["all", "review"] = setting(
        "all", help="pool all tokens, or the review's without the prompt's", topic="output"
    )
    normalize: bool = setting(
        False, help="scale embeddings to length 1, as MiniLM's own last step", topic="output"
    )
    device: str = setting(
        "", help="torch device; empty = cuda where there is one, else cpu", topic="speed"
    )
    batch_tokens: int = setting(
        0, help="tokens in a batch; 0 = 4096, on a GPU 32768; there is no padding", topic="speed"
    )
    engine: Literal["inline", "local", "ray"] = setting(
        "inline", help="this process, one process a GPU, or Ray actors", topic="speed"
    )
    workers: int = setting(
        0, help="processes of local and ray; 0 = one a GPU, without GPUs one", topic="speed"
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        if self.batch_tokens < 0:
            raise UserError(f"--batch_tokens={self.batch_tokens} must not be negative")
        if self.max_tokens < 0:
            raise UserError(f"--max_tokens={self.max_tokens} must not be negative")
        if self.workers < 0:
            raise UserError(f"--workers={self.workers} must not be negative")
        if self.workers and self.engine == "inline":
            raise UserError("--workers is of --engine=local or ray")
        if self.template and not self.instruction:
            raise UserError("--template is of instructed prompts: give --instruction too")
        try:
            pooling.parse(self.poolings)
        except ValueError as error:
            raise UserError(f"--poolings={self.poolings}: {error}") from None
