"""The features of `simple_models`, of any two sets of reviews instead of a corpus's contexts.

In: the reviews of a user and of some businesses. Out: the logits of the regression that a network
starts from. Letters: n reviews, h heads, k discriminants, m businesses, c classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from sasnet_jax.corpus.counts import bias_features
from sasnet_jax.features import averages, effects, votes
from sasnet_jax.features.simple_models import SimpleModels


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A user, or a business, as the regression reads it."""

    texts: Float32[np.ndarray, "n h k"]  # along the discriminants of every head
    label: Int[np.ndarray, "n"]  # -1 where it is unknown
    effect: Float[np.ndarray, "two"]  # mean and variance; see `effects`

    @property
    def average(self) -> Float[np.ndarray, "h k"]:
        """The shrunken average of the texts."""
        return self.texts.sum(axis=0) / (len(self.texts) + averages.SHRINKAGE)

    @property
    def query(self) -> Float[np.ndarray, "h r"]:
        """The direction of the mean text, by which the other side's reviews are weighed."""
        return votes.normalized(self.texts[..., : votes.RANK].sum(axis=0))


class OfSets:
    """A fitted regression, asked about one user and many businesses at a time."""

    def __init__(
        self, models: SimpleModels, businesses: Sequence[Side], shares: Float[np.ndarray, "c"]
    ):
        """Reads the businesses once.

        Args:
          models: a regression, and the effects if it reads ratings.
          businesses: those to be asked about.
          shares: of the classes in training.
        """
        assert models.regression is not None
        self.regression, self.model, self.shares = models.regression, models.effects, shares
        self.averages = np.stack([side.average for side in businesses])[:, 1::2]  # [m, stores, k]
        if self.model is not None:
            self.counts = np.stack([self._counts(side) for side in businesses])
            self.effects = np.stack([side.effect for side in businesses])
            self.queries = np.stack([side.query for side in businesses])  # [m, h, r]
            self.keys = np.concatenate([_keys(side) for side in businesses])  # [reviews, h, r]
            self.label = np.concatenate([side.label for side in businesses])
            self.owner = np.repeat(np.arange(len(businesses)), [len(s.label) for s in businesses])

    def logits(self, user: Side) -> Float32[np.ndarray, "m c"]:
        """The logits of the user with each business."""
        mine = np.broadcast_to(user.average[None, ::2], self.averages.shape)
        both = np.concatenate([mine, self.averages], axis=2)  # [m, stores, two_k]
        stores = list(np.swapaxes(both, 0, 1))
        products = [averages.products(store) for store in stores]
        features = np.hstack([*self._ratings(user), *stores, *products])
        return self.regression.logits(features).astype(np.float32)

    def _ratings(self, user: Side) -> list[Float[np.ndarray, "m f"]]:
        if self.model is None:
            return []
        many = len(self.averages)
        counts = np.stack([np.tile(self._counts(user), (many, 1)), self.counts], axis=1)
        effect = np.stack([np.tile(user.effect, (many, 1)), self.effects], axis=1)
        crossed = effects.of_pair(effect, self.model.thresholds, self.model.variances[2])
        return [
            np.asarray(bias_features(counts, self.shares)),
            np.asarray(crossed),
            self._votes(user),
        ]

    def _votes(self, user: Side) -> Float[np.ndarray, "m f"]:
        classes, many = self.shares.size, len(self.averages)
        mine = np.einsum("nhr,mhr->mhn", _keys(user), self.queries)
        onehot = np.eye(classes + 1)[user.label][:, :classes]  # nothing for -1
        of_user = np.exp(votes.SHARPNESS * mine) @ onehot  # [m, h, c]
        theirs = np.exp(votes.SHARPNESS * np.einsum("nhr,hr->hn", self.keys, user.query))
        cell = self.owner * (classes + 1) + np.where(self.label < 0, classes, self.label)
        of_business = np.stack(
            [
                np.bincount(cell, weight, many * (classes + 1)).reshape(many, -1)[:, :classes]
                for weight in theirs
            ],
            axis=1,
        )
        voters = [np.full(many, (user.label >= 0).sum()), self.counts.sum(axis=1)]
        shares = [
            votes.smoothed(weighed, number[:, None, None], self.shares[None, None])
            for weighed, number in zip((of_user, of_business), voters, strict=True)
        ]
        return np.log(np.concatenate(shares, axis=1)).reshape(many, -1)

    def _counts(self, side: Side) -> Float32[np.ndarray, "c"]:
        known = side.label[side.label >= 0]
        return np.bincount(known, minlength=self.shares.size).astype(np.float32)


def _keys(side: Side) -> Float[np.ndarray, "n h r"]:
    return votes.normalized(side.texts[..., : votes.RANK])
