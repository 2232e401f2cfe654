"""Dequantizes GPTQ checkpoints in the AutoGPTQ format to dense networks (paper section 2.2).

In: a folder with `config.json` and the safetensors of a causal language model whose Linear layers
are packed to 4 or 8 bits. Out: its base network, without lm_head, with weights [out, in] on the
device. Prefill is bound by arithmetic, so from a few hundred rows on dense weights are faster.

A packed layer X is stored as int32 words of 32 / bits fields, lowest bits first: `X.qweight`
[in / fields, out] along the inputs, `X.qzeros` [groups, out / fields] along the outputs,
`X.scales` [groups, out], and `X.g_idx` [in], the group of each input.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook

from embed_torch.cli import ProgressBar, UserError
from embed_torch.files import read_json

_MADE_BY = "the download of the checkpoint"
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
# The head is never computed; rotary frequencies, in old checkpoints, follow from config.json.
_NOT_NEEDED = re.compile(r"^lm_head\.|\.rotary_emb\.inv_freq$")
_INTEGERS, _FLOATS = ("I32", "I64"), ("F16", "BF16", "F32", "F64")
_SLAB = 256  # inputs dequantized at once, to bound the float32 in use; a multiple of the fields

_Tensor = tuple[Any, str]  # an open safetensors file, and a name in it
# Settings of AutoGPTQ, gptqmodel and transformers that do not change the meaning of what is stored,
# or that are checked here: the layout, how rounding was done, and hints to loaders.
_KNOWN = """
    bits group_size desc_act sym quant_method method checkpoint_format format is_marlin_format
    pack_dtype dynamic lm_head meta quantizer versionable model_name_or_path model_file_base_name
    damp_percent damp_auto_increment static_groups true_sequential mse act_group_aware hyb_act v2
    v2_alpha v2_memory_device gptaq gptaq_alpha gptaq_memory_device fail_safe failsafe fallback
    hessian hessian_chunk_size hessian_chunk_bytes hessian_use_bfloat16_staging foem moe
    dataset tokenizer batch_size pad_token_id model_seqlen cache_block_outputs parallel_packing
    pack_impl device offload_to_disk offload_to_disk_path vram_strategy gc_mode
    wait_for_submodule_finalizers auto_forward_data_parallel compute_device_filter zero_point
    block_name_to_quantize module_name_preceding_first_block modules_in_block_to_quantize
    backend use_cuda_fp16 use_exllama disable_exllama exllama_config max_input_length
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a GPTQ checkpoint are packed."""

    bits: int  # per weight: 4 or 8
    group_size: int  # inputs that share a scale and a zero point; -1 = all
    desc_act: bool  # groups were formed in the order of activation: g_idx is a permutation
    sym: bool  # every zero point is the middle of the grid
    zero_offset: int  # added to a stored zero point: 1 in checkpoint_format gptq, 0 in gptq_v2


def read_quantization(folder: Path) -> Quantization | None:
    """Reads how weights are packed from `config.json`, or else `quantize_config.json`.

    transformers does not read the second file, and would put random weights for packed ones.

    Returns:
      None if the checkpoint is not quantized.

    Raises:
      UserError: the checkpoint is quantized by another method, in another layout or to other bits,
        or a value is malformed.
    """
    path = folder / "config.json"
    values = read_json(path, _MADE_BY).get("quantization_config")
    if values is None:
        path = folder / "quantize_config.json"
        if not path.exists():
            return None
        values = {"quant_method": "gptq"} | read_json(path, _MADE_BY)  # AutoGPTQ leaves it out
    if not isinstance(values, dict):
        raise UserError(f"{path}: quantization_config is {values!r}, not an object")
    for name, other in (("checkpoint_format", "format"), ("quant_method", "method")):
        if {name, other} <= values.keys() and values[name] != values[other]:
            raise UserError(
                f"{path}: {name} is {values[name]!r} and {other} {values[other]!r}: remove "
                "whichever is wrong"
            )
    method = values.get("quant_method", values.get("method"))
    layout = values.get("checkpoint_format", values.get("format", "gptq"))
    if method != "gptq" or layout not in [*_ZERO_OFFSETS] or values.get("is_marlin_format"):
        raise UserError(
            f"{path}: weights quantized by {method!r} in the format {layout!r} are not supported: "
            "take a checkpoint that is not quantized, or by gptq in the format gptq or gptq_v2"
        )
    _refuse_other_mathematics(values, path)
    bits, group_size = values.get("bits"), values.get("group_size")
    desc_act, sym = values.get("desc_act", False), values.get("sym", True)
    if not isinstance(bits, int) or bits not in (4, 8):
        raise UserError(f"{path}: bits is {bits!r}: take a checkpoint of 4 or 8 bits")
    if type(group_size) is not int or not (group_size == -1 or group_size > 0):
        raise UserError(f"{path}: group_size is {group_size!r}, neither -1 nor a positive integer")
    if not isinstance(desc_act, bool) or not isinstance(sym, bool):
        raise UserError(f"{path}: desc_act is {desc_act!r} and sym {sym!r}, not true or false")
    return Quantization(bits, group_size, desc_act, sym, _ZERO_OFFSETS[layout])


def _refuse_other_mathematics(values: dict[str, Any], path: Path) -> None:
    """Refuses settings that give the stored numbers another meaning, and unknown settings."""
    dynamic = values.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise UserError(f"{path}: dynamic is {dynamic!r}, not an object")
    overrides = [name for name in dynamic if not name.startswith("-")]
    faults = {key: value for key, value in values.items() if value and key not in _KNOWN.split()}
    if overrides:  # those with a minus sign name layers that are not packed
        faults["dynamic"] = values["dynamic"]
    if str(values.get("pack_dtype") or "int32").removeprefix("torch.") != "int32":
        faults["pack_dtype"] = values["pack_dtype"]
    for key, value in faults.items():
        raise UserError(
            f"{path}: {key} is {value!r}, which may change what the weights mean and is not known "
            "here: take a checkpoint without it"
        )


def load_dequantized(
    folder: Path, quantization: Quantization, *, dtype: torch.dtype, device: torch.device
) -> transformers.PreTrainedModel:
    """Loads the base network of a GPTQ checkpoint, its weights computed in float32 on `device`.

    Names and shapes are checked before the first weight is read. Weights then go to the device one
    by one, so that the host holds little more than one of them besides the memory-mapped files:
    `model.safetensors`, the shards of an index, or safetensors of any name.

    Raises:
      UserError: a weight is missing, unexpected, of a wrong shape or type, or packed otherwise, or
        a file is missing, damaged, or pickled. The message names it.
    """
    network: Any = _empty_network(folder, dtype)
    plan = _plan(folder, network, quantization)
    for name, sections in ProgressBar(plan.items(), desc="loading weights", unit="weight", delay=5):
        layer, _, leaf = name.rpartition(".")
        module = network.get_submodule(layer)
        weight = torch.empty_like(getattr(module, leaf), device=device)
        for rows, tensors in zip(weight.chunk(len(sections)), sections, strict=True):
            parts = {part: file.get_tensor(key).to(device) for part, (file, key) in tensors.items()}
            if leaf in parts:
                rows.copy_(parts[leaf])
            else:
                _dequantize(rows, parts, quantization, f"{folder}: {layer}")
        module.load_state_dict({leaf: weight}, strict=False, assign=True)
    return network.to(device).eval()


def _empty_network(folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Builds the base network with parameters on the device "meta" and computed buffers.

    A network built under `torch.device("meta")` would lose the buffers that no checkpoint holds.
    """

    def to_meta(module: torch.nn.Module, name: str, weight: torch.Tensor) -> Any:
        return torch.nn.Parameter(weight.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        vars(config).pop("quantization_config", None)
        return transformers.AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # each architecture fails in its own way
        raise UserError(f"{folder / 'config.json'} describes no known network: {error}") from None
    finally:
        hook.remove()


def _plan(
    folder: Path, network: transformers.PreTrainedModel, quantization: Quantization
) -> dict[str, list[dict[str, _Tensor]]]:
    """Finds, for each section of each weight's rows, its tensor, or its packed parts by name.

    A weight has one section, but gptqmodel 7 writes Phi-3's gate_up_proj as gate_proj and up_proj.
    """
    left = _open_tensors(folder, f"{network.base_model_prefix}.")
    fields, size = 32 // quantization.bits, quantization.group_size
    plan: dict[str, list[dict[str, _Tensor]]] = {}
    for name, empty in network.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        halves = [layer.replace(".gate_up_proj", half) for half in (".gate_proj", ".up_proj")]
        sections = halves if halves[0] != layer and f"{halves[0]}.scales" in left else [layer]
        plan[name] = []
        for section in sections:
            shapes = {leaf: [*empty.shape]}
            if leaf == "weight" and {f"{section}.qweight", f"{section}.scales"} & left.keys():
                if not isinstance(network.get_submodule(layer), torch.nn.Linear):
                    raise UserError(f"{folder}: {layer} is packed, which only Linear layers may be")
                rows, columns = empty.shape[0] // len(sections), empty.shape[1]
                groups = 1 if size == -1 else -(-columns // size)
                shapes = {"qweight": [-(-columns // fields), rows], "scales": [groups, rows]}
                shapes |= {"qzeros": [groups, -(-rows // fields)], "g_idx": [columns]}
                if not quantization.desc_act and f"{section}.g_idx" not in left:
                    del shapes["g_idx"]  # groups are in order
            for part, shape in shapes.items():
                if f"{section}.{part}" not in left:
                    raise UserError(f"{folder} lacks the weight {section}.{part}: download it all")
                file, key = left[f"{section}.{part}"]
                header = file.get_slice(key)
                real = part == "scales" or (part == leaf and empty.is_floating_point())
                kinds, kind = _FLOATS if real else _INTEGERS, header.get_dtype()
                if header.get_shape() != shape or kind not in kinds:
                    raise UserError(
                        f"{folder}: {key} is {kind} {header.get_shape()}, not {kinds[0]} {shape}: "
                        "the weights do not belong to the configuration beside them"
                    )
            plan[name].append({part: left.pop(f"{section}.{part}") for part in shapes})
    for name, (file, key) in left.items():
        # AutoGPTQ gives each packed layer a bias: zeros if the network has none.
        packed = "qweight" in plan.get(f"{name.removesuffix('.bias')}.weight", [{}])[0]
        if not packed or file.get_tensor(key).any():
            raise UserError(
                f"{folder}: {key} is not expected: "
                "the weights do not belong to the configuration beside them"
            )
    return plan


def _open_tensors(folder: Path, prefix: str) -> dict[str, _Tensor]:
    """Opens the tensors of a checkpoint, unread, by their names in the base network."""
    tensors: dict[str, _Tensor] = {}
    for path, promised in weight_files(folder).items():
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is missing or damaged ({error}): download it again") from None
        absent = promised.difference(file.keys())
        if absent:
            raise UserError(f"{path} lacks {min(absent)}, which its index lists: download it again")
        for key in sorted(file.keys()):
            name = key.removeprefix(prefix)
            if name in tensors:
                raise UserError(f"{path}: {key} is there twice: keep one checkpoint in the folder")
            if not _NOT_NEEDED.search(key):
                tensors[name] = file, key
    return tensors


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of a checkpoint, and the tensors that an index lists for them.

    Raises:
      UserError: there are none, or pickled weights only.
    """
    whole = folder / "model.safetensors"
    indexes = [] if whole.exists() else [*folder.glob("*.safetensors.index.json")]
    files: dict[Path, set[str]] = {}
    for index in indexes:
        weight_map = read_json(index, _MADE_BY, ["weight_map"])["weight_map"]
        for key, shard in weight_map.items() if isinstance(weight_map, dict) else ():
            files.setdefault(folder / Path(str(shard)).name, set()).add(key)
    if not indexes:
        paths = [whole] if whole.exists() else folder.glob("*.safetensors")
        files = {path: set() for path in paths}
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is missing or damaged: download it again")
    pickled = [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
    if pickled and not files:
        raise UserError(
            f"{min(pickled)} is refused: pickled weights can execute code. Take safetensors, or "
            'convert it in its folder: python -c "import torch, safetensors.torch as s; s.save_file'
            f"(torch.load('{min(pickled).name}', weights_only=True), 'model.safetensors')\""
        )
    if not files:
        raise UserError(f"{folder} holds no weights (*.safetensors): download the checkpoint again")
    return files


def _dequantize(
    weight: Float[torch.Tensor, "out in"],
    parts: dict[str, torch.Tensor],
    quantization: Quantization,
    where: str,
) -> None:
    """Fills `weight` with scale * (q - zero).

    The format gptq stores z - 1: its writers subtract a word of ones from a word of zero points, so
    that z = 0 (never in symmetric packing) borrows from the next field. Adding the word of ones
    undoes that; adding 1 to each field would get the next zero point wrong.

    Raises:
      UserError: the groups or the zero points at `where` do not fit this packing.
    """
    scales, bits, device = parts["scales"].float(), quantization.bits, parts["scales"].device
    rows, columns = weight.shape
    size = quantization.group_size if quantization.group_size > 0 else columns
    g_idx = parts.get("g_idx", torch.arange(columns, device=device) // size).long()
    if not torch.equal(g_idx.unique(), torch.arange(len(scales), device=device)):
        raise UserError(f"{where}.g_idx does not name each of the {len(scales)} groups")
    ones = quantization.zero_offset * (0xFFFFFFFF // (2**bits - 1))
    zeros = _unpack(parts["qzeros"].long().T + ones, bits)[:rows].T.float()
    if quantization.sym and (zeros == 2 ** (bits - 1) + 2 * quantization.zero_offset - 1).all():
        # Some checkpoints are stored as gptq_v2 but declared as gptq.
        raise UserError(f"{where} has zero points off by one: set the other checkpoint_format")
    for first in range(0, columns, _SLAB):
        group = g_idx[first : first + _SLAB]
        words = parts["qweight"][first * bits // 32 : (first + _SLAB) * bits // 32]
        q = _unpack(words, bits)[: len(group)].float()
        weight[:, first : first + _SLAB] = q.sub_(zeros[group]).mul_(scales[group]).T


def _unpack(words: Int[torch.Tensor, "words n"], bits: int) -> Int[torch.Tensor, "fields n"]:
    """The fields of 32-bit words, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=words.dtype, device=words.device)
    return (words[:, None] >> shifts[:, None]).bitwise_and_(2**bits - 1).flatten(0, 1)


def load_packed(
    folder: Path, *, dtype: torch.dtype, device: torch.device
) -> transformers.PreTrainedModel:
    """Loads the base network by gptqmodel, its weights kept at 4 or 8 bits.

    Raises:
      UserError: gptqmodel is not installed, or cannot load the checkpoint.
    """
    weight_files(folder)  # refuses pickled weights, which gptqmodel would load
    try:
        from gptqmodel import GPTQModel
    except ImportError:
        raise UserError("--gptq=packed needs: pip install gptqmodel (it pins its numpy)") from None
    try:
        model = GPTQModel.load(str(folder), device=str(device), dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise UserError(f"gptqmodel cannot load {folder}: {error}") from None
    if model.model.dtype != dtype:
        raise UserError(f"--gptq=packed computes in {model.model.dtype} here: set --dtype to it")
    return model.model.base_model
