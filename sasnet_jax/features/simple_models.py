"""The simple models that a network may build on: crossed effects, and a regression to start from.

The regression is the strongest simple model of what the network is given. On text alone it reads
both sides' averages along the discriminants and their products; where the network is given stars,
also how the other reviews were rated: class counts, crossed effects and votes. What it says of a
training review is out of fold: its features are computed from the other folds, and the regression
is fitted on the targets of the other folds (whose features may rest on reviews of its fold).

In: a corpus, contexts, and every review's text along the discriminants. Out: `SimpleModels`, which
are kept with the run (`simple_models.npz`). Letters: k discriminants, f features, c classes.
"""

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from sasnet_jax.cli import UserError
from sasnet_jax.corpus.contexts import Contexts
from sasnet_jax.corpus.corpus import Corpus
from sasnet_jax.corpus.counts import bias_features, context_counts
from sasnet_jax.features import averages, effects, out_of_fold, regression, votes
from sasnet_jax.features.effects import Effects
from sasnet_jax.features.out_of_fold import Part
from sasnet_jax.features.regression import Regression, Weights

_RATINGS = {"counts": 1.0, "effects": 1.0, "votes": 1.0}
TEXT: tuple[Weights, ...] = (
    {"averages": 1.0},
    {"averages": 1.0, "products": 0.3},
    {"averages": 1.0, "products": 1.0},
)
TEXT_AND_STARS: tuple[Weights, ...] = (
    _RATINGS,
    *(_RATINGS | {"averages": a, "products": p} for a in (0.3, 1.0) for p in (0.0, 0.3, 1.0)),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Reads the features of targets, by name."""

    corpus: Corpus
    label: Int[np.ndarray, "reviews"]
    shares: Float[np.ndarray, "c"]  # of the classes in training
    # Every review's text along the discriminants of each store: for users, for businesses, then
    # those of the next store.
    heads: Sequence[Float32[np.ndarray, "reviews k"]] = ()
    fitted: Effects | None = None  # on the training reviews of every part; None fits them anew

    def effects(self, part: Part) -> dict[str, Float32[np.ndarray, "n f"]]:
        """How kind the user is, and how well liked the business."""
        fitted = self.fitted or effects.fit(self.corpus, self.label, part.train)
        return {"effects": effects.features(fitted, self.corpus, part.contexts, part.targets)}

    def ratings(self, part: Part) -> dict[str, Float32[np.ndarray, "n f"]]:
        """How both sides' reviews were rated."""
        counts = context_counts(part.contexts, self.label, self.shares.size)[part.targets]
        texts = [head[:, : votes.RANK] for head in self.heads]
        return {
            "counts": np.asarray(bias_features(counts, self.shares), np.float32),
            **self.effects(part),
            "votes": votes.features(part.contexts, part.targets, texts, self.label, self.shares),
        }

    def texts(self, part: Part) -> dict[str, Float32[np.ndarray, "n f"]]:
        """What both sides' reviews say."""
        stores = zip(self.heads[::2], self.heads[1::2], strict=True)
        average = [averages.averages(part.contexts, part.targets, *store) for store in stores]
        product = [averages.products(store) for store in average]
        return {"averages": np.hstack(average), "products": np.hstack(product)}

    def texts_and_ratings(self, part: Part) -> dict[str, Float32[np.ndarray, "n f"]]:
        """All of it."""
        return self.ratings(part) | self.texts(part)


class SimpleModels(NamedTuple):
    """What was fitted, and what it says of every review as a target; a pytree of arrays."""

    effects: Effects | None = None
    crossed: Float32[np.ndarray, "reviews f"] | None = None  # features of the effects
    regression: Regression | None = None
    logits: Float32[np.ndarray, "reviews c"] | None = None  # of the regression

    def to_npz(self) -> bytes:
        """The bytes of a file with all arrays, by the names of their fields."""
        arrays: dict[str, Any] = {}
        for name, value in self._asdict().items():
            if isinstance(value, Effects | Regression):
                arrays |= {f"{name}_{field}": array for field, array in value._asdict().items()}
            elif value is not None:
                arrays[name] = value
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, path: Path, remedy: str) -> "SimpleModels":
        """Reads what `to_npz` returned.

        Raises:
          UserError: it is damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(
                    effects=_read(Effects, "effects", arrays),
                    crossed=arrays.get("crossed"),
                    regression=_read(Regression, "regression", arrays),
                    logits=arrays.get("logits"),
                )
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def fit(
    reader: Reader, contexts: Contexts, *, crossed: bool, offset: bool, with_stars: bool, seed: int
) -> SimpleModels:
    """Fits what a network builds on, and applies it to every review.

    Args:
      reader: of the features.
      contexts: what may be seen of every review.
      crossed: whether the network reads the crossed effects.
      offset: whether it starts from a regression.
      with_stars: whether the regression may read ratings.
      seed: of the folds.
    """
    corpus, label = reader.corpus, reader.label
    train = corpus.rows("train")
    held_out = np.concatenate([corpus.rows(split) for split in ("validation", "test")])
    if offset and np.bincount(label[train]).min() < 2:
        raise UserError(
            "--offset needs two training reviews of every class, as it is fitted out of fold"
        )
    fold = out_of_fold.folds_of(label, train, seed)
    read = reader.effects
    if offset:
        read = reader.texts_and_ratings if with_stars else reader.texts
    blocks = out_of_fold.compute(contexts, train, held_out, fold, read)
    models = SimpleModels()
    if with_stars:
        models = models._replace(effects=effects.fit(corpus, label, train))
    if crossed:
        models = models._replace(crossed=blocks["effects"])
    if offset:
        chosen, choice = regression.choose(
            blocks,
            label,
            train,
            corpus.rows("validation"),
            TEXT_AND_STARS if with_stars else TEXT,
            "the regression to start from",
        )
        every = np.arange(label.size, dtype=np.int32)
        logits = chosen.logits(regression.joined(blocks, every))
        for number in range(out_of_fold.FOLDS):
            inside = fold[train] == number
            refitted = regression.fit(blocks, label, train[~inside], choice)
            logits[train[inside]] = refitted.logits(regression.joined(blocks, train[inside]))
        print(f"the regression to start from: {choice.log_loss:.4f} nats on validation")
        models = models._replace(regression=chosen, logits=logits.astype(np.float32))
    return models


def predict_again(
    models: SimpleModels, reader: Reader, part: Part, *, with_stars: bool
) -> SimpleModels:
    """The models with what they say of some held-out targets in the contexts of `part`."""
    reader = dataclasses.replace(reader, fitted=models.effects)
    read = reader.texts_and_ratings if with_stars else reader.texts
    blocks = read(part) if models.regression is not None else reader.effects(part)
    if models.crossed is not None:
        crossed = models.crossed.copy()
        crossed[part.targets] = blocks["effects"]
        models = models._replace(crossed=crossed)
    if models.regression is not None and models.logits is not None:
        logits = models.logits.copy()
        logits[part.targets] = models.regression.logits(np.hstack(list(blocks.values())))
        models = models._replace(logits=logits)
    return models


def _read(kind: Any, name: str, arrays: Any) -> Any:
    fields = {field: f"{name}_{field}" for field in kind._fields}
    if not any(key in arrays for key in fields.values()):
        return None
    return kind(**{field: arrays[key] for field, key in fields.items()})
