"""The Siamese AttentionSetNet (paper section 2.4; docs/design.md 4.3).

In: for each target the sampled reviews of its user and of its business. Out: logits over bad, good
and excellent, or over five stars. Each side is encoded by itself (`SASNet.encode`); only
`SASNet.decide` looks at both, so that what is encoded once can meet any number of others. Letters:
b batch, s set, e embedding width, d model width, f bias features, c classes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from sasnet_jax.corpus.ratings import STEPS
from sasnet_jax.model.config import CrossAttention, ReviewFeatures
from sasnet_jax.model.layers import AttentionBlock, dropout, masked_mean
from sasnet_jax.model.pairwise import Gate, Match, Votes


class ReviewSet(NamedTuple):
    """Sets of reviews. Where `mask` is False the content does not matter, but must be finite."""

    embeddings: Float[Array, "b s e"]
    stars: Float[Array, "b s"] | None  # in steps of the rating scale (`RatingScale.steps`)
    mask: Bool[Array, "b s"]
    label: Int[Array, "b s"] | None = None  # for votes; -1 where a review does not vote


class Known(NamedTuple):
    """What is known of each pair beside the two sets of texts."""

    bias: Float[Array, "b f"] | None = None  # of ratings, for `bias_term` and `crossed_bias`
    shares: Float[Array, "c"] | None = None  # of the classes in training, for `votes`


_NOTHING = Known()


class Encoded(NamedTuple):
    """One side by itself: all that the network knows of it when it meets the other side."""

    tokens: Float[Array, "b s d"]  # with `cross_attention="pooled"` s = 1, their mean
    mask: Bool[Array, "b s"]
    reviews: Float[Array, "b 1"]  # how many
    total: Any  # Float[Array, "b d"] with `match`, else None
    voters: Any  # Voters with `votes`, else None


class SASNet(nnx.Module):
    """Predicts how a user will like a business from two sets of reviews.

    `cross_attention="pooled"` is the paper's: each side is pooled first, so the user's one vector
    attends to the business's one vector. A softmax over one key is the constant 1, so its query and
    key weights never matter and get no gradient. `"set"` attends before pooling: each review of the
    user attends to every review of the business, which is not degenerate.

    `review_features="text+stars"` adds an embedding of a review's stars (the nearest of the STEPS
    of the rating scale) to its token. The target is in neither set, so its stars are never seen.

    `bias_term=True` is not the paper's: how the other reviews of both sides were rated (features
    of `sasnet_jax.corpus.counts`) enters the classifier and, linearly, the logits. On real
    reviews a logistic regression on these few numbers beats every text model tried, so a network
    without them starts behind it (docs/findings.md). `crossed_bias=True` does the same with
    `sasnet_jax.features.effects`, where users and businesses are judged knowing each other.

    `match=True` is not the paper's either: the averages of both sides' reviews and their bilinear
    product (`Match`) enter the classifier and, linearly, the logits. Whether a user who
    writes about service meets a business that is praised for it is a product of two averages, which
    attention alone did not learn from 60,000 reviews (docs/findings.md).

    `votes=True` likewise adds how the reviews most like the other side were rated (`Votes`), by the
    `discriminants` that the embedding consists of.

    `offset=True`: the logits are to be added to those of a frozen regression. They are multiplied
    by a gate that depends on how many reviews each side has, and start at zero.

    `rate_reviews=True` adds a head that reads each review's own rating from its projected embedding
    (`ratings`), for `--review_loss`. The head teaches the projection what to look for, and plays no
    part in a prediction (docs/findings.md).

    `encoder=False` is the DeepSets ablation (Zaheer et al. 2017): there is no attention, and
    each side is the mean of its projected reviews.

    Stores of several encoders stand side by side as one wider embedding: projecting it equals
    projecting each store and adding the results.

    A side without reviews is one learned vector, as its only valid token.
    """

    def __init__(
        self,
        embedding_dim: int,
        *,
        width: int,
        depth: int,
        heads: int,
        feed_forward: int,
        classes: int,
        dropout: float,
        encoder: bool,
        cross_attention: CrossAttention,
        review_features: ReviewFeatures,
        bias_term: bool = False,
        crossed_bias: bool = False,
        match: bool = False,
        votes: bool = False,
        discriminants: int = 0,
        offset: bool = False,
        rate_reviews: bool = False,
        rngs: nnx.Rngs,
    ):
        self.cross_attention = cross_attention
        self.dropout = dropout
        self.project = nnx.Linear(embedding_dim, width, rngs=rngs)
        with_stars = review_features == "text+stars"
        self.stars = nnx.Embed(STEPS, width, rngs=rngs) if with_stars else None
        self.no_reviews = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))

        def block() -> AttentionBlock:
            return AttentionBlock(width, heads, feed_forward, dropout, rngs=rngs)

        self.encoder = nnx.List([block() for _ in range(depth if encoder else 0)])
        self.cross = block() if encoder else None
        self.match = Match(embedding_dim, width, rngs=rngs) if match else None
        self.votes = Votes(embedding_dim, discriminants, classes) if votes else None
        self.gate = Gate() if offset else None
        bias_features = 2 * (classes + 1) * bias_term + (classes + 4) * crossed_bias
        match_features = 3 * width if match else 0
        vote_features = self.votes.features if self.votes is not None else 0
        features = 2 * width + match_features + vote_features + bias_features
        self.hidden = nnx.Linear(features, width, rngs=rngs)
        self.rate = nnx.Linear(width, classes, rngs=rngs) if rate_reviews else None

        def last(features: int, start: nnx.Initializer) -> Any:
            start = nnx.initializers.zeros if offset else start
            return nnx.Linear(features, classes, kernel_init=start, rngs=rngs) if features else None

        self.bias = last(bias_features, _mean_log)
        # Small, so that training starts from nearly equal probabilities.
        small = nnx.initializers.normal(0.02)
        self.classify = last(width, small)
        self.classify_match = last(match_features, small)
        self.classify_votes = last(vote_features, _mean_vote)

    def __call__(
        self,
        user: ReviewSet,
        business: ReviewSet,
        known: Known = _NOTHING,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b c"]:
        """Logits; `key` drives dropout, and None turns it off.

        The result is `decide` of both sides' `encode`, computed in one pass over both.
        """
        keys = self._dropout_keys(key)
        # Joined after the projection, where they are narrow.
        tokens = jnp.concatenate([self._tokens(user), self._tokens(business)])
        tokens, mask = self._attend(tokens, jnp.concatenate([user.mask, business.mask]), keys)
        halves = zip((user, business), jnp.split(tokens, 2), jnp.split(mask, 2), strict=True)
        users, businesses = (self._encoded(*half) for half in halves)
        return self._decide(users, businesses, known, keys)

    def encode(self, reviews: ReviewSet) -> Encoded:
        """One side, users or businesses alike, without dropout; sets of any size s."""
        attended = self._attend(self._tokens(reviews), reviews.mask, self._dropout_keys(None))
        return self._encoded(reviews, *attended)

    def decide(
        self, user: Encoded, business: Encoded, known: Known = _NOTHING
    ) -> Float[Array, "b c"]:
        """Logits of each user and the business in the same place, without dropout."""
        return self._decide(user, business, known, self._dropout_keys(None))

    def ratings(self, reviews: ReviewSet) -> Float[Array, "b s c"]:
        """Logits of each review's own stars, from that review alone; for `rate_reviews`."""
        assert self.rate is not None
        return self.rate(self._tokens(reviews._replace(stars=None)))

    def _dropout_keys(self, key: Key[Array, ""] | None) -> list:
        parts = len(self.encoder) + 2  # that drop out: the encoder's blocks, cross, hidden
        return [None] * parts if key is None else list(jax.random.split(key, parts))

    def _tokens(self, reviews: ReviewSet) -> Float[Array, "b s d"]:
        tokens = jax.nn.gelu(self.project(reviews.embeddings))
        return (
            tokens
            if self.stars is None or reviews.stars is None
            else tokens + self.stars(jnp.round(reviews.stars).astype(jnp.int32))
        )

    def _encoded(
        self, side: ReviewSet, tokens: Float[Array, "b s d"], mask: Bool[Array, "b s"]
    ) -> Encoded:
        total = voters = None
        if self.match is not None:
            total = self.match.total(side.embeddings, side.mask)
        if self.votes is not None:
            assert side.label is not None, "votes need the classes of the reviews"
            voters = self.votes.voters(side.embeddings, side.mask, side.label)
        reviews = side.mask.sum(axis=1, keepdims=True).astype(jnp.float32)
        return Encoded(tokens, mask, reviews, total, voters)

    def _attend(
        self, tokens: Float[Array, "b s d"], mask: Bool[Array, "b s"], keys: list
    ) -> tuple[Float[Array, "b s_or_1 d"], Bool[Array, "b s_or_1"]]:
        """Contextualized reviews, or their mean where that comes first, and which are valid."""
        first = jnp.arange(tokens.shape[1])[None] == 0
        alone = first & ~mask.any(axis=1, keepdims=True)  # stands for "no reviews"
        tokens = jnp.where(alone[..., None], self.no_reviews[None, None], tokens)
        mask = mask | alone
        for block, key in zip(self.encoder, keys[:-2], strict=True):
            tokens = block(tokens, tokens, mask, key)
        if self.cross_attention == "pooled":
            return masked_mean(tokens, mask)[:, None], mask.any(axis=1, keepdims=True)
        return tokens, mask

    def _decide(
        self, user: Encoded, business: Encoded, known: Known, keys: list
    ) -> Float[Array, "b c"]:
        users = user.tokens
        if self.cross is not None:
            users = self.cross(users, business.tokens, business.mask, keys[-2])
        pair = [masked_mean(users, user.mask), masked_mean(business.tokens, business.mask)]
        logits = jnp.float32(0)
        for features, linear in self._features(user, business, known):
            pair.append(features)
            logits += linear(features)  # beside the classifier
        hidden = jax.nn.gelu(self.hidden(jnp.concatenate(pair, axis=-1)))
        logits += self.classify(dropout(hidden, self.dropout, keys[-1]))
        if self.gate is not None:
            logits *= self.gate(user.reviews, business.reviews)
        return logits

    def _features(
        self, user: Encoded, business: Encoded, known: Known
    ) -> Iterator[tuple[Float[Array, "b f"], Any]]:
        """What is known of each pair without attention to its tokens, and its linear classifier."""
        if self.match is not None:
            sums = (user.total, user.reviews), (business.total, business.reviews)
            yield self.match(*sums), self.classify_match
        if self.votes is not None:
            assert known.shares is not None, "votes are smoothed by the class shares"
            yield self.votes(user.voters, business.voters, known.shares), self.classify_votes
        if self.bias is not None:
            assert known.bias is not None, "a network with a bias term needs its features"
            yield known.bias, self.bias


def _mean_log(key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "f c"]:
    """Starts the linear bias as the mean of both sides' log class frequencies, which come first.

    The crossed bias alone starts as its log class probabilities, which come last.
    """
    features, classes = shape
    if features < 2 * (classes + 1):
        return jnp.eye(features, classes, classes - features, dtype=dtype)
    side = jnp.eye(classes + 1, classes, dtype=dtype)
    rest = jnp.zeros((features - 2 * (classes + 1), classes), dtype)
    return jnp.concatenate([side / 2, side / 2, rest])


def _mean_vote(
    key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike
) -> Float[Array, "f c"]:
    """Starts as the mean of the logs of all votes."""
    votes = shape[0] // shape[1]
    return jnp.tile(jnp.eye(shape[1], dtype=dtype), (votes, 1)) / votes
