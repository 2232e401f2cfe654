"""Bounds on what a stranger's model folder may cost before its weights are read."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from written_checkpoints import write_phi3
from written_tokenizers import write_phi3_tokenizer

from embed_torch import limits
from embed_torch.checkpoint import find_checkpoint
from embed_torch.cli import UserError
from embed_torch.config import EncoderConfig
from embed_torch.inputs import Tokenization
from embed_torch.limits import within_limits


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    write_phi3(folder, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    return write_phi3_tokenizer(folder)


def _replace(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_done_in_time_is_returned_or_raised():
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert within_limits("a sum", lambda: 1 + 1) == 2
    with pytest.raises(ZeroDivisionError):
        within_limits("a quotient", lambda: 1 // 0)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_work_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "_SECONDS", 0.2)
    release = threading.Event()
    with pytest.raises(UserError, match="a loop takes over 0 s: take another --model"):
        within_limits("a loop", release.wait)
    release.set()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("steps", [1, 100])
def test_work_that_fills_the_memory_is_given_up(monkeypatch, steps):
    monkeypatch.setattr(limits, "_BYTES", 1 << 28)
    release, held = threading.Event(), []

    def fill() -> None:
        for _ in range(steps):
            held.append(b"x" * ((1 << 30) // steps))
            release.wait(0.01)
        release.wait()

    with pytest.raises(UserError, match="a text takes over 0 GiB"):
        within_limits("a text", fill)
    release.set()
    held.clear()


def test_a_template_without_end_ends_in_one_line(model):
    """Runs in a process of its own: abandoned work runs on until its process ends."""
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    code = (
        "from embed_torch import cli, limits; from embed_torch.config import EncoderConfig; "
        "from embed_torch.encoder import Encoder; limits._SECONDS = 1.0; "
        "cli.main(EncoderConfig, Encoder, '')"
    )
    arguments = [f"--model={model}", "--instruction=Analyze.", f"--template={endless}"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and "chat template" in line and "takes over 1 s" in line


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% if true %}" * 5000, "recursion|refuses"),
        ("{{ messages }}" + "a" * 1_000_000, "over 1,000,000 characters"),
    ],
    ids=["attribute", "macro", "nested", "long"],
)
def test_a_hostile_template_is_refused(model, template, message):
    checkpoint = find_checkpoint(str(model))
    config = EncoderConfig(model=str(model), instruction="Analyze.", template=template)
    with pytest.raises(UserError, match=message):
        Tokenization(checkpoint, config)


def test_a_template_that_is_no_regular_file_is_refused(model, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    config = EncoderConfig(
        model=str(model), instruction="Analyze.", template=str(tmp_path / "fifo")
    )
    with pytest.raises(UserError, match="fifo is not a regular file"):
        Tokenization(find_checkpoint(str(model)), config)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "modules.json"]
)
def test_a_file_of_a_model_that_is_no_regular_file_is_refused(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(UserError, match=f"{name} is not a regular file: download"):
        find_checkpoint(str(model))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"a":' * 50_000),
        ("tokenizer.json", '{"a":' * 50_000),
        ("modules.json", "[" * 50_000),
    ],
)
def test_nested_json_is_refused(model, name, text):
    (model / name).write_text(text)
    with pytest.raises(UserError, match="recursion|cannot be loaded|not a list of modules"):
        find_checkpoint(str(model))


def test_absurd_sizes_are_refused(model, monkeypatch):
    _replace(model / "config.json", num_hidden_layers=10**9)
    with pytest.raises(UserError, match="over 1,024 layers"):
        find_checkpoint(str(model))
    monkeypatch.setattr("embed_torch.checkpoint._TEXT_BYTES", 1000)
    with pytest.raises(UserError, match="tokenizer.json has over 0 MiB"):
        find_checkpoint(str(model))
