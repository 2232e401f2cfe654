"""Measures how far simple models get that read the synthetic reviews perfectly.

Each text states facts (`text.read_facts`): which aspects, how good, what its user cares about. A
logistic regression predicts from sums of these over both sides' other reviews, with the penalty
tuned on validation:

- plain: averages over all reviews of a side, and their products;
- by hand: praise per mention of an aspect, tastes of length 1, stars minus what words explain,
  each shrunk, and their products: as close to the inference behind the ceiling (`ceiling.py`) as a
  few lines get.

    python scripts/probe_synthetic.py --corpus=CORPUS

CORPUS comes from `prepare --synthetic`. Takes a minute or two on 75,256 reviews.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int32
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sasnet_jax import cli
from sasnet_jax.cli import UserError, setting
from sasnet_jax.corpus.contexts import averaging_matrix, contexts_of
from sasnet_jax.corpus.corpus import CLASSES, Corpus, read_corpus
from sasnet_jax.corpus.counts import bias_features, class_shares, context_counts
from sasnet_jax.corpus.splits import SPLITS
from sasnet_jax.scores import metrics
from sasnet_jax.synthetic.text import ASPECTS, read_facts

_USUAL_STARS = 3.6
_PENALTIES = (0.001, 0.003, 0.01, 0.03)  # C
_FAVORITE = 5.0  # mentions that "what matters most to me" counts as
_TASTE, _QUALITY, _USER, _BUSINESS = 0.4, 0.5, 2.0, 4.0  # shrinkage, in mentions or reviews


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """The settings of the probe."""

    corpus: str = setting(
        "", help="corpus folder of `prepare --synthetic`", topic="probe", required=True
    )


def run(config: ProbeConfig) -> None:
    """Prints both models' accuracy and log-loss."""
    corpus = read_corpus(Path(config.corpus))
    if not (corpus.folder / "synthetic").is_dir():
        raise UserError(f"--corpus={corpus.folder} was not written by `prepare --synthetic=NUMBER`")
    facts = _facts(corpus)
    print(f"{'accuracy / log-loss (nats)':28}{'validation':>16}{'test':>16}")
    for name, by_hand in (("plain", False), ("by hand", True)):
        inputs = {split: _features(corpus, facts, corpus.rows(split), by_hand) for split in SPLITS}
        scores = _predict(corpus, inputs)
        shown = "".join(f"{part['accuracy']:>8.4f} /{part['log_loss']:6.3f}" for part in scores)
        print(f"{name:28}{shown}", flush=True)


def _facts(corpus: Corpus) -> dict[str, Float[np.ndarray, "reviews _"]]:
    """What each review says: aspects mentioned, praised (-2 to 2), first named, the favorite."""
    shape = (corpus.user.size, len(ASPECTS))
    mentioned, praise, first, favorite = (np.zeros(shape) for _ in range(4))
    for row, text in enumerate(corpus.texts()):
        said = read_facts(text)
        for aspect, level in said.mentions:
            mentioned[row, aspect], praise[row, aspect] = 1, level - 2
        if said.mentions:
            first[row, said.mentions[0][0]] = 1
        if said.favourite is not None:
            favorite[row, said.favourite] = 1
    stars = corpus.stars[:, None] - _USUAL_STARS
    care = mentioned + first + _FAVORITE * favorite
    explained = (care * praise).sum(1, keepdims=True) / np.maximum(care.sum(1, keepdims=True), 1)
    return {
        "mentioned": mentioned,
        "praise": praise,
        "care": care,
        "stars": stars,
        "beyond": stars - explained,
    }


def _features(
    corpus: Corpus,
    facts: dict[str, Float[np.ndarray, "reviews _"]],
    rows: Int32[np.ndarray, "n"],
    by_hand: bool,
) -> Float[np.ndarray, "n f"]:
    contexts, classes = contexts_of(corpus, "exclude"), len(CLASSES)
    sums = []
    for context in contexts:
        size = np.asarray(context.size)[rows][:, None].astype(float)
        matrix = averaging_matrix(context, rows)
        sums.append({name: (matrix @ fact) * size for name, fact in facts.items()} | {"n": size})
    user, business = sums
    averages = [
        side[name] / (side["n"] + shrink)
        for side, shrink in zip(sums, (_USER, _BUSINESS), strict=True)
        for name in ("praise", "stars", *(("beyond",) if by_hand else ()))
    ]
    if by_hand:
        taste = user["care"] + _TASTE
        taste /= np.linalg.norm(taste, axis=1, keepdims=True)
        quality = business["praise"] / (business["mentioned"] + _QUALITY)
    else:
        taste = user["care"] / (user["n"] + _USER)
        quality = business["praise"] / (business["n"] + _BUSINESS)
    products = (taste[:, :, None] * quality[:, None, :]).reshape(rows.size, -1)
    counts = context_counts(contexts, corpus.label, classes)[rows]
    shares = class_shares(corpus.label[corpus.rows("train")], classes)
    rated = np.asarray(bias_features(counts.astype(np.float32), shares))
    return np.hstack([*averages, taste, quality, rated, products])


def _predict(corpus: Corpus, inputs: dict[str, Float[np.ndarray, "_ f"]]) -> list[dict]:
    """Metrics on validation and test, with the penalty that is best on validation."""
    scaler = StandardScaler().fit(inputs["train"])
    label = {split: corpus.label[corpus.rows(split)] for split in SPLITS}
    by_penalty = []
    for penalty in _PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=300)
        model.fit(scaler.transform(inputs["train"]), label["train"])
        by_penalty.append(
            [
                metrics.brief(label[split], model.predict_proba(scaler.transform(inputs[split])))
                for split in ("validation", "test")
            ]
        )
    return min(by_penalty, key=lambda scores: scores[0]["log_loss"])


if __name__ == "__main__":
    cli.main(ProbeConfig, run, "Simple models that read the synthetic reviews perfectly.")
