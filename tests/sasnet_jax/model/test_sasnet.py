"""Properties of the network: tolerances are 1e-5 for a layer, 1e-4 for the network (float32)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf
from written_runs import NETWORK_SWITCHES, switched

from sasnet_jax.corpus.counts import bias_features
from sasnet_jax.model.layers import AttentionBlock, dropout, masked_mean
from sasnet_jax.model.sasnet import Known, ReviewSet, SASNet

WIDTH, EMBEDDING, SET = 16, 12, 5
EVERY_NETWORK = pytest.mark.parametrize(
    ("cross_attention", "review_features"),
    [("pooled", "text"), ("pooled", "text+stars"), ("set", "text"), ("set", "text+stars")],
)

_ADDED = ("bias_term", "crossed_bias", "match", "votes", "offset")


def _network(
    cross_attention="set", review_features="text+stars", embedding=EMBEDDING, **options
) -> SASNet:
    small = {"width": WIDTH, "depth": 2, "heads": 4, "feed_forward": 32, "classes": 3}
    plain = {"encoder": True, "discriminants": 4}
    return SASNet(
        embedding,
        **small | plain | options,
        dropout=0.2,
        cross_attention=cross_attention,
        review_features=review_features,
        rngs=nnx.Rngs(0),
    )


def _sets(batch=6, size=SET, seed=0) -> tuple[ReviewSet, ReviewSet]:
    """Random sets of every length from 0 to `size`."""
    rng = np.random.default_rng(seed)
    sides = []
    for shift in (0, 3):
        lengths = (np.arange(batch) + shift) % (size + 1)
        sides.append(
            ReviewSet(
                jnp.asarray(rng.normal(size=(batch, size, EMBEDDING)), jnp.float32),
                jnp.asarray(rng.integers(1, 11, (batch, size)), jnp.float32),
                jnp.asarray(np.arange(size) < lengths[:, None]),
                jnp.asarray(rng.integers(-1, 3, (batch, size)), jnp.int32),  # -1: unknown
            )
        )
    return sides[0], sides[1]


@jax.jit(static_argnums=0)
def _run(graphdef, params, user, business, known):
    return nnx.merge(graphdef, params)(user, business, known)


def _logits(network: SASNet, user: ReviewSet, business: ReviewSet, known=None) -> np.ndarray:
    known = known or _known(network, len(user.mask))
    return np.asarray(_run(*nnx.split(network, nnx.Param), user, business, known))


def _known(network: SASNet, batch: int = 6) -> Known:
    """Features of ratings, as many as the network reads, and class shares."""
    classes = network.classify.kernel.shape[1]
    features = network.bias.kernel.shape[0] if network.bias is not None else 0
    bias = np.random.default_rng(5).normal(size=(batch, features)).astype(np.float32)
    shares = np.arange(1, classes + 1, dtype=np.float32) / np.arange(1, classes + 1).sum()
    return Known(jnp.asarray(bias) if features else None, jnp.asarray(shares))


def _trained(network: SASNet) -> SASNet:
    """The network with parameters that are nowhere zero or alike, as if trained."""
    rng = np.random.default_rng(7)
    graphdef, params = nnx.split(network, nnx.Param)

    def noisy(x):
        return x + jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)

    return nnx.merge(graphdef, jax.tree.map(noisy, params))


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@EVERY_NETWORK
def test_logits_have_one_row_a_target(cross_attention, review_features):
    logits = _logits(_network(cross_attention, review_features), *_sets())
    assert logits.shape == (6, 3) and np.isfinite(logits).all()


@EVERY_NETWORK
def test_order_within_a_set_does_not_matter(cross_attention, review_features):
    network, (user, business) = _network(cross_attention, review_features), _sets()
    order = np.random.default_rng(1).permutation(SET)
    shuffled = jax.tree.map(lambda x: x[:, order], user)
    _close(_logits(network, shuffled, business), _logits(network, user, business))
    shuffled = jax.tree.map(lambda x: x[:, order], business)
    _close(_logits(network, user, shuffled), _logits(network, user, business))


@EVERY_NETWORK
def test_content_of_padding_does_not_matter(cross_attention, review_features):
    network, sides = _network(cross_attention, review_features), _sets()
    noisy = [
        side._replace(
            embeddings=jnp.where(side.mask[..., None], side.embeddings, 1e3),
            stars=jnp.where(side.mask, side.stars, 5.0),
            label=jnp.where(side.mask, side.label, 2),
        )
        for side in sides
    ]
    np.testing.assert_array_equal(_logits(network, *noisy), _logits(network, *sides))


@EVERY_NETWORK
def test_length_of_padding_does_not_matter(cross_attention, review_features):
    network, sides = _network(cross_attention, review_features), _sets()
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 4)] + [(0, 0)] * (x.ndim - 2)), sides)
    _close(_logits(network, *longer), _logits(network, *sides))


@EVERY_NETWORK
def test_neighbours_in_the_batch_do_not_matter(cross_attention, review_features):
    network, sides = _network(cross_attention, review_features), _sets()
    together = _logits(network, *sides)
    for row in range(6):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], sides)
        _close(_logits(network, *alone)[0], together[row])


@EVERY_NETWORK
def test_an_empty_side_is_the_learned_vector(cross_attention, review_features):
    network, (user, business) = _network(cross_attention, review_features), _sets()
    empty = user._replace(mask=jnp.zeros_like(user.mask))
    other = empty._replace(embeddings=empty.embeddings + 7, stars=5 - empty.stars / 2)
    before = _logits(network, empty, business)
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(_logits(network, other, business), before)
    network.no_reviews[...] = network.no_reviews[...] + 1.0
    assert np.abs(_logits(network, empty, business) - before).max() > 1e-4


def test_one_encoder_serves_both_sides():
    """Siamese: with the sides exchanged, the encoder gives the sides' tokens exchanged."""
    network, (user, business) = _network(), _sets()
    joined = jax.tree.map(lambda *sides: jnp.concatenate(sides), user, business)
    swapped = jax.tree.map(lambda *sides: jnp.concatenate(sides), business, user)
    tokens, swapped_tokens = network.encode(joined).tokens, network.encode(swapped).tokens
    _close(tokens[:6], swapped_tokens[6:])
    _close(tokens[6:], swapped_tokens[:6])


@pytest.mark.parametrize("name", [None, *NETWORK_SWITCHES])
@pytest.mark.parametrize("base", [0, 1])
def test_the_halves_are_the_whole(base, name):
    """Every switch against all others off, and on; empty sides are among the sets, and the sides'
    sets may be of different sizes.
    """
    network = _trained(_network(**switched(NETWORK_SWITCHES, base, name)))
    user, business = _sets()
    known = _known(network)
    whole = _logits(network, user, business, known)

    @jax.jit
    def halves(params, user, business, known):
        network = nnx.merge(graphdef, params)
        return network.decide(network.encode(user), network.encode(business), known)

    graphdef, params = nnx.split(network, nnx.Param)
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 4)] + [(0, 0)] * (x.ndim - 2)), user)
    for some in (user, longer):
        np.testing.assert_allclose(
            halves(params, some, business, known), whole, rtol=1e-5, atol=1e-5
        )


@EVERY_NETWORK
def test_gradients_reach_every_parameter_that_should_have_one(cross_attention, review_features):
    options = {"match": True, "votes": True, "crossed_bias": True, "offset": True}
    network = _trained(_network(cross_attention, review_features, **options))
    sides = _sets(batch=32)
    graphdef, params = nnx.split(network, nnx.Param)
    known = _known(network, 32)

    def loss(params):
        return (nnx.merge(graphdef, params)(*sides, known) ** 2).mean()

    gradients = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        largest = np.abs(gradient).max()
        # Softmax ignores what is added to all keys alike, so a key bias never has a gradient; with
        # one pooled key the softmax is constant, and then queries have none either.
        if name.endswith("attention/key/bias"):
            assert largest < 1e-5, name
        elif cross_attention == "pooled" and name.startswith(
            ("cross/attention/query", "cross/attention/key")
        ):
            assert largest == 0, name
        else:
            assert largest > 1e-7, name


def test_paper_preset_has_the_papers_parameter_count():
    network = nnx.eval_shape(
        lambda: _network(
            "pooled", "text", embedding=3072, width=256, depth=2, heads=4, feed_forward=1024
        )
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    assert count == 3_288_067 + 256  # docs/design.md 4.3, and the empty-set vector
    assert 3.25e6 <= count <= 3.35e6


def _linear(part, x):
    return x @ np.float64(part.kernel[...]) + np.float64(part.bias[...])


def _norm(part, x):
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * np.float64(part.scale[...]) + np.float64(part.bias[...])


def _gelu(x):
    """The tanh form, as `jax.nn.gelu`; it differs from the exact one by less than 1e-3."""
    found = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert (np.abs(found - 0.5 * x * (1 + erf(x / np.sqrt(2)))) < 1e-3).all()
    return found


def _numpy_attention(layer, queries, keys):
    """float64, one query and one head at a time, of one set: [q, d], [k, d] -> [q, d]."""
    q, k, v = (
        _linear(part, x)
        for part, x in ((layer.query, queries), (layer.key, keys), (layer.value, keys))
    )
    mixed, width = np.zeros(queries.shape), queries.shape[-1] // layer.heads
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(queries)):
            scores = [np.exp(q[i, part] @ k[j, part] / np.sqrt(width)) for j in range(len(keys))]
            terms = [score * v[j, part] for j, score in enumerate(scores)]
            mixed[i, part] = sum(terms) / sum(scores)
    return _linear(layer.out, mixed)


def _numpy_block(block, queries, keys):
    norm = block.attention_norm
    x = queries + _numpy_attention(block.attention, _norm(norm, queries), _norm(norm, keys))
    return x + _linear(
        block.contract, _gelu(_linear(block.expand, _norm(block.feed_forward_norm, x)))
    )


def _numpy_match(match, row, *sides):
    """Both averages, each review by itself, and their product."""
    averages = []
    for reviews, shrinkage in zip(sides, np.float64(match.shrinkage[...]), strict=True):
        total, seen = np.zeros(WIDTH), 0
        for place in np.flatnonzero(reviews.mask[row]):
            total += np.float64(reviews.embeddings[row, place]) @ np.float64(
                match.project.kernel[...]
            ) + np.float64(match.usual[...])
            seen += 1
        averages.append(total / (seen + np.log1p(np.exp(shrinkage))))
    user, business = averages
    product = _linear(match.of_user, user) * _linear(match.of_business, business)
    return np.concatenate([user, business, product])


def _numpy_votes(votes, row, sides, shares):
    """Each head's smoothed class shares, one review at a time: the user's vote, the business's."""
    heads, width, _ = votes.project.shape
    logs = []
    for voting, other, sharpness in zip(
        sides, sides[::-1], np.float64(votes.sharpness[...]), strict=True
    ):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            kernel = np.float64(votes.project[...])[head]
            mean = np.zeros(kernel.shape[1])
            for place in np.flatnonzero(other.mask[row]):
                mean += np.float64(other.embeddings[row, place, part]) @ kernel
            total, weights, reviews = np.zeros(shares.size), 0.0, 0
            for place in np.flatnonzero(voting.mask[row] & (voting.label[row] >= 0)):
                key = np.float64(voting.embeddings[row, place, part]) @ kernel
                lengths = np.linalg.norm(mean) * np.linalg.norm(key)
                weight = np.exp(sharpness[head] * (mean @ key / lengths if lengths else 0))
                total[int(voting.label[row, place])] += weight
                weights, reviews = weights + weight, reviews + 1
            share = total / weights if reviews else total
            logs.append(np.log((reviews * share + 5 * shares) / (reviews + 5)))
    return np.concatenate(logs)


def _numpy_logits(network, user, business, known):
    """The whole network in float64, one target at a time, without padding."""
    logits = []
    for row in range(len(user.mask)):
        sides = []
        for reviews in (user, business):
            kept = np.flatnonzero(reviews.mask[row])
            tokens = _gelu(_linear(network.project, np.float64(reviews.embeddings[row])[kept]))
            if network.stars is not None:
                grid = np.float64(network.stars.embedding[...])
                tokens += grid[np.asarray(reviews.stars)[row, kept].astype(int)]
            if not kept.size:
                tokens = np.float64(network.no_reviews[...])[None]
            for block in network.encoder:
                tokens = _numpy_block(block, tokens, tokens)
            sides.append(tokens)
        if network.cross_attention == "pooled":
            sides = [tokens.mean(axis=0, keepdims=True) for tokens in sides]
        if network.cross is not None:
            sides[0] = _numpy_block(network.cross, *sides)
        pair = np.concatenate([tokens.mean(axis=0) for tokens in sides])
        found = np.zeros(3)
        if network.match is not None:
            matched = _numpy_match(network.match, row, user, business)
            pair = np.concatenate([pair, matched])
            found += _linear(network.classify_match, matched)
        if network.votes is not None:
            voted = _numpy_votes(network.votes, row, (user, business), np.float64(known.shares))
            pair = np.concatenate([pair, voted])
            found += _linear(network.classify_votes, voted)
        if network.bias is not None:
            pair = np.concatenate([pair, np.float64(known.bias[row])])
            found += _linear(network.bias, np.float64(known.bias[row]))
        found += _linear(network.classify, _gelu(_linear(network.hidden, pair)))
        if network.gate is not None:
            reviews = np.array([user.mask[row].sum(), business.mask[row].sum()])
            gate = reviews / (reviews + 4) @ np.float64(network.gate.weight[...])
            found /= 1 + np.exp(-gate - np.float64(network.gate.bias[...]))
        logits.append(found)
    return np.array(logits)


def test_attention_and_block_equal_a_loop_in_float64():
    rng = np.random.default_rng(2)
    block = AttentionBlock(WIDTH, 4, 32, 0.0, rngs=nnx.Rngs(3))
    queries = rng.normal(size=(3, 4, WIDTH)).astype(np.float32)
    keys = rng.normal(size=(3, 6, WIDTH)).astype(np.float32)
    mask = rng.random((3, 6)) < 0.6
    mask[:, 0] = True
    inputs = (jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(mask))
    attended, found = block.attention(*inputs), block(*inputs, None)
    for row in range(3):
        q, k = np.float64(queries[row]), np.float64(keys[row][mask[row]])
        expected = _numpy_attention(block.attention, q, k)
        np.testing.assert_allclose(attended[row], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[row], _numpy_block(block, q, k), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("added", [(), ("bias_term",), ("match",), ("votes",), _ADDED], ids=str)
@pytest.mark.parametrize("encoder", [False, True])
@EVERY_NETWORK
def test_the_network_equals_a_loop_in_float64(cross_attention, review_features, encoder, added):
    options = {"encoder": encoder, **dict.fromkeys(added, True)}
    network = _trained(_network(cross_attention, review_features, **options))
    user, business = _sets()
    known = _known(network)
    expected = _numpy_logits(network, user, business, known)
    found = _logits(network, user, business, known)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


def test_a_network_that_builds_on_a_regression_starts_at_nothing():
    network = _network(**dict.fromkeys(_ADDED, True))
    assert np.abs(_logits(network, *_sets())).max() == 0


def test_votes_without_sharpness_are_the_smoothed_class_frequencies():
    network = _network(votes=True)
    network.votes.sharpness[...] = jnp.zeros_like(network.votes.sharpness[...])
    sides, known = _sets(), _known(network)
    voters = [network.votes.voters(side.embeddings, side.mask, side.label) for side in sides]
    found = np.asarray(network.votes(*voters, known.shares)).reshape(6, 2, -1, 3)
    voting = [np.where(side.mask, side.label, -1) for side in sides]
    counts = [[np.bincount(side[row] + 1, minlength=4)[1:] for side in voting] for row in range(6)]
    expected = bias_features(np.array(counts, np.float32), known.shares).reshape(6, 2, 4)[..., :3]
    for head in range(found.shape[2]):
        np.testing.assert_allclose(found[:, :, head], expected, rtol=1e-5, atol=1e-5)


def test_without_an_encoder_there_is_no_attention():
    network = _network(encoder=False)
    names = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    assert not names["encoder"] if "encoder" in names else True
    assert "cross" not in names


def test_stores_side_by_side_are_their_projections_added_up():
    network = _network(review_features="text")
    user, _ = _sets()
    kernel = network.project.kernel[...]
    parts = jnp.split(user.embeddings, [5], axis=-1)
    added = sum(part @ k for part, k in zip(parts, jnp.split(kernel, [5]), strict=True))
    expected = jax.nn.gelu(added + network.project.bias[...][None, None])
    _close(network._tokens(user), expected)


def test_masked_mean_equals_a_loop():
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    mask = np.random.default_rng(1).random((4, 5)) < 0.5
    mask[:, 2] = True
    expected = [x[b][mask[b]].mean(axis=0) for b in range(4)]
    np.testing.assert_allclose(
        masked_mean(jnp.asarray(x), jnp.asarray(mask)), expected, rtol=1e-5, atol=1e-6
    )


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((400, 500))
    dropped = np.asarray(dropout(x, 0.2, jax.random.key(0)))
    share = (dropped == 0).mean()
    rate = 51 / 256  # 0.2, to 1/256
    assert abs(share - rate) < 4 * np.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(dropout(x, 0.2, None), x)
