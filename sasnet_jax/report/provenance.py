"""What everything was made from: settings, hashes, versions."""

import dataclasses
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from sasnet_jax import __version__
from sasnet_jax.corpus.store import Store
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.run import Run
from sasnet_jax.report.sources import Sources

_PACKAGES = ("jax", "flax", "numpy", "scikit-learn", "polars")
_NO_FACTS = ("models", "stores", "format_version", "sha256")
_PATHS = (
    "corpus",
    "store",
    "output",
    "coordinator",
)  # properties of the machine, not of the result


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, under a heading."""

    title: str
    rows: tuple[tuple[str, str], ...]


def facts(sources: Sources) -> list[Facts]:
    """The facts of this report, the corpus, its stores, runs and baselines."""
    packages = [f"{name} {version(name)}" for name in _PACKAGES]
    packages.insert(0, f"Python {platform.python_version()}")
    all_facts = [_facts("this report", {"program": f"sasnet {__version__}", "packages": packages})]
    all_facts.append(_of_corpus(sources))
    all_facts += [_of_store(store) for store in sources.stores]
    all_facts += [_of_run(run) for run in sources.runs]
    for baselines in sources.baselines:
        every = msgspec.structs.asdict(baselines.record)
        kept = {k: v for k, v in every.items() if k not in _NO_FACTS}
        all_facts.append(_facts(f"baselines {baselines.name}", kept))
    for quality in sources.quality:
        names = ("corpus_sha256", "categories_sha256", "min_reviews", "draws", "seed")
        kept = {name: getattr(quality.record, name) for name in names}
        all_facts.append(_facts(f"embedding quality {quality.name}", kept))
    return all_facts


def _of_corpus(sources: Sources) -> Facts:
    record = sources.record
    settings = dict(record.settings)
    inputs = settings.pop("inputs", None) or []
    read = {
        f"{file['role']} {file['name']}": f"{file['bytes']:,} bytes, sha256 {file['sha256']}"
        for file in inputs
    }
    return _facts(
        f"corpus {sources.corpus.folder.resolve().name}",
        read
        | {k: v for k, v in settings.items() if v not in ("", 0)}
        | {
            "split boundaries": record.split_boundaries,
            "lines read": f"{record.lines:,}",
            "rejected": record.rejected,
            "texts_sha256": sources.corpus.texts_sha256,
            "corpus_sha256": sources.corpus.sha256,
            "program version": record.program_version,
        },
    )


def _of_store(store: Store) -> Facts:
    ignored = ("format_version", "sha256", "hashes", "instruction_sha256")
    manifest = msgspec.to_builtins(store.manifest)
    facts = {k: v for k, v in manifest.items() if k not in ignored}
    return _facts(f"store {store.name}", facts | {"encoder": Path(store.manifest.encoder).name})


def _of_run(run: Run) -> Facts:
    """The flags that differ from their defaults, and what the run is bound to."""
    flags = {
        f"--{field.name}": getattr(run.config, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name not in _PATHS and getattr(run.config, field.name) != field.default
    }
    bound = {"stores": ", ".join(Path(name).name for name in run.config.store)}
    bound |= {"corpus_sha256": run.corpus_sha256}
    bound |= {"program version": run.record.program_version}
    return _facts(f"run {run.name}", {"state": run.state} | flags | bound)


def _facts(title: str, values: dict[str, Any]) -> Facts:
    known = {name: value for name, value in values.items() if value is not None}
    return Facts(title, tuple((name, _said(value)) for name, value in known.items()))


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_said(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return str(value)
