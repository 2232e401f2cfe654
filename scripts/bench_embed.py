"""Measures embedding against sentence-transformers and against plain Hugging Face forward passes.

Both sides alternate, in one process, on the same texts; figures are medians of --rounds:

- MiniLM: `SentenceTransformer.encode` with its defaults, against this engine in float32 and
  bfloat16, tokenization included;
- a small random Phi-3 (1024 wide, 8 layers) with all five poolings: forward passes in file order,
  in padded batches of 16, eager with `output_attentions`, against this engine; and this engine
  without attentional pooling;
- with --full_size: Phi-3-mini (3072 wide, 32 layers) with random 4-bit GPTQ weights, written into
  --folder and loaded like a user's checkpoint; the fraction of the matrix product's own peak.

    python scripts/bench_embed.py --corpus=CORPUS

Needs sentence-transformers (requirements-dev.txt). Three minutes on two cores; --full_size needs
a GPU and 2.4 GB of disk.
"""

import dataclasses
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

from embed_torch import attention, backbone, checkpoint, cli, corpus, files, gptq, packing, pooling
from embed_torch.backbone import Batch
from embed_torch.cli import setting
from embed_torch.config import EncoderConfig
from embed_torch.encoder import Encoder
from embed_torch.inputs import Tokenization

_PROMPT_TOKENS = 28  # of Phi-3's template and the paper's instruction, before and after a review
_SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
_SMALL |= {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32064}
_PAPER_REVIEWS = 75_379
_POOLINGS = ("mean", "max", "last", "positional", "attentional")  # the paper's


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """The settings of the measurement."""

    corpus: str = setting(
        "", help="corpus folder whose reviews are embedded", topic="bench", required=True
    )
    texts: int = setting(800, help="number of its first reviews that MiniLM embeds", topic="bench")
    phi3_texts: int = setting(
        160, help="number of its first reviews that the small Phi-3 embeds", topic="bench"
    )
    rounds: int = setting(3, help="number of runs of each side", topic="bench")
    full_size: bool = setting(False, help="also measure Phi-3-mini at full size", topic="bench")
    folder: str = setting(
        "work/bench_embed", help="folder for its weights and the figures", topic="bench"
    )
    device: str = setting("", help="torch device", topic="bench")


def run(config: BenchConfig) -> None:
    """Measures, prints a table, and writes bench_embed.json."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    texts = corpus.read_texts(Path(config.corpus)).reviews.to_list()
    device = backbone.device_named(config.device)
    figures: dict[str, Any] = {"machine": _machine(device)}
    print(figures["machine"])
    figures["minilm"] = _minilm(texts[: config.texts], device, config.rounds)
    lengths = _lengths(texts)
    figures["phi3_small"] = _phi3_small(lengths[: config.phi3_texts], device, config.rounds)
    if config.full_size:
        figures["phi3_mini"] = _phi3_mini(Path(config.folder), lengths, device, config.rounds)
    Path(config.folder).mkdir(parents=True, exist_ok=True)
    files.write_json(Path(config.folder) / "bench_embed.json", figures)


def _minilm(texts: list[str], device: torch.device, rounds: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(checkpoint.minilm_folder()), device=str(device))
    sides: dict[str, Callable[[], np.ndarray]] = {
        "sentence-transformers": lambda: reference.encode(texts, show_progress_bar=False)
    }
    for dtype in ("float32", "bfloat16"):
        sides[dtype] = _minilm_engine(texts, dtype, device)
    seconds, results = _in_turns(sides, rounds)
    expected = results["sentence-transformers"]
    rows = {}
    for name, result in results.items():
        cosine = (result * expected).sum(1) / np.linalg.norm(result, axis=1)
        rows[name] = {
            "reviews_per_second": len(texts) / seconds[name],
            "ratio": seconds["sentence-transformers"] / seconds[name],
            "smallest_cosine": float(cosine.min()),
        }
    peaks = {name: _peak(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    _print(f"all-MiniLM-L6-v2, {len(texts)} reviews; matrix product {_gigaflops(peaks)}", rows)
    return {"rows": rows, "matrix_product_flops": peaks}


def _minilm_engine(texts: list[str], dtype: Any, device: torch.device) -> Callable[[], np.ndarray]:
    encoder = Encoder(EncoderConfig(dtype=dtype, store_dtype="float32", device=str(device)))
    return lambda: encoder.encode(texts)


def _phi3_small(lengths: list[int], device: torch.device, rounds: int) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    networks = {}
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        networks[implementation] = transformers.AutoModel.from_config(
            transformers.Phi3Config(**_SMALL, **sizes),
            dtype=dtype,
            attn_implementation=implementation,
        )
        networks[implementation].eval().to(device)
    attention.use_packed_attention(networks["sdpa"])
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, _SMALL["vocab_size"], length).tolist() for length in lengths]
    without = tuple(name for name in _POOLINGS if name != "attentional")
    sides = {
        "Hugging Face, eager, padded": lambda: _padded(networks["eager"], texts),
        "packed, five poolings": lambda: _packed(networks["sdpa"], texts, _POOLINGS),
        "packed, without attentional": lambda: _packed(networks["sdpa"], texts, without),
    }
    seconds, results = _in_turns(sides, rounds)
    first = next(iter(sides))
    for name, expected in results[first].items():
        difference = np.abs(results["packed, five poolings"][name] - expected).max()
        scale = np.abs(expected).max()
        assert difference <= (1e-4 if dtype == torch.float32 else 5e-2) * scale, (name, difference)
    peak = _peak(dtype, device)
    weights = sum(w.numel() for w in networks["sdpa"].layers.parameters())
    rows = {
        name: {
            "tokens_per_second": sum(lengths) / seconds[name],
            "ratio": seconds[first] / seconds[name],
            "of_peak": 2 * weights * sum(lengths) / seconds[name] / peak,
        }
        for name in sides
    }
    cost = seconds["packed, five poolings"] / seconds["packed, without attentional"] - 1
    _print(f"random Phi-3, {dtype}, {len(lengths)} reviews of {np.mean(lengths):.0f} tokens", rows)
    print(f"attentional pooling: {cost:+.1%} time")
    return {"rows": rows, "attentional_cost": cost, "matrix_product_flops": peak}


def _phi3_mini(folder: Path, lengths: list[int], device: torch.device, rounds: int) -> dict:
    checkpoint = folder / "phi3_mini_gptq"
    if not (checkpoint / "model.safetensors").exists():
        _write_phi3_mini(checkpoint)
    quantization = gptq.read_quantization(checkpoint)
    assert quantization is not None
    started = time.perf_counter()
    network = gptq.load_dequantized(checkpoint, quantization, dtype=torch.bfloat16, device=device)
    loading = time.perf_counter() - started
    attention.use_packed_attention(network)
    rng = np.random.default_rng(0)
    batches = 4 if device.type == "cuda" else 1
    budget = packing.tokens_in_a_batch(0, device.type) // (1 if device.type == "cuda" else 8)
    repeated = (lengths * (1 + batches * budget // sum(lengths)))[: batches * budget // 30]
    kept = np.searchsorted(np.cumsum(repeated), batches * budget)
    texts = [rng.integers(3, 32000, length).tolist() for length in repeated[:kept]]
    sides = {"packed, five poolings": lambda: _packed(network, texts, _POOLINGS, budget)}
    seconds, _ = _in_turns(sides, rounds)
    rate = sum(map(len, texts)) / seconds["packed, five poolings"]
    peak = _peak(torch.bfloat16, device)
    weights = sum(w.numel() for w in network.layers.parameters())
    minutes = _PAPER_REVIEWS * float(np.mean(lengths)) / rate / 60
    row = {"tokens_per_second": rate, "of_peak": 2 * weights * rate / peak, "minutes": minutes}
    _print(
        f"Phi-3-mini, 4 bits to bfloat16 in {loading:.0f} s; 'minutes': {_PAPER_REVIEWS:,} reviews "
        f"of {np.mean(lengths):.0f} tokens",
        {"packed, five poolings": row},
    )
    return {**row, "loading_seconds": loading, "matrix_product_flops": peak}


def _write_phi3_mini(folder: Path) -> None:
    """Writes a full-size checkpoint as AutoGPTQ packs it: groups of 128, random fields."""
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.Phi3Config(architectures=["Phi3ForCausalLM"])
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = transformers.AutoModel.from_config(config)
    tensors = {}
    for name, weight in network.named_parameters():
        layer, (out, *inputs) = f"model.{name}".removesuffix(".weight"), weight.shape
        if ".layers." not in layer or not inputs:
            tensors[f"{layer}.weight"] = torch.randn(weight.shape, generator=generator).half()
            continue
        groups = inputs[0] // 128
        whole = {"low": -(2**31), "high": 2**31, "dtype": torch.int32, "generator": generator}
        tensors[f"{layer}.qweight"] = torch.randint(size=(inputs[0] // 8, out), **whole)
        tensors[f"{layer}.qzeros"] = torch.full((groups, out // 8), 0x77777777, dtype=torch.int32)
        tensors[f"{layer}.scales"] = torch.full((groups, out), 0.004, dtype=torch.float16)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    quantization = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    files.write_json(folder / "quantize_config.json", quantization)


@torch.inference_mode()
def _padded(network: Any, texts: list[list[int]]) -> dict[str, np.ndarray]:
    """Embeds the obvious way: in file order, 16 at a time, with all attentions returned."""
    embeddings: dict[str, list[torch.Tensor]] = {name: [] for name in _POOLINGS}
    for first in range(0, len(texts), 16):
        batch = texts[first : first + 16]
        longest = max(map(len, batch))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in batch])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
        ids, mask = ids.to(network.device), mask.to(network.device)
        output = network(
            input_ids=ids, attention_mask=mask, output_attentions=True, use_cache=False
        )
        states, real = output.last_hidden_state.float(), mask[..., None].float()
        count = real.sum(1)
        received = (output.attentions[-1].float().mean(1) * real).sum(1) / count
        positions = torch.arange(1, longest + 1, device=ids.device)[:, None] * real
        embeddings["mean"].append((states * real).sum(1) / count)
        embeddings["max"].append(states.masked_fill(real == 0, -torch.inf).amax(1))
        embeddings["last"].append(states[torch.arange(len(batch)), mask.sum(1) - 1])
        embeddings["positional"].append((states * positions).sum(1) / positions.sum(1))
        embeddings["attentional"].append((states * received[..., None]).sum(1))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in embeddings.items()}


def _packed(
    network: Any, texts: list[list[int]], poolings: tuple[str, ...], budget: int = 0
) -> dict[str, np.ndarray]:
    budget = packing.tokens_in_a_batch(budget, network.device.type)
    embeddings = {
        name: np.zeros((len(texts), network.config.hidden_size), "f") for name in poolings
    }
    for rows in packing.plan_batches([len(text) for text in texts], budget, None):
        batch = Batch([texts[row] for row in rows], (0, 0), poolings)
        states, last = attention.states_of(network, batch.ids)
        for name, values in pooling.pool(states, batch.spans(), poolings, last).items():
            embeddings[name][rows] = values.cpu().numpy()
    return embeddings


def _lengths(texts: list[str]) -> list[int]:
    """Tokens of each review in an instructed prompt, by MiniLM's tokenizer."""
    config = EncoderConfig(max_tokens=512)
    inputs = Tokenization(checkpoint.find_checkpoint("minilm"), config).of_reviews(
        list(range(len(texts))), texts
    )
    return [len(ids) - 2 + _PROMPT_TOKENS for ids in inputs.ids]


def _in_turns(sides: dict[str, Callable], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and last result of each side, after a first run that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results = {name: side() for name, side in sides.items()}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            results[name] = side()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(runs) for name, runs in seconds.items()}, results


def _peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of the best of several large matrix products."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _machine(device: torch.device) -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    cpu = next(names, platform.machine())
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has not
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return (
        f"{cores} cores, {cpu}{gpu}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _gigaflops(peaks: dict[str, float]) -> str:
    return ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in peaks.items())


def _print(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    columns = list(next(iter(rows.values())))
    print(f"{'':32}" + "".join(f"{name:>20}" for name in columns))
    for name, row in rows.items():
        print(f"{name:32}" + "".join(f"{row[column]:>20,.5g}" for column in columns))


if __name__ == "__main__":
    cli.main(BenchConfig, run, "Embedding, against sentence-transformers and Hugging Face.")
