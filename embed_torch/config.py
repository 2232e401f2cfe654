"""Settings of an encoder, and of `python -m embed_torch`."""

import dataclasses
from typing import Literal

from embed_torch import cli, pooling
from embed_torch.cli import UserError, setting
from embed_torch.manifest import Dtype, Gptq, PoolOver, StoreDtype, Truncate


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """What turns a text into an embedding. None, or no pooling, is the checkpoint's own choice."""

    model: str = setting(
        "minilm",
        help="directory or hub name of a network, minilm (as packaged), or words (hashed)",
        topic="model",
    )
    gptq: Gptq = setting(
        "dequantize", help="4-bit weights to dense ones, or kept packed by gptqmodel", topic="model"
    )
    dtype: Dtype = setting("float32", help="of the forward pass", topic="model")
    instruction: str = setting("", help="system message; empty = plain review", topic="input")
    template: str = setting(
        "",
        help="chat template: empty = the model's own, phi3, a Jinja file, or Jinja text",
        topic="input",
    )
    prefix: str | None = setting(
        None,
        help="text before each review, such as 'query: '; left out = the model's default prompt",
        topic="input",
    )
    max_tokens: int = setting(
        0,
        help="tokens of an input with its prompt; 0 = the model's own window",
        topic="input",
        minimum=0,
    )
    truncate: Truncate = setting(
        "head", help="which part stays of a review that is too long", topic="input"
    )
    poolings: str = setting(
        "",
        help=f"one or more of {','.join(pooling.POOLINGS)}, the first is the default; "
        "empty = the model's own, else mean",
        topic="output",
    )
    pool_over: PoolOver = setting(
        "all", help="pool all tokens, or the review's without the prompt's", topic="output"
    )
    normalize: bool | None = setting(
        None,
        help="scale embeddings to length 1 (--nonormalize: do not); left out = as the model does",
        topic="output",
    )
    store_dtype: StoreDtype = setting("float16", help="of the stored embeddings", topic="output")
    device: str = setting(
        "", help="torch device; empty = cuda where there is one, else cpu", topic="speed"
    )
    batch_tokens: int = setting(
        0,
        help="tokens in a batch; 0 = 4096, on a GPU 32768; there is no padding",
        topic="speed",
        minimum=0,
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if not self.model:
            raise UserError("--model is empty: it names a directory, a hub name, minilm or words")
        if self.template and not self.instruction:
            raise UserError("--template is of instructed prompts: give --instruction too")
        if self.prefix and self.instruction:
            raise UserError("--prefix and --instruction each prompt the model: give one of them")
        try:
            pooling.parse(self.poolings)
        except ValueError as error:
            raise UserError(f"--poolings={self.poolings}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig(EncoderConfig):
    """What to embed, with what, and how."""

    corpus: str = setting("", help="corpus folder written by prepare", topic="files", required=True)
    output: str = setting("", help="store folder to write", topic="files", required=True)
    reuse: str = setting(
        "", help="store from which reviews of the same text are copied", topic="files"
    )
    dry_run: bool = setting(
        False,
        help="say what it would do and how long it would take, and write nothing",
        topic="files",
    )
    engine: Literal["inline", "local", "ray"] = setting(
        "inline", help="this process, one process a GPU, or Ray actors", topic="speed"
    )
    workers: int = setting(
        0,
        help="processes of local and ray; 0 = one a GPU, without GPUs one",
        topic="speed",
        minimum=0,
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        EncoderConfig.__post_init__(self)  # slots make a new class, which super() does not know
        if self.workers and self.engine == "inline":
            raise UserError("--workers is of --engine=local or ray")
