"""A trained network, or an ensemble of them, asked about any two sets of reviews.

In: the reviews of some users and of some businesses (`sets.Reviews`). Out: how each user will like
each business. No corpus is needed, and neither side needs to have been in one. Each side is encoded
once, and every pair is decided from that. Letters: m sets, s reviews in a set, k what is read of a
review, d draws, p pairs, r runs, c classes.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32

from sasnet_jax.cli import ProgressBar, UserError
from sasnet_jax.corpus.corpus import CLASS_NAMES, labels_of
from sasnet_jax.corpus.counts import bias_features
from sasnet_jax.model import network, sampling, sets
from sasnet_jax.model.sasnet import Encoded, ReviewSet
from sasnet_jax.model.sets import Members, Reviews
from sasnet_jax.scores.predictions import LEAKY

if TYPE_CHECKING:
    from sasnet_jax.model.run import Run

_SETS = 256  # encoded at once
_PAIRS = 512  # decided at once


class WrongEncoder(UserError):
    """The vectors do not come from the encoder of the run's stores."""


class NeedsStars(UserError):
    """The network reads stars, and a review has none."""


class _Side(NamedTuple):
    """Users, or businesses, encoded."""

    encoded: Encoded  # [r, m, ...]
    rows: Int32[np.ndarray, "entities d"]  # which of the m each draw of an entity is
    counts: Float32[np.ndarray, "entities c"]  # reviews by class, for the bias term


class _Drawn(NamedTuple):
    """One draw of an entity's reviews."""

    members: Members
    number: int


class Predictor:
    """Scores users against businesses by the best parameters of one run, or of several.

    Attributes:
      classes: names of the classes, in the order of the last axis of a score.
      dim: e, the width of the vectors that it reads.
    """

    def __init__(self, runs: "Sequence[Run]"):
        """Loads the runs; the score of several runs is the mean of their probabilities.

        Raises:
          UserError: the list is empty, a run is damaged, or runs differ in more than their seed.
        """
        if not isinstance(runs, Sequence) or not runs or isinstance(runs[0], str | Path):
            raise UserError("Predictor takes a list of runs, as sasnet_jax.load_run opens them")
        _refuse_unlike(runs)
        self._config = runs[0].config
        if self._config.target_review == "include":
            warnings.warn(f"{runs[0]} was trained with the {LEAKY}", stacklevel=2)
        self.classes = CLASS_NAMES[self._config.classes]
        self._transforms = [run.transform() for run in runs]
        self.dim = sum(self._transforms[0].dims)
        graphdef, like = network.definition(self._config, self._transforms[0].width)
        params = [run.best_params(like) for run in runs]
        self._params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        self._set_size = self._config.eval_set_size or self._config.set_size
        self._reads_stars = self._config.review_features == "text+stars"
        self._has_warned = False  # that it ignores stars
        self._streams = [sampling.stream(run.config.seed, "recommend") for run in runs]
        shares = runs[0].class_shares() if self._config.bias_term else None
        self._encode = jax.jit(jax.vmap(_encoder(graphdef)))
        self._decide = jax.jit(_decider(graphdef, shares))

    def score(
        self, users: Sequence[Reviews], businesses: Sequence[Reviews]
    ) -> Float32[np.ndarray, "users businesses c"]:
        """The probability of each class for each user with each business.

        A side with at most `eval_set_size` reviews is read whole; otherwise the probabilities are
        averaged over `eval_sets` draws of its reviews.

        Raises:
          WrongEncoder: the vectors and the run's stores differ in width.
          NeedsStars: the run reads the stars of every review, and some reviews have none.
        """
        for name, given in (("users", users), ("businesses", businesses)):
            if isinstance(given, Reviews):
                raise UserError(f"{name} must be a list of sasnet_jax.Reviews, one for each")
        scores = np.empty((len(users), len(businesses), len(self.classes)), np.float32)
        if not scores.size:
            return scores
        others = self._side(businesses)
        with ProgressBar(
            total=scores[..., 0].size, desc="scoring", unit="pair", delay=5, leave=False
        ) as bar:
            for first in range(0, len(users), _SETS):
                some = self._side(users[first : first + _SETS])
                part = scores[first : first + _SETS].reshape(-1, len(self.classes))
                for pairs, probability in self._pairs(some, others):
                    part[pairs] = probability
                    bar.update(len(pairs))
        return scores

    def _pairs(self, users: _Side, businesses: _Side) -> Iterator[tuple[range, np.ndarray]]:
        """Pairs, numbered user by user, and their probabilities [p, c]."""
        total = len(users.rows) * len(businesses.rows)
        for first in range(0, total, _PAIRS):
            pairs = range(first, min(first + _PAIRS, total))
            numbers = np.minimum(np.arange(first, first + _PAIRS), total - 1)
            user, business = np.divmod(numbers, len(businesses.rows))
            counts = np.stack([users.counts[user], businesses.counts[business]], axis=1)
            rows = np.stack(np.broadcast_arrays(users.rows[user].T, businesses.rows[business].T))
            probability = self._decide(
                self._params, users.encoded, businesses.encoded, rows, counts
            )
            yield pairs, np.asarray(probability)[: len(pairs)]

    def _side(self, entities: Iterable[Reviews]) -> _Side:
        """Encodes each entity once, or once per draw of its reviews."""
        draws: list[int] = []  # of each entity
        counts, parts = [], []
        waiting: list[_Drawn] = []
        for entity in entities:
            reviews = self._checked(entity)
            draws.append(self._config.eval_sets if len(reviews) > self._set_size else 1)
            counts.append(self._count(reviews))
            members = sets.members_of(reviews, self._reads_stars)
            waiting += [_Drawn(members, number) for number in range(draws[-1])]
            while len(waiting) >= _SETS:
                parts.append(self._encode(self._params, self._sets(waiting[:_SETS])))
                del waiting[:_SETS]
        if waiting:
            # Padded to one of a few sizes, so that few programs are compiled.
            padding = (1 << (len(waiting) - 1).bit_length()) - len(waiting)
            parts.append(self._encode(self._params, self._sets(waiting + waiting[-1:] * padding)))
        encoded = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)
        first = np.cumsum(draws) - draws
        rows = first[:, None] + np.arange(max(draws)) % np.array(draws)[:, None]
        return _Side(encoded, rows, np.stack(counts))

    def _sets(self, drawn: Sequence[_Drawn]) -> ReviewSet:
        """The sets [r, m, s] that each run draws."""
        every = []
        members = [one.members for one in drawn]
        count = np.array([len(one.vectors) for one in members], np.int32)
        number = np.array([one.number for one in drawn], np.int32)
        digest = np.stack([one.digest for one in members])
        for stream, transform in zip(self._streams, self._transforms, strict=True):
            drawn_sets = sets.draw(stream, digest, count, number, self._set_size)
            positions, mask = jax.device_get(drawn_sets)
            chosen = [
                (one, row[real]) for one, row, real in zip(members, positions, mask, strict=True)
            ]
            read = transform.apply(np.concatenate([one.vectors[rows] for one, rows in chosen]))
            embeddings = np.zeros((*mask.shape, read.shape[1]), np.float32)
            embeddings[mask] = read
            stars = None
            if self._reads_stars:
                stars = np.zeros(mask.shape, np.float32)
                stars[mask] = np.concatenate([one.stars[rows] for one, rows in chosen])
            every.append((embeddings, stars, mask))
        return ReviewSet(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *every))

    def _checked(self, reviews: Reviews) -> Reviews:
        """Refuses reviews that the runs cannot read; gives empty ones the right width."""
        if not isinstance(reviews, Reviews):
            kind = type(reviews).__name__
            raise UserError(f"users and businesses must be lists of sasnet_jax.Reviews, not {kind}")
        if reviews.stars is not None and not self._config.sees_stars and not self._has_warned:
            self._has_warned = True
            warnings.warn("the run reads texts alone: it ignores the stars", stacklevel=4)
        if not len(reviews):
            return Reviews(np.zeros((0, self.dim)))
        if reviews.vectors.shape[1] != self.dim:
            raise WrongEncoder(
                f"vectors of {reviews.vectors.shape[1]} dimensions, but the run reads {self.dim}: "
                "encode the texts with the encoder of its stores, side by side if it has several"
            )
        if self._reads_stars and (reviews.stars is None or np.isnan(reviews.stars).any()):
            raise NeedsStars(
                "the run reads the stars of every review (--review_features=text+stars): give them "
                "as Reviews(vectors, stars)"
            )
        return reviews

    def _count(self, reviews: Reviews) -> Float32[np.ndarray, "c"]:
        """Counts the reviews whose stars are known, by class."""
        stars = np.zeros(0, np.float32) if reviews.stars is None else reviews.stars
        label = labels_of(stars[~np.isnan(stars)], len(self.classes))
        return np.bincount(label, minlength=len(self.classes)).astype(np.float32)


def _encoder(graphdef: nnx.GraphDef) -> Any:
    def encode(params: Any, side: ReviewSet) -> Encoded:
        return nnx.merge(graphdef, params).encode(side)

    return encode


def _decider(graphdef: nnx.GraphDef, shares: Float32[np.ndarray, "c"] | None) -> Any:
    def decide(
        params: Any,
        users: Encoded,
        businesses: Encoded,
        rows: Int32[Array, "2 d p"],
        counts: Float32[Array, "p 2 c"],
    ) -> Float32[Array, "p c"]:
        bias = None if shares is None else bias_features(counts, shares)

        def by_one_run(params, *sides):
            network = nnx.merge(graphdef, params)

            def of_one_draw(rows):
                user, business = (
                    jax.tree.map(lambda leaf, of=of: leaf[of], side)
                    for side, of in zip(sides, rows, strict=True)
                )
                return jax.nn.softmax(network.decide(user, business, bias))

            return jax.lax.map(of_one_draw, jnp.swapaxes(rows, 0, 1))

        return jax.vmap(by_one_run)(params, users, businesses).mean(axis=(0, 1))

    return decide


def _refuse_unlike(runs: "Sequence[Run]") -> None:
    """Refuses runs that differ in more than their seed, and a run that is given twice."""
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UserError("an ensemble names a run twice: give each run once")
    first, *others = [run.decisive() for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        if differing := [name for name in first if other[name] != first[name]]:
            raise UserError(
                f"runs {runs[0]} and {run} differ in {', '.join(differing)}: the runs "
                "of an ensemble may differ only in --seed"
            )
