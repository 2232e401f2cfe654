"""What `baselines` writes and other commands read: baselines.json (docs/formats.md)."""

from pathlib import Path
from typing import Any

from sasnet_jax import files
from sasnet_jax.baselines.protocol import AveragesOver
from sasnet_jax.baselines.registry import Baseline, Description
from sasnet_jax.corpus.contexts import TargetReview
from sasnet_jax.corpus.corpus import Corpus, Count
from sasnet_jax.scores import predictions
from sasnet_jax.scores.metrics import Scores
from sasnet_jax.scores.predictions import Predictions

COMPLETE = "baselines.json"
BEGUN = "begun.json"  # the unfinished baselines.json


class BaselineResult(Description, kw_only=True, frozen=True):
    """What a baseline is, and how it predicts."""

    validation: Scores
    test: Scores
    chosen: dict[str, Any]  # on validation
    predictions_sha256: str | None = None


class Baselines(files.Record, kw_only=True, frozen=True):
    """baselines.json, or begun.json."""

    made_by = "python -m sasnet_jax.baselines"
    version = 0
    models: dict[str, BaselineResult]
    target_review: TargetReview
    corpus_sha256: str
    stores: dict[str, dict[str, Any]]  # the identity of each
    subset: Count  # reviews drawn; 0 = all
    averages_over: AveragesOver
    classes: Count
    seed: int
    svm_library: str
    train_reviews: Count

    @property
    def described(self) -> list[Baseline]:
        """The baselines, without their results."""
        return [Baseline(name=name, **model.description) for name, model in self.models.items()]


def predictions_of(folder: Path, name: str) -> Path:
    """The path of one baseline's predictions in the output of `baselines`."""
    return folder / "predictions" / f"{name}.parquet"


def read_predictions(folder: Path, baselines: Baselines, name: str, corpus: Corpus) -> Predictions:
    """Reads the predictions of one baseline.

    Raises:
      UserError: they are absent, damaged, or of another model, corpus or split.
    """
    remedy = f"remove {folder} and run {Baselines.made_by} again"
    sha256 = baselines.models[name].predictions_sha256
    return predictions.read(predictions_of(folder, name), corpus, sha256, remedy)
