"""`python -m sasnet_jax.runs`: lists and compares run folders (docs/formats.md). It only reads."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sasnet_jax import cli
from sasnet_jax.cli import ProgressBar, UserError, setting
from sasnet_jax.model.run import Run
from sasnet_jax.scores import predictions

_SHORT_HASH = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunsConfig:
    """Settings of `runs`."""

    folder: str = setting("", help="folder to search for runs", topic="input")
    run: tuple[str, ...] = setting((), help="run folder; repeatable", topic="input")
    compare: bool = setting(
        False, help="show only the settings in which the runs differ", topic="output"
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if not (self.folder or self.run):
            raise UserError("give --folder=FOLDER or --run=RUN")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A folder in the list."""

    name: str
    problem: str = ""  # why it has no columns
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(config: RunsConfig) -> None:
    """Prints the table, or the comparison."""
    named = [(Path(name).resolve().name, Path(name)) for name in config.run]
    if config.folder:
        named += _below(Path(config.folder))
    bar = ProgressBar(named, desc="reading", unit="run", delay=5, leave=False)
    listed = [look(name, path) for name, path in bar]
    good = [entry for entry in listed if not entry.problem]
    if good:
        print(_comparison(good) if config.compare else _table([entry.columns for entry in good]))
    for entry in listed:
        if entry.problem:
            print(f"{entry.name}: {entry.problem}")
    if not listed:
        print(f"no runs in {config.folder}")


def _below(folder: Path) -> list[tuple[str, Path]]:
    """Names and paths of the runs in `folder`, and of its subfolders without runs."""
    if not folder.is_dir():
        raise UserError(f"--folder={folder} is not a folder")
    folders_with_runs = []
    for name, folders, names in os.walk(folder):
        if "config.json" in names:
            folders_with_runs.append(Path(name))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    if folders_with_runs == [folder]:
        return [(folder.resolve().name, folder)]
    runs = [path.relative_to(folder) for path in folders_with_runs]
    with_runs = {path.parts[0] for path in runs}
    runs += [
        Path(path.name)
        for path in folder.iterdir()
        if path.is_dir() and path.name[0] != "." and path.name not in with_runs
    ]
    return [(str(path), folder / path) for path in sorted(runs)]


def look(name: str, path: Path) -> Listed:
    """Reads what a run folder holds, in any state."""
    try:
        if not (path / "config.json").is_file():
            raise UserError("holds no run")
        opened = Run(path)
        columns = {"name": name} | _columns(opened)
        return Listed(name=name, columns=columns, settings=_settings(opened))
    except UserError as error:
        return Listed(name=name, problem=str(error))
    except OSError as error:
        return Listed(name=name, problem=f"cannot be read: {error.strerror}")


def _columns(opened: Run) -> dict[str, Any]:
    config = opened.config
    best, evaluation = opened.best, opened.evaluation
    return {
        "state": opened.state,
        "inputs": "text+stars" if config.sees_stars else "text",
        "protocol": predictions.LEAKY if config.target_review == "include" else "target excluded",
        "best_epoch": best and best.epoch,
        "val_log_loss": best and best.validation_log_loss,
        "val_accuracy": best and best.validation_accuracy,
        "test_accuracy": evaluation and evaluation.test.accuracy,
        "test_macro_f1": evaluation and evaluation.test.macro_f1,
        "seed": config.seed,
        "corpus": opened.corpus_sha256[:_SHORT_HASH],
    }


def _settings(opened: Run) -> dict[str, Any]:
    """The settings by flag; the corpus and the stores by their content, not by their path."""
    settings = dataclasses.asdict(opened.config)
    del settings["output"]
    stores = [
        f"{Path(name).name}:{_hash(identity)}"
        for name, identity in zip(opened.config.store, opened.record.stores, strict=True)
    ]
    corpus = opened.corpus_sha256[:_SHORT_HASH]
    return settings | {"corpus": corpus, "store": "+".join(stores)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_SHORT_HASH]


def _comparison(listed: Sequence[Listed]) -> str:
    """One line per run: the settings in which the runs differ, and their results."""
    names = dict.fromkeys(name for entry in listed for name in entry.settings)
    differing = [n for n in names if len({repr(entry.settings.get(n)) for entry in listed}) > 1]
    rows = [
        {"name": entry.name}
        | {name: entry.settings.get(name) for name in differing}
        | {name: entry.columns[name] for name in ("protocol", "val_log_loss", "val_accuracy")}
        for entry in listed
    ]
    return _table(rows) if differing else "the runs do not differ in any setting"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns under their names."""
    cells = [[name.replace("_", " ") for name in rows[0]]]
    cells += [[_cell(name, value) for name, value in row.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.startswith(("val_", "test_")):
        return f"{value:.4f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
