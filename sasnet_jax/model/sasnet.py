"""The Siamese AttentionSetNet (paper section 2.4; docs/design.md 4.3).

In: for each target the sampled reviews of its user and of its business. Out: logits over bad, good
and excellent, or over five stars. Each side is encoded by itself (`SASNet.encode`); only
`SASNet.decide` looks at both, so that what is encoded once can meet any number of others. Letters:
b batch, s set, e embedding width, d model width, f bias features, c classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from sasnet_jax.model.config import CrossAttention, ReviewFeatures
from sasnet_jax.model.layers import AttentionBlock, dropout, masked_mean

_HALF_STARS = 11  # 0, 0.5, ..., 5


class ReviewSet(NamedTuple):
    """Sets of reviews. Where `mask` is False the content does not matter, but must be finite."""

    embeddings: Float[Array, "b s e"]
    stars: Float[Array, "b s"] | None
    mask: Bool[Array, "b s"]


class Sums(NamedTuple):
    """What `Match` needs to know about one side."""

    total: Float[Array, "b d"]  # of the projected reviews
    reviews: Float[Array, "b 1"]  # how many


class Encoded(NamedTuple):
    """One side by itself: all that the network knows of it when it meets the other side."""

    tokens: Float[Array, "b s d"]  # with `cross_attention="pooled"` s = 1, their mean
    mask: Bool[Array, "b s"]
    sums: Sums | None  # with `match`


class SASNet(nnx.Module):
    """Predicts how a user will like a business from two sets of reviews.

    `cross_attention="pooled"` is the paper's: each side is pooled first, so the user's one vector
    attends to the business's one vector. A softmax over one key is the constant 1, so its query and
    key weights never matter and get no gradient. `"set"` attends before pooling: each review of the
    user attends to every review of the business, which is not degenerate.

    `review_features="text+stars"` adds an embedding of a review's stars (half-star grid) to its
    token. The target is in neither set, so its stars are never seen.

    `bias_term=True` is not the paper's: how the other reviews of both sides were rated (features
    of `sasnet_jax.corpus.counts`) enters the classifier and, linearly, the logits. On real
    reviews a logistic regression on these few numbers beats every text model tried, so a network
    without them starts behind it (docs/findings.md).

    `match=True` is not the paper's either: the averages of both sides' reviews and their bilinear
    product (`Match`) enter the classifier and, linearly, the logits. Whether a user who
    writes about service meets a business that is praised for it is a product of two averages, which
    attention alone did not learn from 60,000 reviews (docs/findings.md).

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
        bias_term: bool,
        match: bool = False,
        rate_reviews: bool = False,
        rngs: nnx.Rngs,
    ):
        self.cross_attention = cross_attention
        self.dropout = dropout
        self.project = nnx.Linear(embedding_dim, width, rngs=rngs)
        with_stars = review_features == "text+stars"
        self.stars = nnx.Embed(_HALF_STARS, width, rngs=rngs) if with_stars else None
        self.no_reviews = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))

        def block() -> AttentionBlock:
            return AttentionBlock(width, heads, feed_forward, dropout, rngs=rngs)

        self.encoder = nnx.List([block() for _ in range(depth if encoder else 0)])
        self.cross = block() if encoder else None
        bias_features = 2 * (classes + 1) if bias_term else 0
        self.match = Match(embedding_dim, width, rngs=rngs) if match else None
        match_features = 3 * width if match else 0
        self.hidden = nnx.Linear(2 * width + match_features + bias_features, width, rngs=rngs)
        self.rate = nnx.Linear(width, classes, rngs=rngs) if rate_reviews else None
        self.bias = (
            nnx.Linear(bias_features, classes, kernel_init=_mean_log, rngs=rngs)
            if bias_term
            else None
        )
        # Small, so that training starts from nearly equal probabilities.
        small = nnx.initializers.normal(0.02)
        self.classify = nnx.Linear(width, classes, kernel_init=small, rngs=rngs)
        self.classify_match = (
            nnx.Linear(match_features, classes, kernel_init=small, rngs=rngs) if match else None
        )

    def __call__(
        self,
        user: ReviewSet,
        business: ReviewSet,
        bias: Float[Array, "b f"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b c"]:
        """Logits. `bias` is for `bias_term`; `key` drives dropout, and None turns it off.

        The result is `decide` of both sides' `encode`, computed in one pass over both.
        """
        keys = self._dropout_keys(key)
        # Joined after the projection, where they are narrow.
        tokens = jnp.concatenate([self._tokens(user), self._tokens(business)])
        tokens, mask = self._attend(tokens, jnp.concatenate([user.mask, business.mask]), keys)
        parts = zip(jnp.split(tokens, 2), jnp.split(mask, 2), (user, business), strict=True)
        users, businesses = (Encoded(part, valid, self._sums(side)) for part, valid, side in parts)
        return self._decide(users, businesses, bias, keys)

    def encode(self, reviews: ReviewSet) -> Encoded:
        """One side, users or businesses alike, without dropout; sets of any size s."""
        tokens, mask = self._attend(self._tokens(reviews), reviews.mask, self._dropout_keys(None))
        return Encoded(tokens, mask, self._sums(reviews))

    def decide(
        self, user: Encoded, business: Encoded, bias: Float[Array, "b f"] | None = None
    ) -> Float[Array, "b c"]:
        """Logits of each user and the business in the same place, without dropout."""
        return self._decide(user, business, bias, self._dropout_keys(None))

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
            else tokens + self.stars(star_index(reviews.stars))
        )

    def _sums(self, reviews: ReviewSet) -> Sums | None:
        return None if self.match is None else self.match.sums(reviews)

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
        self, user: Encoded, business: Encoded, bias: Float[Array, "b f"] | None, keys: list
    ) -> Float[Array, "b c"]:
        users = user.tokens
        if self.cross is not None:
            users = self.cross(users, business.tokens, business.mask, keys[-2])
        pair = [masked_mean(users, user.mask), masked_mean(business.tokens, business.mask)]
        direct = jnp.float32(0)  # logits that do not go through the classifier
        if self.match is not None and self.classify_match is not None:
            assert user.sums is not None and business.sums is not None
            pair.append(self.match(user.sums, business.sums))
            direct += self.classify_match(pair[-1])
        if self.bias is not None:
            assert bias is not None, "a network with a bias term needs its features"
            pair.append(bias)
            direct += self.bias(bias)
        hidden = jax.nn.gelu(self.hidden(jnp.concatenate(pair, axis=-1)))
        return self.classify(dropout(hidden, self.dropout, keys[-1])) + direct


class Match(nnx.Module):
    """The averages of both sides, and their bilinear product.

    The reviews x_i of a side are averaged as sum(x_i) / (n + k) with a learned k > 0 for each
    dimension: the best linear prediction of an entity, where k is the variance of reviews over that
    of entities (Henderson 1975). A side without reviews is 0, which is the usual entity.
    """

    def __init__(self, embedding_dim: int, width: int, *, rngs: nnx.Rngs):
        self.project = nnx.Linear(embedding_dim, width, use_bias=False, rngs=rngs)
        self.usual = nnx.Param(jnp.zeros((width,)))  # added to each review
        self.shrinkage = nnx.Param(jnp.ones((2, width)))  # k = softplus of it; user, business
        self.of_user = nnx.Linear(width, width, rngs=rngs)
        self.of_business = nnx.Linear(width, width, rngs=rngs)

    def sums(self, side: ReviewSet) -> Sums:
        """One side by itself; the average over it is taken once its k is known."""
        mask = side.mask.astype(jnp.float32)
        reviews = mask.sum(axis=1, keepdims=True)
        # Projecting the sum takes s times less work than summing the projections.
        total = self.project(jnp.einsum("bse,bs->be", side.embeddings, mask))
        return Sums(total + reviews * self.usual[...][None], reviews)

    def __call__(self, user: Sums, business: Sums) -> Float[Array, "b three_d"]:
        """Both averages, and the product of their two linear maps."""
        averages = [
            side.total / (side.reviews + k[None])
            for side, k in zip((user, business), jax.nn.softplus(self.shrinkage[...]), strict=True)
        ]
        product = self.of_user(averages[0]) * self.of_business(averages[1])
        return jnp.concatenate([*averages, product], axis=-1)


def _mean_log(key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "f c"]:
    """Starts the linear bias as the mean of both sides' log class frequencies."""
    classes = shape[1]
    side = jnp.concatenate([jnp.eye(classes, dtype=dtype), jnp.zeros((1, classes), dtype)])
    return jnp.concatenate([side, side]) / 2


def star_index(stars: Float[Array, "..."]) -> Int[Array, "..."]:
    """Position of a rating on the half-star grid."""
    return jnp.round(stars * 2).astype(jnp.int32)
