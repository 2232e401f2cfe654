"""Turns texts into embeddings: a model with its prompt, pooling and normalization.

`load_encoder` opens the encoder of a finished store, or of a model. The embedding run
(`embed_torch.embed`) and `--dry_run` embed by the same object.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from jaxtyping import Float32

from embed_torch import backbone, packing, pooling, prompts, store, words
from embed_torch.backbone import Backbone, Batch, Loading
from embed_torch.checkpoint import find_checkpoint
from embed_torch.cli import ProgressBar, UserError
from embed_torch.config import EncoderConfig
from embed_torch.inputs import Inputs, Tokenization
from embed_torch.manifest import (
    MANIFEST,
    Dtype,
    Gptq,
    Manifest,
    PoolOver,
    StoreDtype,
    Truncate,
    read_manifest,
)

_TEXTS_AT_ONCE = 8192
_VERIFIED = ("weights_sha256", "tokenizer_sha256", "template_sha256", "instruction_sha256")


class Encoder:
    """Turns texts into embeddings.

    The network is loaded by the first `encode`.

    Attributes:
      name: the model's name, as it was given.
      dim: embedding width e.
      poolings: some of `embed_torch.pooling.POOLINGS`; `encode` uses the first.
      normalize: whether embeddings are scaled to length 1.
      max_tokens: the most tokens of an input, prompt included; longer texts are truncated.
    """

    def __init__(self, config: EncoderConfig, revision: str | None = None):
        """Finds the model, and takes from it what the settings leave open.

        Args:
          config: the settings.
          revision: commit of a model from the hub; None for the newest.

        Raises:
          UserError: there is no such model, or the settings do not fit it.
        """
        self._config = config
        self._checkpoint = find_checkpoint(config.model, revision)
        self._tokenization = Tokenization(self._checkpoint, config)
        modules = self._checkpoint.modules
        self.name = self._checkpoint.name
        self.dim = self._checkpoint.dim
        self.poolings = pooling.parse(config.poolings) or (modules.pooling,)
        self.normalize = modules.normalize if config.normalize is None else config.normalize
        self.max_tokens = self._tokenization.window

    @property
    def loading(self) -> Loading:
        """What a process needs to load the network."""
        config, checkpoint = self._config, self._checkpoint
        return Loading(
            checkpoint.name,
            checkpoint.folder,
            config.dtype,
            config.device,
            config.gptq,
            attentional="attentional" in self.poolings,
            dense=checkpoint.modules.dense,
            normalize=self.normalize,
        )

    @functools.cached_property
    def network(self) -> Backbone:
        """The network on its device."""
        return Backbone(self.loading)

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """The embeddings of some texts, rounded as a store rounds them.

        A text's embedding does not depend on the other texts, and equals that of its row in a
        store: in float32 on a CPU bit for bit, as far as measured (docs/library.md lists the
        exceptions).

        Args:
          texts: any number of them, of any length.

        Raises:
          UserError: `truncate` is "error" and a text is too long, a text holds half a surrogate
            pair, or an embedding is not finite in the store's type.
          TypeError: `texts` is one text, or holds something else.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("encode takes a list of texts, each a str")
        for place, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"text {place} is not valid Unicode: {error}") from None
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        with ProgressBar(total=len(texts), desc="encoding", unit="text", delay=5) as bar:
            for first in range(0, len(texts), _TEXTS_AT_ONCE):
                rows = list(range(first, min(first + _TEXTS_AT_ONCE, len(texts))))
                inputs = self.review_inputs(rows, list(texts[first : first + len(rows)]))
                whole = self.batch(inputs)
                for members in self.plan(inputs):
                    batch = whole.part(members).filled(self.network.fill)
                    vectors = self.network.embed(batch)[self.poolings[0]][: len(members)]
                    kept = [rows[member] for member in members]
                    dtype = self._config.store_dtype
                    embeddings[kept] = store.as_stored(vectors, dtype, kept, "text")
                    bar.update(len(members))
        return embeddings

    def review_inputs(self, rows: list[int], texts: list[str]) -> Inputs:
        """The inputs of reviews; messages name them by `rows`."""
        return self._tokenization.of_reviews(rows, texts)

    def category_inputs(self, names: list[str]) -> Inputs:
        """The inputs of category names, which are not prompted."""
        return self._tokenization.of_categories(names)

    def input_text(self, review: str) -> str:
        """A review as the model sees it: truncated, with its prompt and control tokens."""
        return self._tokenization.text(review)

    def batch(self, inputs: Inputs) -> Batch:
        """A batch of inputs, pooled as the settings say; category names by their mean."""
        if inputs.of == "category":
            return Batch(inputs.ids, (0, 0), ("mean",))
        around = inputs.around if self._config.pool_over == "review" else (0, 0)
        if self._tokenization.prompt.prefix and not self._checkpoint.modules.include_prompt:
            around = (inputs.around[0], around[1])
        return Batch(inputs.ids, around, self.poolings)

    def plan(self, inputs: Inputs, batch_tokens: int = 0) -> list[list[int]]:
        """Which inputs share a batch; 0 stands for the number of tokens of the settings."""
        return packing.plan_batches(
            [len(ids) for ids in inputs.ids],
            batch_tokens or self.batch_tokens,
            self._checkpoint.apart_above,
        )

    @property
    def batch_tokens(self) -> int:
        """The most tokens in a batch."""
        config = self._config
        device = backbone.device_named(config.device).type
        return packing.tokens_in_a_batch(config.batch_tokens, device)

    def settings(self) -> dict[str, Any]:
        """The settings that decide embeddings, as keys of a store's manifest.

        A key that older stores lack is left out while it is empty, so that they still match.
        """
        config, checkpoint, prompt = self._config, self._checkpoint, self._tokenization.prompt
        return {
            "encoder": checkpoint.name,
            "weights_sha256": checkpoint.weights_sha256(show_progress=True),
            "tokenizer_sha256": checkpoint.tokenizer_sha256(),
            "template_sha256": prompt.template_sha256,
            "instruction": prompt.instruction,
            "instruction_sha256": prompt.instruction_sha256,
            **({"prefix": prompt.prefix} if prompt.prefix else {}),
            "gptq": config.gptq if checkpoint.quantized else None,
            "poolings": list(self.poolings),
            "default_pooling": self.poolings[0],
            "pool_over": config.pool_over,
            "normalize": self.normalize,
            "compute_dtype": config.dtype,
            "dtype": config.store_dtype,
            "dim": self.dim,
            "truncate": config.truncate,
            "max_tokens": self.max_tokens,
        }

    def to_open_again(self) -> dict[str, Any]:
        """Where to find the model and its template, as further keys of a store's manifest."""
        checkpoint, prompt = self._checkpoint, self._tokenization.prompt
        keys = {"template": prompt.template, "encoder_revision": checkpoint.revision}
        if checkpoint.folder == Path(checkpoint.name):  # neither from the hub nor from a package
            keys["encoder_folder"] = str(Path(checkpoint.name).absolute())
        return {name: value for name, value in keys.items() if value is not None}


class ModelSettings(TypedDict, total=False):
    """The settings of a model, like the flags of `python -m embed_torch` of these names."""

    instruction: str  # system message of a causal model
    prefix: str  # put before each text, instead of the model's default prompt
    pool_over: PoolOver  # all tokens, or only those of the text, without the prompt's
    normalize: bool  # scale embeddings to length 1
    truncate: Truncate  # which part to keep of a text that is too long
    max_tokens: int  # most tokens of an input, prompt included
    gptq: Gptq  # make 4-bit weights dense, or keep them packed
    dtype: Dtype  # of weights and states in the forward pass
    store_dtype: StoreDtype  # of the embeddings after rounding


def load_encoder(
    source: str | Path,
    *,
    model: str | Path = "",
    template: str | Path = "",
    pooling: str = "",
    device: str = "",
    batch_tokens: int = 0,
    **settings: Unpack[ModelSettings],
) -> Encoder:
    """Opens the encoder of a finished store, or that of a model, and loads its network.

    The encoder of a store has the store's settings, and its model is verified to be the same. The
    encoder of a model takes what is not set from the checkpoint, or else from the flag's default;
    its embeddings are not rounded.

    Args:
      source: a store's folder, a model's folder, a hub name, "minilm" or "words".
      model: where a store's model lies now, if it has moved.
      template: chat template of an instruction: "phi3", a Jinja file or text; empty for the
        model's own. For a store, give it only if the store is too old to hold its template.
      pooling: one of `embed_torch.pooling.POOLINGS`; empty for the store's or model's default.
      device: torch device; empty for cuda if there is a GPU, else cpu.
      batch_tokens: most tokens in a batch; 0 for a good number.
      **settings: `ModelSettings`, for a model only.

    Raises:
      UserError: there is no such store or model, the model is not the store's, or a setting does
        not fit the model.
      TypeError: a setting's name is not known.
    """
    for name in sorted(settings.keys() - ModelSettings.__annotations__.keys()):
        raise TypeError(f"load_encoder() got an unexpected keyword argument {name!r}")
    if not str(source):
        raise UserError("load_encoder: source is empty: give a store or a model")
    folder = Path(source)
    common = {"device": device, "batch_tokens": batch_tokens}
    if str(source) not in ("minilm", words.NAME) and store.is_begun(folder):
        for name in settings:
            raise UserError(f"{name} cannot be chosen: store {source} has its own")
        encoder = _of_store(folder, str(model), str(template), pooling, common)
    elif model:
        raise UserError(
            f"model={model} applies only to a store, and {source} has no {MANIFEST}: omit model"
        )
    else:
        chosen: dict[str, Any] = {"store_dtype": "float32", **settings, **common}
        chosen |= {"model": str(source), "template": str(template), "poolings": pooling}
        encoder = Encoder(EncoderConfig(**chosen))
    _ = encoder.network  # loads it, so that a fault of its weights is raised here
    return encoder


def _of_store(
    folder: Path, model: str, template: str, pooling: str, settings: dict[str, Any]
) -> Encoder:
    """Opens and verifies the encoder that a store was made with."""
    manifest = read_manifest(folder)
    pooling = pooling or manifest.default_pooling
    if pooling not in manifest.poolings:
        names = ", ".join(manifest.poolings)
        raise UserError(f"store {folder} has no pooling {pooling!r}, only {names}")
    named, folder_then = manifest.encoder, manifest.encoder_folder or manifest.encoder
    moved = Path(named).is_dir() and not Path(folder_then).is_dir()
    name = model or (named if moved else folder_then)
    try:
        config = EncoderConfig(
            model=name,
            poolings=pooling,
            instruction=manifest.instruction or "",
            template=template or _template_of(manifest),
            prefix=manifest.prefix or "",
            gptq=manifest.gptq or "dequantize",
            dtype=manifest.compute_dtype,
            store_dtype=manifest.dtype,
            pool_over=manifest.pool_over,
            normalize=manifest.normalize,
            truncate=manifest.truncate,
            max_tokens=manifest.max_tokens,
            **settings,
        )
    except UserError as error:
        raise UserError(f"{folder / MANIFEST}: {error}") from None
    try:
        encoder = Encoder(config, None if model else manifest.encoder_revision or None)
    except UserError as error:
        raise UserError(
            f"store {folder} was made with {name}: {error} (if it has moved, give model=FOLDER)"
        ) from None
    actual = encoder.settings()
    other = [key for key in _VERIFIED if actual[key] != getattr(manifest, key)]
    if other:
        remedy = "template=FILE" if other == ["template_sha256"] else "model=FOLDER"
        raise UserError(
            f"store {folder} was made with another model than {name}: {', '.join(other)} differ "
            f"(give {remedy})"
        )
    return encoder


def _template_of(manifest: Manifest) -> str:
    """The setting for a store's chat template: the store's copy, else phi3 or the model's own."""
    phi3 = hashlib.sha256(prompts.PHI3.encode()).hexdigest()
    return manifest.template or ("phi3" if manifest.template_sha256 == phi3 else "")
