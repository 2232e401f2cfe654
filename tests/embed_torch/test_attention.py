"""Packed attention and the poolings, against Hugging Face's eager forward of single texts."""

import copy
import re

import numpy as np
import pytest
import torch
import transformers
import written_checkpoints

from embed_torch import attention, backbone, pooling
from embed_torch.backbone import Batch

LENGTHS = (40, 9, 9, 8, 7, 5, 1)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0 + i for i in range(8)],
}
NETWORKS = {
    "phi3": {},
    "no shared key heads": {"num_key_value_heads": 4},
    "sliding window": {"sliding_window": 7},
    "window as long as a text": {"sliding_window": 9},
    "longrope": {
        "rope_parameters": LONGROPE | {"original_max_position_embeddings": 64},
        "original_max_position_embeddings": 64,
    },
}


def _phi3(tmp_path, **overrides):
    written_checkpoints.write_phi3(tmp_path / "phi3", **overrides)
    packed = transformers.AutoModel.from_pretrained(tmp_path / "phi3")
    eager = transformers.AutoModel.from_pretrained(tmp_path / "phi3", attn_implementation="eager")
    attention.use_packed_attention(packed)
    return packed, eager


def _texts(lengths=LENGTHS, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 320, length).tolist() for length in lengths]


@torch.no_grad()
def _alone(eager, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """States [T, e] and the last block's attention, averaged over heads, [T, T]."""
    output = eager(input_ids=torch.tensor([ids]), output_attentions=True)
    return output.last_hidden_state[0], output.attentions[-1][0].mean(0)


def _reference(states: torch.Tensor, weights: torch.Tensor, first: int, last: int) -> dict:
    """All poolings of the tokens first..last, written down from docs/design.md 4.1."""
    x, a = states[first:last].double(), weights[first:last, first:last].double()
    a = a / a.sum(1, keepdim=True)
    t = torch.arange(1, len(x) + 1, dtype=torch.float64)
    return {
        "mean": sum(x) / len(x),
        "max": torch.stack([column.max() for column in x.T]),
        "first": x[0],
        "last": x[-1],
        "positional": sum(t[i] / t.sum() * x[i] for i in range(len(x))),
        "attentional": (a @ x).mean(0),
    }


@pytest.mark.parametrize("around", [(0, 0), (3, 1)], ids=["all", "review"])
@pytest.mark.parametrize("name", NETWORKS)
def test_poolings_equal_the_eager_forward(tmp_path, name, around):
    packed, eager = _phi3(tmp_path, **NETWORKS[name])
    texts = _texts()
    states, last = attention.states_of(packed, texts)
    batch = Batch(texts, around, pooling.POOLINGS)
    found = pooling.pool(states, batch.spans(), pooling.POOLINGS, last)
    for row, ids in enumerate(texts):
        first, stop = around[0], len(ids) - around[1]
        if first >= stop:  # nothing but the prompt: pooled whole
            first, stop = 0, len(ids)
        expected = _reference(*_alone(eager, ids), first, stop)
        for kind in pooling.POOLINGS:
            np.testing.assert_allclose(found[kind][row], expected[kind], atol=1e-5, rtol=1e-5)


def test_attention_made_some_rows_at_a_time_is_the_same(tmp_path, monkeypatch):
    packed, eager = _phi3(tmp_path, sliding_window=7)
    (text,) = _texts((45,))
    _, last = attention.states_of(packed, [text])
    monkeypatch.setattr(pooling, "_ROWS_AT_ONCE", 8)
    a = _alone(eager, text)[1][4:43, 4:43]
    expected = (a / a.sum(1, keepdim=True)).mean(0)
    alike = pooling.Alike(start=0, texts=1, length=45, pooled=slice(4, 43))
    np.testing.assert_allclose(pooling.attention_received(last, alike)[0], expected, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 4 * 9 * 9 * 2])
def test_texts_of_one_length_pooled_some_at_a_time_are_the_same(tmp_path, monkeypatch, at_once):
    packed, _ = _phi3(tmp_path)
    texts = _texts((9, 9, 9, 9, 9, 5, 5, 9))
    states, last = attention.states_of(packed, texts)
    spans = Batch(texts, (3, 1), pooling.POOLINGS).spans()
    together = pooling.pool(states, spans, pooling.POOLINGS, last)
    monkeypatch.setattr(pooling, "_SHARES_ON_CPU", at_once)
    for kind, values in pooling.pool(states, spans, pooling.POOLINGS, last).items():
        torch.testing.assert_close(values, together[kind])


@pytest.mark.parametrize(
    ("dtype", "relative", "cosine"),
    [(torch.float32, 1e-5, 0.9999999), (torch.bfloat16, 2e-2, 0.9995)],
)
def test_an_embedding_does_not_depend_on_its_batch(tmp_path, dtype, relative, cosine):
    packed, _ = _phi3(tmp_path)
    packed = packed.to(dtype)
    texts = _texts()
    poolings = ("mean", "positional", "attentional")

    def embed(batch):
        states, last = attention.states_of(packed, batch)
        return pooling.pool(states, Batch(batch, (0, 0), poolings).spans(), poolings, last)

    together = embed(texts)
    for row, ids in enumerate(texts):
        for kind, alone in embed([ids]).items():
            difference = (together[kind][row] - alone[0]).norm() / alone[0].norm()
            similarity = torch.cosine_similarity(together[kind][row], alone[0], dim=0)
            assert difference <= relative and similarity >= cosine


def test_a_neighbour_that_is_not_finite_does_no_harm():
    states = torch.randn(6, 4)
    spans = Batch([[1, 2, 3], [4, 5, 6]], (0, 0), ("mean",)).spans()
    kinds = ("mean", "max", "last", "positional")
    expected = pooling.pool(states[:3], spans[:1], kinds, None)
    states[3:] = torch.nan
    for kind, values in pooling.pool(states, spans, kinds, None).items():
        assert torch.equal(values[0], expected[kind][0])


def _small(config_class, **overrides):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": 320}
    torch.manual_seed(0)
    config = config_class(**sizes | overrides)
    network = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return network


def _packs(network) -> bool:
    try:
        attention.use_packed_attention(network)
    except attention.CannotPack:
        return False
    return True


GROUPED = {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8}
EXPERTS = GROUPED | {"num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1}
QWEN2_MOE = {"use_sliding_window": True, "max_window_layers": 1, "num_experts": 4}
QWEN2_MOE |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
LLAMA4 = GEMMA | {"intermediate_size_mlp": 64, "num_local_experts": 2, "num_hidden_layers": 4}
WINDOW = {"sliding_window": 15}  # longer than the texts that packing is tried with
ROBERTA = {"pad_token_id": 1}  # positions begin at 2


@pytest.mark.parametrize(
    ("config_class", "overrides", "packs"),
    [
        (transformers.BertConfig, {}, True),
        (transformers.LlamaConfig, {}, True),
        (transformers.RobertaConfig, ROBERTA, True),
        (transformers.RobertaConfig, {"pad_token_id": 5}, True),
        (transformers.XLMRobertaConfig, ROBERTA, True),
        (transformers.CamembertConfig, ROBERTA, True),
        (transformers.MPNetConfig, ROBERTA, False),  # biases by distance
        (transformers.MistralConfig, GROUPED | WINDOW, True),
        (transformers.Gemma2Config, GEMMA | WINDOW, False),  # logits are capped
        (transformers.Gemma3TextConfig, GEMMA | WINDOW | {"num_hidden_layers": 7}, True),
        # windows in the mask only
        (transformers.PhimoeConfig, EXPERTS | WINDOW | {"num_local_experts": 4}, True),
        (transformers.Qwen2MoeConfig, EXPERTS | WINDOW | QWEN2_MOE, True),
        # masks in chunks, shorter and longer than any text
        (transformers.Llama4TextConfig, LLAMA4 | {"attention_chunk_size": 15}, False),
        (transformers.Llama4TextConfig, LLAMA4 | {"attention_chunk_size": 8192}, False),
    ],
)
def test_any_network_gives_what_it_gives_alone(config_class, overrides, packs):
    network = _small(config_class, **overrides)
    eager = copy.deepcopy(network)
    eager.set_attn_implementation("eager")
    assert _packs(network) == packs
    texts = [[token + (token == 5) for token in ids] for ids in _texts()]  # no padding
    states, last = attention.states_of(network, texts)
    assert (last is not None) == packs
    spans = Batch(texts, (0, 0), ("attentional",)).spans()
    for row, (ids, span) in enumerate(zip(texts, spans, strict=True)):
        expected, weights = _alone(eager, ids)
        np.testing.assert_allclose(states[span.start : span.stop], expected, atol=1e-5)
        if packs:
            found = pooling.pool(states, spans, ("attentional",), last)["attentional"][row]
            wanted = _reference(expected, weights, 0, len(ids))["attentional"]
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def _sharp(dtype):
    """Eight blocks that write some dimensions far larger than others, as trained ones do."""
    network = _small(transformers.LlamaConfig, num_hidden_layers=8, initializer_range=0.5)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[:2] *= 15
    return network.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_reason_not_to_pack(dtype):
    """Packed or not, the states are about as far from those in float32."""
    exact, own, packed = _sharp(torch.float32), _sharp(dtype), _sharp(dtype)
    attention.use_packed_attention(packed)
    texts = _texts()
    wanted, alone, found = (
        attention.states_of(network, texts)[0].float() for network in (exact, own, packed)
    )
    error, of_own = ((states - wanted).norm(dim=1).mean() for states in (found, alone))
    assert 0 < error < 1.5 * of_own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_refusal_says_by_how_much_the_states_differ(dtype, monkeypatch):
    network = _small(transformers.RobertaConfig, **ROBERTA).to(dtype)
    own = network.config._attn_implementation
    monkeypatch.setattr(attention, "_first_positions", lambda *_: [0])
    with pytest.raises(attention.CannotPack) as refusal:
        attention.use_packed_attention(network)
    number = r"(\d\.\de[+-]\d\d)"
    figures = re.search(f"states differ by {number}, and {number} is allowed", str(refusal.value))
    differ, allowed = map(float, figures.groups())
    assert differ > 2 * allowed and (allowed < 1e-4) == (dtype == torch.float32)
    assert network.config._attn_implementation == own


@pytest.mark.parametrize("config_class", [transformers.StableLmConfig, transformers.NemotronConfig])
def test_a_network_that_does_not_pass_on_the_texts_is_refused_in_plain_words(config_class):
    network = _small(config_class, **GROUPED)
    with pytest.raises(attention.CannotPack, match="^the network does not pass on what its") as why:
        attention.use_packed_attention(network)
    assert "packed_texts" not in str(why.value)


class _OnePlusWeight(torch.nn.Module):
    """A norm like Gemma's, which PyTorch's RMS norm does not compute."""

    variance_epsilon = 1e-6

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(0.3 * torch.ones(32))

    def forward(self, hidden_states):
        return torch.nn.functional.rms_norm(hidden_states, (32,), 1 + self.weight, 1e-6)


class _Gated(_OnePlusWeight):
    """A norm like those of hybrid networks, which need a gate."""

    def forward(self, hidden_states, gate=None):
        assert gate is None
        return torch.nn.functional.rms_norm(hidden_states, (32,), self.weight, 1e-6)


@pytest.mark.parametrize("other", [_OnePlusWeight, _Gated])
def test_only_norms_that_are_rms_norms_are_replaced(other):
    network = _small(transformers.LlamaConfig)
    kept = network.layers[1].input_layernorm = other()
    attention.use_packed_attention(network)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.RMSNorm)]
    assert len(norms) == 4 and network.layers[1].input_layernorm is kept


def test_a_network_that_cannot_be_packed_keeps_its_norms(monkeypatch):
    network = _small(transformers.LlamaConfig)
    before, states_of = list(network.modules()), attention.states_of

    def fail_when_packed(network, batch):
        if network.config._attn_implementation == attention.NAME:
            raise RuntimeError
        return states_of(network, batch)

    monkeypatch.setattr(attention, "states_of", fail_when_packed)
    assert not _packs(network)
    assert list(network.modules()) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_gives_what_the_cpu_gives(tmp_path, name, dtype):
    written_checkpoints.write_phi3(tmp_path / "phi3", **NETWORKS[name])
    encoders = [
        backbone.Backbone(backbone.Loading("m", tmp_path / "phi3", kind, device, "dequantize"))
        for kind, device in (("float32", "cpu"), (dtype, "cuda"))
    ]
    batch = Batch(_texts(), (3, 1), pooling.POOLINGS)
    expected, found = (encoder.embed(batch) for encoder in encoders)
    for kind in pooling.POOLINGS:
        for one, other in zip(expected[kind], found[kind], strict=True):
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert cosine >= (0.999999 if dtype == "float32" else 0.9995)
