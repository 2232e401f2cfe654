"""`python -m sasnet_jax.baselines`: what SASNet must be compared with (paper section 2.5)."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sasnet_jax import cli, files
from sasnet_jax.cli import UserError, setting
from sasnet_jax.data import embeddings
from sasnet_jax.data.corpus import CLASS_NAMES, read_corpus
from sasnet_jax.data.interactions import TargetReview
from sasnet_jax.evaluation import baseline_models, predictions, protocol, svm
from sasnet_jax.evaluation.protocol import AveragesOver


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
        0, help="reviews drawn to learn from and predict (paper: 4000); 0 = all", topic="protocol"
    )
    averages_over: AveragesOver = setting(
        "corpus", help="averages over all reviews, or those of the subset", topic="protocol"
    )
    classes: int = setting(3, help="3, or 5 for the stars (half ones round up)", topic="protocol")
    seed: int = setting(0, help="of the subset and of the rows to tune on", topic="protocol")

    def __post_init__(self):
        """Refuses what cannot be meant."""
        for name in ("seed", "subset"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name}={getattr(self, name)} must not be negative")
        if self.averages_over == "subset" and not self.subset:
            raise UserError("--averages_over=subset needs --subset")
        if self.classes not in CLASS_NAMES:
            raise UserError(f"--classes={self.classes} is neither 3 nor 5")


def run(config: BaselinesConfig) -> None:
    """Writes baselines.json and predictions/<model>.parquet, or finds them there."""
    corpus = read_corpus(Path(config.corpus))
    stores = [embeddings.open_store(Path(name), corpus) for name in config.store]
    features = ["tfidf", *(store.name for store in stores)]
    if len(set(features)) < len(features):
        raise UserError("--store: folders need names of their own, and not tfidf")
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
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        found = _complete(output, settings)
        print(_shown(found["models"], config))
        print(f"baselines {output} are already complete: nothing to do")
        return
    asked = protocol.protocol_of(
        corpus,
        config.target_review,
        classes=config.classes,
        subset=config.subset,
        averages_over=config.averages_over,
        seed=config.seed,
    )
    rows = np.concatenate([asked.rows[split] for split in predictions.EVALUATED])
    print(f"SVMs by {svm.LIBRARY}, on {asked.rows['train'].size:,} reviews")
    models: dict[str, Any] = {}
    predicted = baseline_models.predict_all(
        asked, baseline_models.features_of(corpus, stores, asked), config.seed
    )
    with (
        files.new_folder(output) as folder,
        tqdm(total=len(baseline_models.names(features)), desc="baselines", unit="model") as bar,
    ):
        for name, probability, chosen in predicted:
            predictions.write(folder / "predictions" / f"{name}.parquet", corpus, rows, probability)
            models[name] = predictions.summarize(corpus, rows, probability) | {"chosen": chosen}
            bar.update()
            bar.set_postfix_str(f"{name} {predictions.number(models[name]['test']['accuracy'])}")
        about = {"svm_library": svm.LIBRARY, "train_reviews": int(asked.rows["train"].size)}
        files.write_json(folder / "baselines.json", {"models": models, **settings, **about})
    print(_shown(models, config))
    print(f"written: {output}/baselines.json")


def _complete(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The baselines.json that is there.

    Raises:
      UserError: the folder holds something else, or baselines made otherwise.
    """
    path = output / "baselines.json"
    if not path.exists():
        raise UserError(f"--output={output} holds other files: choose a new folder")
    found = files.read_json(path, "python -m sasnet_jax.baselines", ("models",))
    changed = [name for name, value in settings.items() if found.get(name) != value]
    if changed:
        raise UserError(
            f"{output} holds baselines made otherwise ({', '.join(changed)}): "
            "choose another --output"
        )
    return found


def _shown(models: dict[str, Any], config: BaselinesConfig) -> str:
    lines = [predictions.table(models, config.target_review)]
    if config.subset:
        lines.append(f"  on {config.subset:,} reviews, averages over the {config.averages_over}")
    reads = models[baseline_models.ORACLE]["chosen"]["reads"]
    lines.append(f"  oracle reads {reads}: the ceiling of the leaky protocol, not a baseline")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main(BaselinesConfig, run, "Corpus + stores -> baselines.")
