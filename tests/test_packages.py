import dataclasses
import graphlib
import pkgutil
import re
import subprocess
import sys

import pytest
from conftest import ROOT, run_command

import embed_torch
import sasnet_jax
from embed_torch.config import EmbedConfig
from sasnet_jax.baselines.command import BaselinesConfig
from sasnet_jax.embedding_quality.command import EmbeddingQualityConfig
from sasnet_jax.evaluate.command import EvaluateConfig
from sasnet_jax.leakage.command import LeakageConfig
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.prepare.command import PrepareConfig
from sasnet_jax.report.command import ReportConfig
from sasnet_jax.runs.command import RunsConfig
from sasnet_jax.sweep.command import SweepConfig

CONFIGS = (
    EmbedConfig,
    PrepareConfig,
    TrainConfig,
    EvaluateConfig,
    BaselinesConfig,
    EmbeddingQualityConfig,
    LeakageConfig,
    RunsConfig,
    SweepConfig,
    ReportConfig,
)


def _modules(package) -> list[str]:
    modules = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [module.name for module in modules if not module.name.endswith("__main__")]


@pytest.mark.parametrize(
    ("package", "foreign"),
    [(embed_torch, ("jax", "flax", "sasnet_jax")), (sasnet_jax, ("torch", "embed_torch"))],
    ids=["embed_torch", "sasnet_jax"],
)
def test_a_package_never_imports_the_other_framework(package, foreign):
    modules = _modules(package)
    assert len(modules) > 5
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {foreign!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("name", ["cli.py", "files.py", "manifest.py"])
def test_shared_files_are_the_same_in_both_packages(name):
    copies = [(ROOT / package / name).read_bytes() for package in ("embed_torch", "sasnet_jax")]
    assert copies[0] == copies[1]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_setting_is_read_outside_its_definition(config):
    package = ROOT / config.__module__.split(".")[0]
    sources = [path.read_text() for path in package.rglob("*.py")]
    for field in dataclasses.fields(config):
        reads = sum(len(re.findall(rf"\bconfig\.{field.name}\b", text)) for text in sources)
        assert reads, f"nothing reads {config.__name__}.{field.name}"


def test_train_help_fits_a_screen():
    result = run_command("sasnet_jax.train", "--help")
    lines = result.stdout.splitlines()
    assert "--learning_rate" in result.stdout
    assert len(lines) <= 40 and max(map(len, lines)) <= 100


def test_every_command_is_listed_by_its_bare_name():
    result = run_command("sasnet_jax")
    assert result.returncode == 0, result.stderr
    listed = [line.split()[0] for line in result.stdout.splitlines()]
    folders = {path.parent.name for path in (ROOT / "sasnet_jax").glob("*/__main__.py")}
    assert len(listed) == len(set(listed)) and set(listed) == folders


@pytest.mark.parametrize("command", ["prepare", "runs", "report"])
def test_a_command_that_trains_nothing_loads_neither_jax_nor_flax(command):
    code = (
        f"import sys, sasnet_jax.{command}.command\n"
        "print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def _uses(package: str) -> set[str]:
    """The other packages of sasnet_jax whose modules a package imports."""
    sources = (path.read_text() for path in (ROOT / "sasnet_jax" / package).glob("*.py"))
    named = {name for source in sources for name in re.findall(r"from sasnet_jax\.(\w+)", source)}
    return {name for name in named if (ROOT / "sasnet_jax" / name).is_dir()} - {package}


def test_imports_between_stages_run_one_way():
    packages = sorted(path.parent.name for path in (ROOT / "sasnet_jax").glob("*/__init__.py"))
    graph = graphlib.TopologicalSorter({package: _uses(package) for package in packages})
    graph.prepare()  # raises CycleError
    commands = {path.parent.name for path in (ROOT / "sasnet_jax").glob("*/__main__.py")}
    for shared in {*packages} - commands:
        assert not _uses(shared) & commands, f"{shared} imports a command"
