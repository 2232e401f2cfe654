"""`python -m sasnet_jax.baselines`: what SASNet must be compared with (paper section 2.5)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from sasnet_jax import cli, files
from sasnet_jax.baselines import protocol, registry, svm
from sasnet_jax.baselines.fitting import best_oracle, predict_all
from sasnet_jax.baselines.protocol import AveragesOver
from sasnet_jax.baselines.registry import ORACLE, Baseline
from sasnet_jax.baselines.results import (
    BEGUN,
    COMPLETE,
    BaselineResult,
    Baselines,
    predictions_of,
    read_predictions,
)
from sasnet_jax.cli import ProgressBar, UserError, setting
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import CLASS_NAMES, Corpus, read_corpus
from sasnet_jax.corpus.store import Store, open_store
from sasnet_jax.scores import predictions


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaselinesConfig:
    """Settings of `baselines`."""

    corpus: str = setting("", help="corpus folder", topic="files", required=True)
    store: tuple[str, ...] = setting((), help="embedding store; repeatable", topic="files")
    output: str = setting("", help="folder to write", topic="files", required=True)
    target_review: TargetReview = setting(
        "exclude",
        help="whether averages hold the target (leaky)",
        topic="protocol",
    )
    subset: int = setting(
        0,
        help="number of reviews to learn from and predict (paper: 4000); 0 = all",
        topic="protocol",
        minimum=0,
    )
    averages_over: AveragesOver = setting(
        "corpus",
        help="average over all reviews, or the subset's",
        topic="protocol",
    )
    classes: int = setting(
        3, help="3 (bad, good, excellent) or 5 (stars; half stars round up)", topic="protocol"
    )
    seed: int = setting(
        0,
        help="seed of the subset and of the rows to tune on",
        topic="protocol",
        minimum=0,
        below=2**31,
    )

    def __post_init__(self):
        """Refuses what cannot be meant."""
        cli.check(self)
        if self.averages_over == "subset" and not self.subset:
            raise UserError("--averages_over=subset needs --subset=NUMBER")
        if self.classes not in CLASS_NAMES:
            raise UserError(f"--classes={self.classes} is neither 3 nor 5")


def run(config: BaselinesConfig) -> None:
    """Writes baselines.json and predictions/<model>.parquet, or finds them there.

    The same command resumes a run that was stopped: each model is kept once it is fitted.
    """
    corpus = read_corpus(Path(config.corpus))
    stores = [open_store(Path(name), corpus) for name in config.store]
    wanted = registry.baselines_of([store.name for store in stores])
    output = Path(config.output)
    asked = Baselines(
        models={},
        target_review=config.target_review,
        corpus_sha256=corpus.sha256,
        stores={store.name: store.identity for store in stores},
        subset=config.subset,
        averages_over=config.averages_over,
        classes=config.classes,
        seed=config.seed,
        svm_library=svm.LIBRARY,
        train_reviews=0,  # filled in once the protocol is known
    )
    complete, begun = output / COMPLETE, output / BEGUN
    files.claim(output, COMPLETE, BEGUN)
    missing = False
    if begun.exists() or not complete.exists():
        with files.sole_writer(output):
            if missing := not complete.exists():  # otherwise another process wrote it first
                _make(output, corpus, stores, wanted, asked)
            _tidy(output, _read(complete, asked))
    baselines = _read(complete, asked)
    for name in baselines.models:
        read_predictions(output, baselines, name, corpus)  # refuses damaged files
    print(_shown(baselines))
    if missing:
        print(f"written: {complete}")
    else:
        files.say_complete(output)


def _make(
    output: Path,
    corpus: Corpus,
    stores: Sequence[Store],
    baselines: Sequence[Baseline],
    asked: Baselines,
) -> None:
    """Fits the baselines that are missing, and writes baselines.json."""
    fitted_on = protocol.protocol_of(
        corpus,
        asked.target_review,
        classes=asked.classes,
        subset=asked.subset,
        averages_over=asked.averages_over,
        seed=asked.seed,
    )
    asked = msgspec.structs.replace(asked, train_reviews=fitted_on.rows["train"].size)
    rows = np.concatenate([fitted_on.rows[split] for split in predictions.EVALUATED])
    history = predictions.history_lengths(corpus)
    models: dict[str, BaselineResult] = {}
    if (output / BEGUN).exists():
        kept = _read(output / BEGUN, asked).models
        models = {
            name: result for name, result in kept.items() if _is_written(output, name, result)
        }

    def keep(name: str, models: dict[str, BaselineResult]) -> None:
        files.write_record(output / name, msgspec.structs.replace(asked, models=models))

    keep(BEGUN, models)
    print(f"SVMs by {svm.LIBRARY}, on {asked.train_reviews:,} reviews")
    done = {name: model.chosen for name, model in models.items()}
    predicted = predict_all(baselines, fitted_on, corpus, stores, asked.seed, done)
    total = len(baselines)
    with ProgressBar(total=total, desc="baselines", unit="model", initial=len(models)) as bar:
        for baseline, probability, chosen in predicted:
            name = baseline.name
            written = predictions.write(predictions_of(output, name), corpus, rows, probability)
            scores = predictions.summarize(corpus, rows, probability, history)
            models[name] = BaselineResult(
                **baseline.description,
                validation=scores.validation,
                test=scores.test,
                chosen=chosen,
                predictions_sha256=written,
            )
            keep(BEGUN, models)
            bar.update()
            bar.set_postfix_str(f"{name} {predictions.number(models[name].test.accuracy)}")
    best = best_oracle(baselines, {name: model.chosen for name, model in models.items()})
    with files.replacing(predictions_of(output, ORACLE)) as file:
        file.write(predictions_of(output, best.name).read_bytes())
    honest = [baseline for baseline in baselines if not baseline.is_ceiling]
    complete = {baseline.name: models[baseline.name] for baseline in honest}
    # The best of those that see the target is the one shown.
    complete[ORACLE] = msgspec.structs.replace(models[best.name], label="oracle")
    keep(COMPLETE, complete)


def _tidy(output: Path, baselines: Baselines) -> None:
    """Removes what was needed only while baselines were missing."""
    for path in (output / "predictions").glob("*.parquet"):
        if path.stem not in baselines.models:
            path.unlink()
    (output / BEGUN).unlink(missing_ok=True)


def _is_written(output: Path, name: str, model: BaselineResult) -> bool:
    path = predictions_of(output, name)
    return path.is_file() and model.predictions_sha256 in (None, files.file_sha256(path))


def _read(path: Path, asked: Baselines) -> Baselines:
    """Reads baselines.json or begun.json.

    Raises:
      UserError: it is damaged, or was written with other settings.
    """
    before = files.read_record(path, Baselines)
    may_differ = {"models", "format_version", "sha256"}
    if path.name == COMPLETE:
        may_differ |= {"svm_library", "train_reviews"}
    made_with, wanted = msgspec.structs.asdict(before), msgspec.structs.asdict(asked)
    files.refuse_other_settings(path.parent, made_with, wanted, may_differ)
    return before


def _shown(baselines: Baselines) -> str:
    lines = [predictions.table(baselines.models, baselines.target_review)]
    if baselines.subset:
        lines.append(
            f"  on {baselines.subset:,} reviews, averages over the {baselines.averages_over}"
        )
    reads = baselines.models[ORACLE].chosen["reads"]
    lines.append(f"  oracle reads {reads}: the ceiling of the leaky protocol, not a baseline")
    return "\n".join(lines)
