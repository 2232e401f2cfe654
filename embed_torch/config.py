"""Declares the settings of an encoder, and of `python -m embed_torch`."""

import dataclasses
from typing import Literal

from embed_torch import cli, pooling
from embed_torch.cli import UserError, setting
from embed_torch.manifest import Dtype, Gptq, PoolOver, StoreDtype, Truncate


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The settings of an encoder; None, or no pooling, leaves the choice to the checkpoint."""

    model: str = setting(
        "minilm",
        help="network: a directory, a hub name, minilm (packaged), or words (hashed)",
        topic="model",
    )
    gptq: Gptq = setting(
        "dequantize",
        help="make 4-bit weights dense, or keep them packed (needs gptqmodel)",
        topic="model",
    )
    dtype: Dtype = setting(
        "float32", help="type of the weights and states in the forward pass", topic="model"
    )
    instruction: str = setting("", help="system message; empty = the review alone", topic="input")
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
        help="most tokens of an input, prompt included; 0 = the model's own window",
        topic="input",
        minimum=0,
    )
    truncate: Truncate = setting(
        "head", help="which part to keep of a review that is too long", topic="input"
    )
    poolings: str = setting(
        "",
        help=f"some of {','.join(pooling.POOLINGS)}, the default first; "
        "empty = the model's own, else mean",
        topic="output",
    )
    pool_over: PoolOver = setting(
        "all", help="pool all tokens, or only the review's, without the prompt's", topic="output"
    )
    normalize: bool | None = setting(
        None,
        help="scale embeddings to length 1 (--nonormalize: do not); left out = as the model does",
        topic="output",
    )
    store_dtype: StoreDtype = setting(
        "float16", help="type of the stored embeddings", topic="output"
    )
    device: str = setting(
        "", help="torch device; empty = cuda if there is a GPU, else cpu", topic="speed"
    )
    batch_tokens: int = setting(
        0,
        help="most tokens in a batch, none of them padding; 0 = 4096, on a GPU 32768",
        topic="speed",
        minimum=0,
    )

    def __post_init__(self):
        """Refuses values that are not allowed, and settings that exclude each other."""
        cli.check(self)
        if not self.model:
            raise UserError("--model is empty: give a directory, a hub name, minilm or words")
        if self.template and not self.instruction:
            raise UserError("--template applies only with an instruction: give --instruction too")
        if self.prefix and self.instruction:
            raise UserError("--prefix and --instruction each prompt the model: give one of them")
        try:
            pooling.parse(self.poolings)
        except ValueError as error:
            raise UserError(f"--poolings={self.poolings}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig(EncoderConfig):
    """The settings of `python -m embed_torch`: an encoder's, files, and workers."""

    corpus: str = setting("", help="corpus folder written by prepare", topic="files", required=True)
    output: str = setting("", help="store folder to write", topic="files", required=True)
    reuse: str = setting(
        "", help="store to copy embeddings from, for reviews of the same text", topic="files"
    )
    dry_run: bool = setting(
        False,
        help="say what would be done and how long it would take; write nothing",
        topic="files",
    )
    engine: Literal["inline", "local", "ray"] = setting(
        "inline",
        help="embed in this process, in one process per GPU, or in Ray actors",
        topic="speed",
    )
    workers: int = setting(
        0,
        help="processes of local and ray; 0 = one per GPU, or one without GPUs",
        topic="speed",
        minimum=0,
    )

    def __post_init__(self):
        """Refuses values that are not allowed, and settings that exclude each other."""
        EncoderConfig.__post_init__(
            self
        )  # slots=True makes a new class, which super() does not know
        if self.workers and self.engine == "inline":
            raise UserError(
                "--workers applies only to several processes: give --engine=local or ray"
            )
