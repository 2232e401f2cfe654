"""`python -m sasnet_jax.baselines`: what SASNet must be compared with (paper section 2.5)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sasnet_jax import cli, files
from sasnet_jax.baselines import protocol, registry, svm
from sasnet_jax.baselines.fitting import best_oracle, predict_all
from sasnet_jax.baselines.protocol import AveragesOver
from sasnet_jax.baselines.registry import ORACLE, Baseline
from sasnet_jax.cli import ProgressBar, UserError, setting
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import CLASS_NAMES, Corpus, read_corpus
from sasnet_jax.corpus.store import Store, open_store
from sasnet_jax.scores import predictions

_COMPLETE = "baselines.json"
_BEGUN = "begun.json"  # what is to become of it, until it is complete


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaselinesConfig:
    """Settings of `baselines`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting((), help="embedding store; repeatable", topic="files")
    output: str = setting("", help="folder to write", topic="files", required=True)
    target_review: TargetReview = setting(
        "exclude", help="the review to predict in the averages (leaky) or not", topic="protocol"
    )
    subset: int = setting(
        0,
        help="reviews drawn to learn from and predict (paper: 4000); 0 = all",
        topic="protocol",
        minimum=0,
    )
    averages_over: AveragesOver = setting(
        "corpus", help="averages over all reviews, or those of the subset", topic="protocol"
    )
    classes: int = setting(3, help="3, or 5 for the stars (half ones round up)", topic="protocol")
    seed: int = setting(
        0, help="of the subset and of the rows to tune on", topic="protocol", minimum=0, below=2**31
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if self.averages_over == "subset" and not self.subset:
            raise UserError("--averages_over=subset needs --subset")
        if self.classes not in CLASS_NAMES:
            raise UserError(f"--classes={self.classes} is neither 3 nor 5")


def run(config: BaselinesConfig) -> None:
    """Writes baselines.json and predictions/<model>.parquet, or finds them there.

    A run that was stopped goes on with the same command: each model is kept once it is fitted.
    """
    corpus = read_corpus(Path(config.corpus))
    stores = [open_store(Path(name), corpus) for name in config.store]
    wanted = registry.baselines_of([store.name for store in stores])
    output = Path(config.output)
    settings = {
        "target_review": config.target_review,
        "corpus_sha256": corpus.sha256,
        "stores": {store.name: store.identity for store in stores},
        "subset": config.subset,
        "averages_over": config.averages_over,
        "classes": config.classes,
        "seed": config.seed,
    }
    complete, begun = output / _COMPLETE, output / _BEGUN
    if output.is_file() or (any(output.glob("[!.]*")) and not complete.exists() | begun.exists()):
        raise UserError(f"--output={output} holds other files: choose a new folder")
    made = False
    if begun.exists() or not complete.exists():
        with files.sole_writer(output):
            if made := not complete.exists():  # else another process was before this one
                _make(config, corpus, stores, wanted, settings)
            _tidy(output, _read(complete, settings))
    print(_shown(_read(complete, settings), config))
    print(f"written: {complete}" if made else f"{complete} is already complete: nothing to do")


def _make(
    config: BaselinesConfig,
    corpus: Corpus,
    stores: Sequence[Store],
    baselines: Sequence[Baseline],
    settings: dict[str, Any],
) -> None:
    """Fits what is not there yet, and writes baselines.json."""
    asked = protocol.protocol_of(
        corpus,
        config.target_review,
        classes=config.classes,
        subset=config.subset,
        averages_over=config.averages_over,
        seed=config.seed,
    )
    rows = np.concatenate([asked.rows[split] for split in predictions.EVALUATED])
    history = predictions.history_lengths(corpus)
    about = {"svm_library": svm.LIBRARY, "train_reviews": int(asked.rows["train"].size)}
    output, folder = Path(config.output), Path(config.output) / "predictions"
    models: dict[str, Any] = {}
    if (output / _BEGUN).exists():
        found = _read(output / _BEGUN, settings | about)
        models = {name: one for name, one in found.items() if _file(folder, name).exists()}

    def keep() -> None:
        files.write_json(output / _BEGUN, {"models": models, **settings, **about})

    keep()
    print(f"SVMs by {svm.LIBRARY}, on {asked.rows['train'].size:,} reviews")
    done = {name: model["chosen"] for name, model in models.items()}
    predicted = predict_all(baselines, asked, corpus, stores, config.seed, done)
    total = len(baselines)
    with ProgressBar(total=total, desc="baselines", unit="model", initial=len(models)) as bar:
        for baseline, probability, chosen in predicted:
            name = baseline.name
            predictions.write(_file(folder, name), corpus, rows, probability)
            summary = predictions.summarize(corpus, rows, probability, history)
            models[name] = baseline.description | summary | {"chosen": chosen}
            keep()
            bar.update()
            bar.set_postfix_str(f"{name} {predictions.number(summary['test']['accuracy'])}")
    best = best_oracle(baselines, {name: model["chosen"] for name, model in models.items()})
    oracle = registry.oracle_of(best)
    with files.replacing(_file(folder, oracle.name)) as file:
        file.write(_file(folder, best.name).read_bytes())
    complete = {one.name: models[one.name] for one in baselines if not one.is_ceiling}
    complete[oracle.name] = models[best.name] | oracle.description
    files.write_json(output / _COMPLETE, {"models": complete, **settings, **about})


def _tidy(output: Path, models: dict[str, Any]) -> None:
    """Removes what was needed only until all was complete."""
    for path in (output / "predictions").glob("*.parquet"):
        if path.stem not in models:
            path.unlink()
    (output / _BEGUN).unlink(missing_ok=True)


def _file(folder: Path, model: str) -> Path:
    return folder / f"{model}.parquet"


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The models of a baselines.json, or of one that was begun.

    Raises:
      UserError: it is damaged, or they were made otherwise.
    """
    damaged = UserError(f"{path} is damaged: remove {path.parent} and run the command again")
    try:
        found = files.read_json(path, "python -m sasnet_jax.baselines", ("models",))
    except UserError:
        raise damaged from None
    changed = [name for name, value in settings.items() if found.get(name) != value]
    if changed:
        raise UserError(
            f"{path.parent} holds baselines made otherwise ({', '.join(changed)}): "
            "choose another --output"
        )
    if not isinstance(found["models"], dict):
        raise damaged
    registry.read(path, found["models"])
    return found["models"]


def _shown(models: dict[str, Any], config: BaselinesConfig) -> str:
    lines = [predictions.table(models, config.target_review)]
    if config.subset:
        lines.append(f"  on {config.subset:,} reviews, averages over the {config.averages_over}")
    reads = models[ORACLE]["chosen"]["reads"]
    lines.append(f"  oracle reads {reads}: the ceiling of the leaky protocol, not a baseline")
    return "\n".join(lines)
