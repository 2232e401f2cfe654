"""Small random Phi-3 checkpoints, and a GPTQ packer in plain NumPy (AutoGPTQ's format)."""

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
import transformers

_SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 512,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.1,  # five times the usual: attention that is far from uniform
}


def write_phi3(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, shards: int = 1, **overrides
) -> transformers.Phi3ForCausalLM:
    """Saves a random Phi-3 as safetensors and config.json, and returns it.

    Args:
      folder: to make; its parent exists.
      seed: of the weights.
      dtype: of the weights.
      shards: files to spread the weights over.
      **overrides: of the configuration, such as sliding_window or rope_scaling.
    """
    config = transformers.Phi3Config(**{**_SIZES, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.Phi3ForCausalLM(config).eval()
        for name, weight in network.named_parameters():
            if "norm" in name:  # all ones otherwise, which would hide a mix-up
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    network = network.to(dtype)
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    network.save_pretrained(folder, max_shard_size=size if shards == 1 else size // shards)
    return network


def pack_gptq(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    sym: bool = True,
    desc_act: bool = False,
    version: Literal["gptq", "gptq_v2"] = "gptq",
    metadata: Literal["config", "quantize_config"] = "config",
    shards: int = 1,
    file_name: str = "model.safetensors",
    split_gate_up: bool = False,
) -> dict[str, torch.Tensor]:
    """Rounds the Linear layers inside the blocks of `source` to a grid, and writes them packed.

    Where the grid is asymmetric, every fourth output of a layer is made positive and the one after
    it negative, so that the zero points 0 and 2**bits - 1 occur. `split_gate_up` packs the halves
    of each gate_up_proj as two layers, as gptqmodel 7 does.

    Returns:
      The dense weights, float32, that a right loader gives, by their names in the base network.
    """
    rng = np.random.default_rng(0)
    tensors: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, weight in safetensors.torch.load_file(path).items():
            if ".layers." not in name or not name.endswith("_proj.weight"):
                tensors[name] = weight
                if not name.startswith("lm_head."):
                    dense[name.removeprefix("model.")] = weight.float()
                continue
            values = weight.float().numpy()
            if not sym:
                values[0::4] = np.abs(values[0::4])
                values[1::4] = -np.abs(values[1::4])
            layers = {name.removesuffix(".weight"): values}
            if split_gate_up and "gate_up_proj" in name:
                halves = np.split(values, 2)
                names = [
                    layer.replace("gate_up", half) for layer in layers for half in ("gate", "up")
                ]
                layers = dict(zip(names, halves, strict=True))
            grids = []
            for layer, rows in layers.items():
                size = rows.shape[1] if group_size == -1 else group_size
                g_idx = np.arange(rows.shape[1], dtype=np.int32) // size
                if desc_act:
                    g_idx = rng.permutation(g_idx)
                q, zeros, scales = _round(rows, g_idx, bits, sym)
                words = _pack(zeros, bits).T  # along the outputs
                if version == "gptq":
                    words = words - np.uint32(0x11111111 if bits == 4 else 0x01010101)
                tensors[f"{layer}.qweight"] = torch.from_numpy(_pack(q.T, bits).view(np.int32))
                tensors[f"{layer}.qzeros"] = torch.from_numpy(words.copy().view(np.int32))
                tensors[f"{layer}.scales"] = torch.from_numpy(scales.T.copy())
                tensors[f"{layer}.g_idx"] = torch.from_numpy(g_idx)
                grids.append(scales.astype(np.float32)[:, g_idx] * (q - zeros[:, g_idx]))
            dense[name.removeprefix("model.")] = torch.from_numpy(np.concatenate(grids)).float()
    target.mkdir()
    _write_weights(target, tensors, shards, file_name)
    quantization = {"bits": bits, "group_size": group_size, "desc_act": desc_act, "sym": sym}
    quantization |= {"checkpoint_format": version, "damp_percent": 0.1, "true_sequential": True}
    config = json.loads((source / "config.json").read_text())
    if metadata == "config":
        config["quantization_config"] = quantization | {"quant_method": "gptq"}
    else:
        (target / "quantize_config.json").write_text(json.dumps(quantization))
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, target)
    return dense


def _round(
    values: np.ndarray, g_idx: np.ndarray, bits: int, sym: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of weights [out, in]: q int64 [out, in], zeros int64 and scales float16 [out, groups]."""
    groups, top = g_idx.max() + 1, 2**bits - 1
    q = np.zeros(values.shape, np.int64)
    zeros = np.full((len(values), groups), 2 ** (bits - 1), np.int64)
    scales = np.zeros((len(values), groups), np.float16)
    for group in range(groups):
        members = values[:, g_idx == group]
        low = np.minimum(members.min(1), 0)
        high = np.maximum(members.max(1), 0)
        if sym:
            high = np.maximum(high, -low)
            low = -high
        scales[:, group] = (high - low) / top
        scale = scales[:, group].astype(np.float32)
        if not sym:
            zeros[:, group] = np.clip(np.rint(-low / scale), 0, top)
        rounded = np.rint(members / scale[:, None]) + zeros[:, group, None]
        q[:, g_idx == group] = np.clip(rounded, 0, top)
    return q, zeros, scales


def _pack(fields: np.ndarray, bits: int) -> np.ndarray:
    """Words uint32 [m / (32 / bits), n] of fields [m, n], lowest bits first."""
    count = 32 // bits
    words = np.zeros((len(fields) // count, fields.shape[1]), np.uint32)
    for i, row in enumerate(fields):
        words[i // count] |= row.astype(np.uint32) << np.uint32(bits * (i % count))
    return words


def _write_weights(
    folder: Path, tensors: dict[str, torch.Tensor], shards: int, file_name: str
) -> None:
    """One file, or shards with their index, each with an equal share of the names."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        safetensors.torch.save_file(tensors, folder / file_name, {"format": "pt"})
        return
    stem = file_name.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        shard_name = f"{stem}-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[shard::shards]
        part = {name: tensors[name] for name in names}
        safetensors.torch.save_file(part, folder / shard_name, {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{file_name}.index.json").write_text(json.dumps(index))
