"""Packed checkpoints load as exactly the weights that were packed, or are refused by name."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from written_checkpoints import pack_gptq, write_phi3
from written_tokenizers import write_phi3_tokenizer

from embed_torch import gptq
from embed_torch.cli import UserError
from embed_torch.gptq import Quantization, load_dequantized, read_quantization

CPU = torch.device("cpu")
IDS = torch.arange(4, 44).reshape(2, 20)
GATE = "model.layers.1.mlp.gate_up_proj"
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 128,
}
VARIANTS = [
    {},
    {"bits": 8},
    {"group_size": 64},
    {"group_size": 128},  # more than the 64 inputs of some layers
    {"group_size": 48},  # the last group is short
    {"group_size": -1},
    {"sym": False},
    {"sym": False, "version": "gptq_v2"},
    {"sym": False, "bits": 8},
    {"sym": False, "bits": 8, "version": "gptq_v2", "desc_act": True},
    {"version": "gptq_v2"},
    {"desc_act": True},
    {"desc_act": True, "group_size": -1},
    {"desc_act": True, "sym": False, "metadata": "quantize_config"},
    {"metadata": "quantize_config", "file_name": "gptq_model-4bit-32g.safetensors"},
    {"shards": 3},
    {"split_gate_up": True, "sym": False, "desc_act": True},
    {"shards": 2, "file_name": "gptq_model-4bit-32g.safetensors", "desc_act": True},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gptq") / "phi3"
    write_phi3(folder)
    return folder


@pytest.fixture
def packed(source, tmp_path) -> Path:
    pack_gptq(source, tmp_path / "packed")
    return tmp_path / "packed"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    quantization = read_quantization(folder)
    assert quantization is not None
    return load_dequantized(folder, quantization, dtype=dtype, device=CPU)


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the tensors of a checkpoint in one file."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refusal(folder: Path) -> str:
    """The message, as one line, that refuses to load a checkpoint."""
    with pytest.raises(UserError) as refused:
        load(folder)
    return " ".join(str(refused.value).split())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_weights_are_those_that_were_packed(source, tmp_path, variant):
    dense = pack_gptq(source, tmp_path / "packed", **variant)
    network = load(tmp_path / "packed")
    found = network.state_dict()
    assert found.keys() == dense.keys()
    for name, weight in dense.items():
        assert torch.equal(found[name], weight), name
    normal = transformers.AutoModel.from_pretrained(source, dtype=torch.float32)
    normal.load_state_dict(dense)
    with torch.inference_mode():
        states = network(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(
            states, normal(input_ids=IDS).last_hidden_state, atol=1e-5, rtol=0
        )


def test_the_packer_reaches_the_ends_of_an_asymmetric_grid(source, tmp_path):
    pack_gptq(source, tmp_path / "packed", sym=False, version="gptq_v2")
    qzeros = safetensors.torch.load_file(tmp_path / "packed/model.safetensors")[f"{GATE}.qzeros"]
    fields = (qzeros[..., None] >> torch.arange(0, 32, 4)) & 15
    assert {0, 15} < set(fields.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_once_to_the_dtype(source, tmp_path, dtype):
    dense = pack_gptq(source, tmp_path / "packed", sym=False)
    network = load(tmp_path / "packed", dtype)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, dense[name].to(dtype)), name
    assert network.rotary_emb.inv_freq.dtype == torch.float32


def test_the_network_is_ready_and_outlives_its_file(packed):
    network = load(packed)
    before = network(input_ids=IDS).last_hidden_state
    (packed / "model.safetensors").write_bytes(b"")
    assert torch.equal(network(input_ids=IDS).last_hidden_state, before)
    assert not network.training and not before.requires_grad


@pytest.mark.parametrize("overrides", [{}, {"rope_scaling": LONG_ROPE}, {"sliding_window": 7}])
def test_buffers_and_states_equal_those_of_a_normal_start(tmp_path, overrides):
    write_phi3(tmp_path / "phi3", **overrides)
    dense = pack_gptq(tmp_path / "phi3", tmp_path / "packed")
    network = load(tmp_path / "packed")
    normal = transformers.AutoModel.from_pretrained(tmp_path / "phi3", dtype=torch.float32)
    normal.load_state_dict(dense)
    buffers = dict(normal.named_buffers())
    assert buffers and dict(network.named_buffers()).keys() == buffers.keys()
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    ids = torch.arange(4, 204)[None]  # past the 128 positions where longrope changes its factors
    with torch.inference_mode():
        states = network(input_ids=ids).last_hidden_state
        torch.testing.assert_close(
            states, normal(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0
        )


def test_building_leaves_no_hook_behind(packed):
    load(packed)
    assert torch.nn.Linear(2, 2).weight.device == CPU


def test_lm_head_is_never_read(packed):
    """The tensor has a type that safetensors knows and PyTorch lacks, so that reading it fails."""
    rewrite(packed, put("lm_head.weight", torch.zeros(320, 48)))
    path = packed / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["lm_head.weight"] |= {"dtype": "F6_E2M3", "shape": [320, 256]}  # 48 x 32 = 256 x 6 bits
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])
    with safe_open(path, framework="pt") as file, pytest.raises(SafetensorError):
        file.get_tensor("lm_head.weight")
    load(packed)


def test_what_old_writers_added_is_passed_over(packed):
    """A packed lm_head, rotary frequencies of each layer, and biases of zeros (AutoGPTQ 0.7)."""

    def change(tensors):
        tensors["lm_head.qweight"] = tensors.pop("lm_head.weight").int()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors[f"{GATE}.bias"] = torch.zeros(256)

    expected = load(packed).state_dict()
    rewrite(packed, change)
    found = load(packed).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_groups_are_in_order_where_g_idx_is_left_out(packed):
    expected = load(packed).state_dict()
    rewrite(packed, lambda tensors: [tensors.pop(n) for n in list(tensors) if "g_idx" in n])
    found = load(packed).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tied_embeddings(tmp_path):
    write_phi3(tmp_path / "phi3", tie_word_embeddings=True)
    dense = pack_gptq(tmp_path / "phi3", tmp_path / "packed")
    assert torch.equal(load(tmp_path / "packed").embed_tokens.weight, dense["embed_tokens.weight"])


def test_a_base_network_without_the_prefix(source, tmp_path):
    dense = pack_gptq(source, tmp_path / "packed")

    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(tmp_path / "packed", change)
    found = load(tmp_path / "packed").state_dict()
    assert all(torch.equal(found[name], dense[name]) for name in dense)


class MemoryInUse(TorchDispatchMode):
    """Counts the most bytes of tensors that were alive at once, views of a file included."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device == CPU:
                storage = tensor.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {ref: size for ref, size in self.sizes.items() if not ref.expired()}
        self.most = max(self.most, sum(self.sizes.values()))
        return result


def test_loading_needs_less_than_one_block_above_the_network(tmp_path):
    write_phi3(tmp_path / "phi3", hidden_size=512, intermediate_size=1024)
    pack_gptq(tmp_path / "phi3", tmp_path / "packed")
    quantization = read_quantization(tmp_path / "packed")
    with MemoryInUse() as memory:
        network = load_dequantized(
            tmp_path / "packed", quantization, dtype=torch.float32, device=CPU
        )
    block = sum(weight.nbytes for weight in network.layers[0].parameters())
    assert memory.most < sum(weight.nbytes for weight in network.parameters()) + block


def test_describes_the_packing(source, tmp_path):
    pack_gptq(source, tmp_path / "a", bits=8, group_size=-1, sym=False, desc_act=True)
    assert read_quantization(tmp_path / "a") == Quantization(8, -1, True, False, zero_offset=1)
    pack_gptq(source, tmp_path / "b", version="gptq_v2", metadata="quantize_config")
    assert read_quantization(tmp_path / "b") == Quantization(4, 32, False, True, zero_offset=0)
    assert read_quantization(source) is None


def test_quantize_config_without_a_format_is_the_first(source, tmp_path):
    pack_gptq(source, tmp_path / "packed", metadata="quantize_config")
    edit_json(tmp_path / "packed/quantize_config.json", lambda it: it.pop("checkpoint_format"))
    assert read_quantization(tmp_path / "packed").zero_offset == 1


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"quant_method": "awq"}, "'awq'"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
        ({"quant_method": None}, "None"),
        ({"checkpoint_format": "marlin"}, "'marlin'"),
        ({"checkpoint_format": ["gptq"]}, "['gptq']"),
        ({"is_marlin_format": True}, "not supported"),
        ({"bits": 3}, "bits is 3"),
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": None}, "bits is None"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": True}, "group_size is True"),
        ({"group_size": 32.0}, "group_size is 32.0"),
        ({"format": "gptq_v2"}, "checkpoint_format is 'gptq' and format 'gptq_v2'"),
        ({"method": "awq"}, "quant_method is 'gptq' and method 'awq'"),
        ({"dynamic": 5}, "dynamic is 5, not an object"),
        ({"dynamic": ["+:.*"]}, "not an object"),
        ({"desc_act": "no"}, "desc_act is 'no'"),
        ({"sym": 1}, "sym 1"),
    ],
    ids=str,
)
def test_other_quantizations_are_refused(packed, change, mention):
    edit_json(packed / "config.json", lambda it: it["quantization_config"].update(change))
    with pytest.raises(UserError) as refused:
        read_quantization(packed)
    assert str(packed / "config.json") in str(refused.value) and mention in str(refused.value)


OTHER_MATHEMATICS = [
    {"rotation": "hadamard"},
    {"dynamic": {"+:.*down_proj": {"bits": 8}}},
    {"dynamic": {".*": {"group_size": 64}, "-:.*gate.*": {}}},
    {"adapter": {"name": "lora", "rank": 8}},
    {"pack_dtype": "int16"},
    {"mock_quantization": True},
    {"something_new": "yes"},
]
HARMLESS = [
    {"rotation": None, "adapter": None, "dynamic": None, "mock_quantization": False},
    {"dynamic": {"-:.*lm_head": {}}, "pack_dtype": "int32", "lm_head": False},
    {"damp_percent": 0.1, "static_groups": False, "true_sequential": True, "v2": False},
    {"meta": {"quantizer": ["gptqmodel:7.6.0"], "mse": 2.0}, "act_group_aware": True},
    {"model_name_or_path": None, "model_file_base_name": "model", "quantizer": "auto"},
    {"use_exllama": True, "exllama_config": {"version": 2}, "dataset": "c4", "batch_size": 1},
]


@pytest.mark.parametrize("change", OTHER_MATHEMATICS, ids=str)
def test_settings_that_change_the_mathematics_are_refused(packed, change):
    edit_json(packed / "config.json", lambda it: it["quantization_config"].update(change))
    with pytest.raises(UserError, match=f"{next(iter(change))} is .*take a checkpoint without it"):
        read_quantization(packed)


@pytest.mark.parametrize("change", HARMLESS, ids=str)
def test_settings_that_change_nothing_pass(packed, change):
    before = read_quantization(packed)
    edit_json(packed / "config.json", lambda it: it["quantization_config"].update(change))
    assert read_quantization(packed) == before


def test_format_stands_for_checkpoint_format_where_that_is_absent(source, tmp_path):
    dense = pack_gptq(source, tmp_path / "packed", sym=False, version="gptq_v2")

    def rename(config):
        quantization = config["quantization_config"]
        quantization["format"] = quantization.pop("checkpoint_format")
        quantization["method"] = quantization.pop("quant_method")

    edit_json(tmp_path / "packed/config.json", rename)
    states = load(tmp_path / "packed").state_dict()
    for name, weight in dense.items():
        assert torch.equal(states[name], weight), name


def test_malformed_configs_are_refused(packed):
    edit_json(packed / "config.json", lambda it: it.update(quantization_config=[4]))
    with pytest.raises(UserError, match="quantization_config is"):
        read_quantization(packed)
    (packed / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_quantization(packed)


@pytest.mark.parametrize(
    "change", [{"model_type": "nonsense"}, {"hidden_size": "wide"}, {"num_attention_heads": 0}]
)
def test_unknown_networks_are_refused(packed, change):
    edit_json(packed / "config.json", lambda it: it.update(change))
    assert "config.json describes no known network" in refusal(packed)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (lambda it: it.pop("model.norm.weight"), ["lacks the weight norm.weight"]),
        (lambda it: it.pop(f"{GATE}.qweight"), ["lacks", "gate_up_proj.qweight"]),
        (lambda it: it.pop(f"{GATE}.qzeros"), ["lacks", "gate_up_proj.qzeros"]),
        (lambda it: it.pop(f"{GATE}.scales"), ["lacks", "gate_up_proj.scales"]),
        (put("model.layers.3.mlp.down_proj.weight", torch.ones(1)), ["layers.3", "not expected"]),
        (put(f"{GATE}.weight", torch.ones(256, 64)), [GATE, "not expected"]),
        (put(f"{GATE}.bias", torch.ones(256)), [f"{GATE}.bias", "not expected"]),
        (put("norm.weight", torch.ones(64)), ["norm.weight is there twice"]),
        (put("model.norm.weight", torch.ones(63)), ["model.norm.weight is F32 [63], not", "[64]"]),
        (put("model.norm.weight", torch.ones(64).long()), ["model.norm.weight is I64"]),
        (put(f"{GATE}.qweight", torch.ones(8, 256)), ["gate_up_proj.qweight is F32"]),
        (put(f"{GATE}.scales", torch.ones(1, 256)), ["gate_up_proj.scales is F32 [1, 256]"]),
        (put(f"{GATE}.g_idx", torch.zeros(64).int()), ["gate_up_proj.g_idx", "2 groups"]),
        (put(f"{GATE}.g_idx", torch.arange(64).int() // 16), ["gate_up_proj.g_idx", "2 groups"]),
        (put("model.embed_tokens.qweight", torch.ones(8, 320).int()), ["embed_tokens is packed"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(packed, change, mentions):
    rewrite(packed, change)
    message = refusal(packed)
    assert str(packed) in message
    for mention in mentions:
        assert mention in message


@pytest.mark.parametrize("change", [{"bits": 8}, {"group_size": 64}])
def test_metadata_of_another_packing_is_refused(packed, change):
    edit_json(packed / "config.json", lambda it: it["quantization_config"].update(change))
    assert "do not belong to the configuration" in refusal(packed)


def test_permuted_groups_need_their_g_idx(packed):
    edit_json(packed / "config.json", lambda it: it["quantization_config"].update(desc_act=True))
    rewrite(packed, lambda tensors: tensors.pop(f"{GATE}.g_idx"))
    assert "lacks the weight layers.1.mlp.gate_up_proj.g_idx" in refusal(packed)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_zero_points_of_the_other_format_are_refused(source, tmp_path, version):
    pack_gptq(source, tmp_path / "packed", version=version)
    other = {"gptq": "gptq_v2", "gptq_v2": "gptq"}[version]
    edit_json(
        tmp_path / "packed/config.json",
        lambda it: it["quantization_config"].update(checkpoint_format=other),
    )
    assert "set the other checkpoint_format" in refusal(tmp_path / "packed")


def test_a_missing_shard_is_named(source, tmp_path):
    pack_gptq(source, tmp_path / "packed", shards=3)
    (tmp_path / "packed/model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in refusal(tmp_path / "packed")


def test_a_tensor_missing_from_its_shard_is_named(source, tmp_path):
    pack_gptq(source, tmp_path / "packed", shards=2)
    shard = tmp_path / "packed/model-00002-of-00002.safetensors"
    tensors = safetensors.torch.load_file(shard)
    name = next(iter(tensors))
    del tensors[name]
    safetensors.torch.save_file(tensors, shard)
    assert f"{shard} lacks {name}" in refusal(tmp_path / "packed")


def test_malformed_indexes_are_refused(source, tmp_path):
    pack_gptq(source, tmp_path / "packed", shards=2)
    index = tmp_path / "packed/model.safetensors.index.json"
    for content in ('{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}", "["):
        index.write_text(content)
        assert str(tmp_path / "packed") in refusal(tmp_path / "packed")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, None])
def test_a_damaged_file_is_named(packed, damage):
    path = packed / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert f"{path} is missing or damaged" in refusal(packed)


def test_several_checkpoints_are_refused(packed):
    shutil.copy(packed / "model.safetensors", packed / "a.safetensors")
    (packed / "model.safetensors").rename(packed / "b.safetensors")
    assert "b.safetensors: model.embed_tokens.weight is there twice" in refusal(packed)


def test_no_weights_at_all(packed):
    (packed / "model.safetensors").unlink()
    assert "holds no weights" in refusal(packed)


def test_pickled_weights_are_refused_and_the_remedy_works(packed):
    expected = load(packed).state_dict()
    path = packed / "model.safetensors"
    torch.save(safetensors.torch.load_file(path), packed / "gptq_model-4bit-32g.bin")
    path.unlink()
    message = refusal(packed)
    assert "gptq_model-4bit-32g.bin is refused: pickled weights can execute code" in message
    remedy = message.split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", remedy], cwd=packed, check=True)
    found = load(packed).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def gptqmodel():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("gptqmodel", reason="an optional extra that pins its numpy")


@pytest.fixture(scope="module")
def split_source(tmp_path_factory, gptqmodel) -> Path:
    """A checkpoint that gptqmodel loads, with the tokenizer that it needs."""
    folder = tmp_path_factory.mktemp("gptqmodel") / "phi3"
    write_phi3(folder)
    write_phi3_tokenizer(folder)
    return folder


REFERENCE_VARIANTS = [
    {},
    {"bits": 8},
    {"desc_act": True},
    {"sym": False, "version": "gptq_v2"},
    {"sym": False, "shards": 2},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", REFERENCE_VARIANTS, ids=str)
def test_gptqmodel_unpacks_the_same_weights(gptqmodel, split_source, tmp_path, variant):
    dense = pack_gptq(split_source, tmp_path / "packed", split_gate_up=True, **variant)
    writer = {"quantizer": ["gptqmodel:7.6.0"]}  # it loads no asymmetric gptq without this
    edit_json(
        tmp_path / "packed/config.json", lambda it: it["quantization_config"].update(meta=writer)
    )
    reference = dequantized_by_gptqmodel(gptqmodel, tmp_path / "packed")
    found = load(tmp_path / "packed", torch.float16).state_dict()
    assert len(reference) == 12
    for name, weight in reference.items():
        assert torch.equal(found[name], weight), name
        assert torch.equal(dense[name].half(), weight), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sym", [True, False])
def test_what_gptqmodel_packed_itself(gptqmodel, split_source, tmp_path, monkeypatch, sym):
    monkeypatch.chdir(tmp_path)  # it writes logs/ there
    config = gptqmodel.QuantizeConfig(bits=4, group_size=32, sym=sym, desc_act=not sym)
    model = gptqmodel.GPTQModel.load(str(split_source), config)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 320, (1, 64), generator=generator) for _ in range(16)]
    texts = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    model.quantize(texts, batch_size=1)
    model.save(str(tmp_path / "packed"))
    found = load(tmp_path / "packed", torch.float16).state_dict()
    for name, weight in dequantized_by_gptqmodel(gptqmodel, tmp_path / "packed").items():
        assert torch.equal(found[name], weight), name


def dequantized_by_gptqmodel(gptqmodel, folder: Path) -> dict[str, torch.Tensor]:
    """The packed weights of a checkpoint as float16, the halves of a gate_up_proj together."""
    model = gptqmodel.GPTQModel.load(
        str(folder), backend=gptqmodel.BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16
    )
    halves: dict[str, list[torch.Tensor]] = {}
    for name, layer in model.model.model.named_modules():
        if hasattr(layer, "dequantize_weight"):
            fused = re.sub("(gate|up)_proj$", "gate_up_proj", name)
            halves.setdefault(f"{fused}.weight", []).append(layer.dequantize_weight().T)
    return {name: torch.cat(weights) for name, weights in halves.items()}


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_give_nearly_the_states_of_dense_ones(gptqmodel, split_source, tmp_path):
    pack_gptq(split_source, tmp_path / "packed", split_gate_up=True)
    quantization = gptq.read_quantization(tmp_path / "packed")
    cpu = {"dtype": torch.float32, "device": torch.device("cpu")}
    packed = gptq.load_packed(tmp_path / "packed", **cpu)
    dense = gptq.load_dequantized(tmp_path / "packed", quantization, **cpu)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        expected = dense(input_ids=ids).last_hidden_state
        difference = (packed(input_ids=ids).last_hidden_state - expected).norm()
    assert difference <= 0.05 * expected.norm()  # its kernel multiplies in 16 bits


def test_packed_weights_without_gptqmodel_are_one_line(tmp_path, monkeypatch):
    write_phi3(tmp_path / "phi3")
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    with pytest.raises(UserError, match="pip install gptqmodel"):
        gptq.load_packed(tmp_path / "phi3", dtype=torch.float32, device=torch.device("cpu"))
