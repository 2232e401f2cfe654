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
from sasnet_jax.corpus.corpus import CLASS_NAMES
from sasnet_jax.corpus.counts import bias_features
from sasnet_jax.features import effects, of_sets
from sasnet_jax.features.effects import Effects
from sasnet_jax.model import network, sampling, sets
from sasnet_jax.model.config import TrainConfig
from sasnet_jax.model.sasnet import Encoded, Known, ReviewSet
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
    effect: Float32[np.ndarray, "entities two"]  # mean and variance, for the crossed bias
    facts: list[list[of_sets.Side]]  # of each run, what its regression reads; empty without one


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
        self._ratings = runs[0].record.ratings
        self._transforms = [run.transform() for run in runs]
        self.dim = sum(self._transforms[0].dims)
        graphdef, like = network.definition(self._config, self._transforms[0].width)
        params = [run.best_params(like) for run in runs]
        self._params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        self._set_size = self._config.eval_set_size or self._config.set_size
        self._reads_stars = self._config.review_features == "text+stars"
        self._models = [run.simple_models() for run in runs]
        self._effects = self._models[0].effects  # of all training reviews, whatever the seed
        self._has_warned = False  # that it ignores stars
        self._streams = [sampling.stream(run.config.seed, "recommend") for run in runs]
        reads_shares = self._config.sees_stars or self._config.offset
        self._shares: Any = jnp.asarray(runs[0].class_shares()) if reads_shares else None
        factors = jnp.array([run.factor for run in runs])
        known = self._config, self._shares, self._effects
        self._encode = jax.jit(jax.vmap(lambda p, side: nnx.merge(graphdef, p).encode(side)))
        self._decide = jax.jit(_decider(graphdef, *known, factors))

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
        others = self._side(businesses, 1)
        asked = [
            of_sets.OfSets(models, facts, np.asarray(self._shares))
            for models, facts in zip(self._models, others.facts, strict=False)
        ]
        with ProgressBar(
            total=scores[..., 0].size, desc="scoring", unit="pair", delay=5, leave=False
        ) as bar:
            for first in range(0, len(users), _SETS):
                some = self._side(users[first : first + _SETS], 0)
                part = scores[first : first + _SETS].reshape(-1, len(self.classes))
                offset = self._offset(some, asked)
                for pairs, probability in self._pairs(some, others, offset):
                    part[pairs] = probability
                    bar.update(len(pairs))
        return scores

    def _offset(
        self, users: _Side, asked: Sequence[of_sets.OfSets]
    ) -> Float32[np.ndarray, "r pairs c"] | None:
        """The logits that the network of each run is added to, user by user."""
        if not asked:
            return None
        of_runs = [
            np.concatenate([regression.logits(user) for user in facts])
            for regression, facts in zip(asked, users.facts, strict=True)
        ]
        return np.stack(of_runs)

    def _pairs(
        self, users: _Side, businesses: _Side, offset: Float32[np.ndarray, "r pairs c"] | None
    ) -> Iterator[tuple[range, np.ndarray]]:
        """Pairs, numbered user by user, and their probabilities [p, c]."""
        total = len(users.rows) * len(businesses.rows)
        for first in range(0, total, _PAIRS):
            pairs = range(first, min(first + _PAIRS, total))
            numbers = np.minimum(np.arange(first, first + _PAIRS), total - 1)
            user, business = np.divmod(numbers, len(businesses.rows))
            counts = np.stack([users.counts[user], businesses.counts[business]], axis=1)
            effect = np.stack([users.effect[user], businesses.effect[business]], axis=1)
            added = None if offset is None else offset[:, numbers]
            rows = np.stack(np.broadcast_arrays(users.rows[user].T, businesses.rows[business].T))
            probability = self._decide(
                self._params, users.encoded, businesses.encoded, rows, counts, effect, added
            )
            yield pairs, np.asarray(probability)[: len(pairs)]

    def _side(self, entities: Iterable[Reviews], side: int) -> _Side:
        """Encodes each entity once, or once per draw of its reviews; side 0 is users."""
        draws: list[int] = []  # of each entity
        counts, effect, parts = [], [], []
        facts: list[list[of_sets.Side]] = [[] for _ in self._streams if self._config.offset]
        unread: list[Members] = []  # entities whose facts are still to be computed
        waiting: list[_Drawn] = []
        for entity in entities:
            reviews = self._checked(entity)
            draws.append(self._config.eval_sets if len(reviews) > self._set_size else 1)
            members = sets.members_of(reviews, self._reads_stars or self._config.votes)
            counts.append(self._count(members))
            effect.append(self._effect(members, side))
            if self._config.offset:
                unread.append(members)
            if len(unread) >= _SETS:
                self._read(unread, effect, facts)
            waiting += [_Drawn(members, number) for number in range(draws[-1])]
            while len(waiting) >= _SETS:
                parts.append(self._encode(self._params, self._sets(waiting[:_SETS])))
                del waiting[:_SETS]
        self._read(unread, effect, facts)
        if waiting:
            # Padded to one of a few sizes, so that few programs are compiled.
            padding = (1 << (len(waiting) - 1).bit_length()) - len(waiting)
            parts.append(self._encode(self._params, self._sets(waiting + waiting[-1:] * padding)))
        encoded = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)
        first = np.cumsum(draws) - draws
        rows = first[:, None] + np.arange(max(draws)) % np.array(draws)[:, None]
        return _Side(encoded, rows, np.stack(counts), np.stack(effect), facts)

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
            rated = np.concatenate([one.stars[rows] for one, rows in chosen])
            steps = label = None
            if self._reads_stars:
                steps = np.zeros(mask.shape, np.float32)
                steps[mask] = self._ratings.steps(rated)
            if self._config.votes:
                label = np.full(mask.shape, -1, np.int32)
                label[mask] = self._labels(rated)
            every.append((embeddings, steps, mask, label))
        return ReviewSet(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *every))

    def _checked(self, reviews: Reviews) -> Reviews:
        """Refuses reviews that the runs cannot read; gives empty ones the right width."""
        if not isinstance(reviews, Reviews):
            kind = type(reviews).__name__
            raise UserError(f"users and businesses must be lists of sasnet_jax.Reviews, not {kind}")
        if reviews.stars is not None:
            outside = reviews.stars[~self._ratings.holds(reviews.stars) & ~np.isnan(reviews.stars)]
            if outside.size:
                raise UserError(
                    f"stars of reviews must be {self._ratings.range}, not {outside[0]:g}: the run "
                    f"was trained on ratings of {self._ratings}"
                )
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

    def _labels(self, stars: Float32[np.ndarray, "n"]) -> Int32[np.ndarray, "n"]:
        """The class of each rating; -1 where there is none."""
        known = ~np.isnan(stars)
        label = np.full(stars.shape, -1, np.int32)
        label[known] = self._ratings.labels(stars[known], len(self.classes))
        return label

    def _count(self, members: Members) -> Float32[np.ndarray, "c"]:
        """Counts the reviews whose stars are known, by class."""
        label = self._labels(members.stars)
        return np.bincount(label[label >= 0], minlength=len(self.classes)).astype(np.float32)

    def _effect(self, members: Members, side: int) -> Float32[np.ndarray, "two"]:
        """The mean and variance of an entity's effect; 0 for runs that have none."""
        if self._effects is None:
            return np.zeros(2, np.float32)
        known = ~np.isnan(members.stars)
        posterior = self._effects.of_set(members.stars[known], members.other_effect[known], side)
        return posterior.astype(np.float32)

    def _read(
        self,
        unread: list[Members],
        effect: Sequence[Float32[np.ndarray, "two"]],
        facts: list[list[of_sets.Side]],
    ) -> None:
        """Computes what the regression of each run reads of the last entities."""
        if not unread:
            return
        effects = effect[-len(unread) :]
        ends = np.cumsum([len(members.vectors) for members in unread])
        vectors, kept = np.concatenate([m.vectors for m in unread]), self._config.discriminants
        for own, transform in zip(facts, self._transforms, strict=True):
            texts = transform.apply(vectors)
            heads = texts.reshape(len(texts), texts.shape[1] // kept, kept)
            own += [
                of_sets.Side(texts=part, label=self._labels(members.stars), effect=mine)
                for part, members, mine in zip(
                    np.split(heads, ends[:-1]), unread, effects, strict=True
                )
            ]
        unread.clear()


def _decider(
    graphdef: nnx.GraphDef,
    config: TrainConfig,
    shares: Any,
    model: Effects | None,
    factors: Float32[Array, "r"],
) -> Any:
    def decide(
        params: Any,
        users: Encoded,
        businesses: Encoded,
        rows: Int32[Array, "2 d p"],
        counts: Float32[Array, "p 2 c"],
        effect: Float32[Array, "p 2 2"],
        offset: Float32[Array, "r p c"] | None,
    ) -> Float32[Array, "p c"]:
        bias = []
        if config.bias_term:
            bias.append(bias_features(counts, shares))
        if config.crossed_bias and model is not None:
            bias.append(effects.of_pair(effect, model.thresholds, model.variances[2]))
        known = Known(jnp.concatenate(bias, axis=1) if bias else None, shares)

        def by_one_run(params, users, businesses, factor, offset):
            network = nnx.merge(graphdef, params)

            def of_one_draw(rows):
                user, business = (
                    jax.tree.map(lambda leaf, of=of: leaf[of], side)
                    for side, of in zip((users, businesses), rows, strict=True)
                )
                logits = factor * network.decide(user, business, known)
                return jax.nn.softmax(logits if offset is None else offset + logits)

            return jax.lax.map(of_one_draw, jnp.swapaxes(rows, 0, 1))

        return jax.vmap(by_one_run)(params, users, businesses, factors, offset).mean(axis=(0, 1))

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
