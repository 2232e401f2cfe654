"""Properties of the network: tolerances are 1e-5 for a layer, 1e-4 for the network (float32)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from sasnet_jax.models.layers import Attention, AttentionBlock, dropout, masked_mean
from sasnet_jax.models.sasnet import ReviewSet, SASNet, star_index

WIDTH, EMBEDDING, SET = 16, 12, 5
EVERY_NETWORK = pytest.mark.parametrize(
    ("cross_attention", "review_features"),
    [("pooled", "text"), ("pooled", "text+stars"), ("set", "text"), ("set", "text+stars")],
)


def _network(cross_attention="set", review_features="text+stars", **sizes) -> SASNet:
    sizes = {"width": WIDTH, "depth": 2, "heads": 4, "feed_forward": 32} | sizes
    embedding = sizes.pop("embedding", EMBEDDING)
    return SASNet(
        embedding,
        **sizes,
        classes=3,
        dropout=0.2,
        encoder=True,
        cross_attention=cross_attention,
        review_features=review_features,
        bias_term=False,
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
                jnp.asarray(rng.integers(2, 11, (batch, size)) / 2, jnp.float32),
                jnp.asarray(np.arange(size) < lengths[:, None]),
            )
        )
    return sides[0], sides[1]


@jax.jit(static_argnums=0)
def _run(graphdef, params, user, business):
    return nnx.merge(graphdef, params)(user, business)


def _logits(network: SASNet, user: ReviewSet, business: ReviewSet) -> np.ndarray:
    return np.asarray(_run(*nnx.split(network, nnx.Param), user, business))


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
    tokens, _ = network._encode(user, business, [None] * 4)
    swapped, _ = network._encode(business, user, [None] * 4)
    _close(tokens[:6], swapped[6:])
    _close(tokens[6:], swapped[:6])


@EVERY_NETWORK
def test_gradients_reach_every_parameter_that_should_have_one(cross_attention, review_features):
    network, sides = _network(cross_attention, review_features), _sets(batch=32)
    graphdef, params = nnx.split(network, nnx.Param)

    def loss(params):
        return (nnx.merge(graphdef, params)(*sides) ** 2).sum()

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
    assert count == 3_288_067 + 256  # DESIGN section 4, and the empty-set vector
    assert 3.25e6 <= count <= 3.35e6


def _numpy_attention(layer, queries, keys, mask):
    """float64, one query and one head at a time."""

    def linear(part, x):
        return x @ np.float64(part.kernel[...]) + np.float64(part.bias[...])

    out = np.zeros(queries.shape)
    width = queries.shape[-1] // layer.heads
    for b in range(queries.shape[0]):
        q, k, v = (
            linear(layer.query, queries[b]),
            linear(layer.key, keys[b]),
            linear(layer.value, keys[b]),
        )
        mixed = np.zeros(queries.shape[1:])
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(queries.shape[1]):
                scores = [np.exp(q[i, part] @ k[j, part] / np.sqrt(width)) for j in mask[b]]
                mixed[i, part] = sum(
                    s * v[j, part] for s, j in zip(scores, mask[b], strict=True)
                ) / sum(scores)
        out[b] = linear(layer.out, mixed)
    return out


def test_attention_and_block_equal_a_loop_in_float64():
    rng = np.random.default_rng(2)
    block = AttentionBlock(WIDTH, 4, 32, 0.0, rngs=nnx.Rngs(3))
    for leaf in jax.tree.leaves(nnx.state(block, nnx.Param)):
        assert np.isfinite(leaf).all()
    queries = rng.normal(size=(3, 4, WIDTH)).astype(np.float32)
    keys = rng.normal(size=(3, 6, WIDTH)).astype(np.float32)
    mask = rng.random((3, 6)) < 0.6
    mask[:, 0] = True
    kept = [np.flatnonzero(row) for row in mask]
    attention: Attention = block.attention
    found = attention(jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(mask))
    expected = _numpy_attention(attention, np.float64(queries), np.float64(keys), kept)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def norm(part, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return scaled * np.float64(part.scale[...]) + np.float64(part.bias[...])

    x, y = np.float64(queries), np.float64(keys)
    part = block.attention_norm
    x = x + _numpy_attention(attention, norm(part, x), norm(part, y), kept)
    hidden = norm(block.feed_forward_norm, x) @ np.float64(block.expand.kernel[...])
    hidden += np.float64(block.expand.bias[...])
    # jax.nn.gelu is the tanh form; it differs from the exact one by less than 1e-3.
    tanh_gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    assert np.abs(tanh_gelu - 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))).max() < 1e-3
    x = x + tanh_gelu @ np.float64(block.contract.kernel[...])
    x += np.float64(block.contract.bias[...])
    found = block(jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(mask), None)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)


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


def test_stars_lie_on_the_half_star_grid():
    assert star_index(jnp.array([0.5, 1.0, 3.5, 5.0])).tolist() == [1, 2, 7, 10]
