import numpy as np
import pytest
import tensorflow as tf

from tests.models.layers import check_layer
from tf_rnnt_kd.models.attention import RotaryAttention, masked_softmax, rotate


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def layer():
    layer = RotaryAttention(8, 2)
    layer.build((None, None, 8))
    return layer


def everything(batch, frames):
    return np.ones([batch, 1, frames, frames], bool)


def test_layer():
    check_layer(lambda: RotaryAttention(8, 2), [random(2, 5, 8), everything(2, 5)], (2, 5, 8))


def turn(vector, t):
    """Rotary position by complex numbers: x_i and x_{i + d/2} are the real and the imaginary part."""
    half = len(vector) // 2
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * t * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def oracle(layer, inputs, mask):
    """Frame by frame, head by head, in float64: [T, D] and [T, T] -> [T, D]."""
    frames, width = inputs.shape
    joined = (inputs.astype(np.float64) @ layer.project_in.kernel.numpy()).reshape(frames, 3, layer.num_heads, -1)
    context = np.zeros([frames, width])
    for h in range(layer.num_heads):
        query, key, value = joined[:, 0, h], joined[:, 1, h], joined[:, 2, h]
        for t in range(frames):
            seen = np.flatnonzero(mask[t])
            scores = np.array([turn(query[t], t) @ turn(key[s], s) for s in seen]) / np.sqrt(layer.head_dim)
            weights = np.exp(scores - scores.max())
            part = slice(h * layer.head_dim, (h + 1) * layer.head_dim)
            context[t, part] = weights / weights.sum() @ value[seen]
    return context @ layer.project_out.kernel.numpy() + layer.project_out.bias.numpy()


def test_equals_the_textbook(layer):
    inputs = random(2, 6, 8)
    mask = np.random.default_rng(1).random([2, 1, 6, 6]) < 0.5
    mask |= np.eye(6, dtype=bool)
    expected = [oracle(layer, inputs[b], mask[b, 0]) for b in range(2)]
    np.testing.assert_allclose(layer(inputs, mask), expected, atol=1e-5)


@pytest.mark.parametrize(("frames", "size", "count"), [(1, 2, 2), (7, 2, 3), (8, 4, 1), (9, 4, 2)])
def test_blocks_equal_the_whole_with_the_same_mask(layer, frames, size, count):
    inputs, rng = random(2, frames, 8), np.random.default_rng(1)
    num_blocks = -(-frames // size)
    key = (np.arange(num_blocks)[:, None] + 1) * size - count * size + np.arange(count * size)  # [K, W]
    mask = rng.random([2, num_blocks, size, count * size]) < 0.6
    mask &= ((key >= 0) & (key < frames))[:, None]
    whole = np.zeros([2, 1, num_blocks * size, frames], bool)
    for b, k, s, w in zip(*np.nonzero(mask), strict=True):
        whole[b, 0, k * size + s, key[k, w]] = True
    whole |= np.eye(num_blocks * size, frames, dtype=bool)  # nobody sees nothing
    for k, s in np.ndindex(num_blocks, size):
        if k * size + s < frames:
            mask[:, k, s, (count - 1) * size + s] = True
    found = layer(inputs, mask[:, None])
    np.testing.assert_allclose(found, layer(inputs, whole[:, :, :frames]), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_softmax_and_its_gradient_are_those_of_the_library(dtype):
    scores, weights = (tf.cast(random(2, 3, 4, seed=seed), dtype) for seed in (0, 1))
    mask = np.random.default_rng(0).random([2, 3, 4]) < 0.7
    mask[..., 0] = True
    results = []
    for softmax in (masked_softmax, lambda x, m: tf.nn.softmax(tf.where(m, tf.cast(x, tf.float32), -1e9))):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            probabilities = softmax(scores, mask)
            total = tf.reduce_sum(tf.cast(probabilities, tf.float32) * tf.cast(weights, tf.float32))
        results.append([tf.cast(values, tf.float32) for values in (probabilities, tape.gradient(total, scores))])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6 if dtype == "float32" else 1e-2)


def test_a_hidden_key_has_no_influence(layer):
    mask = everything(1, 5)
    mask[..., 3] = False
    changed = random(1, 5, 8)
    changed[:, 3] += 100.0
    outputs, expected = layer(changed, mask).numpy(), layer(random(1, 5, 8), mask).numpy()
    np.testing.assert_array_equal(np.delete(outputs, 3, 1), np.delete(expected, 3, 1))


def test_a_query_that_sees_nothing_is_finite(layer):
    assert np.all(np.isfinite(layer(random(1, 4, 8), ~everything(1, 4))))


def along(count, *, start=0):
    """Positions of `count` frames: [1, count]."""
    return tf.range(start, start + count)[None]


def test_rotated_products_depend_on_distance_only():
    query, key = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)
    queries, keys = (rotate(tf.constant(np.repeat(v, 20, 2)), along(20))[0, 0].numpy() for v in (query, key))
    products = queries @ keys.T
    for distance in (-7, 0, 3):
        same = np.diagonal(products, distance)
        np.testing.assert_allclose(same, same[0], atol=1e-4)
    assert np.ptp(products[0]) > 0.1


def test_rotation_keeps_lengths_and_the_first_position():
    vectors = tf.constant(random(2, 3, 7, 6))
    rotated = rotate(vectors, along(7))
    np.testing.assert_allclose(tf.norm(rotated, axis=-1), tf.norm(vectors, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(rotated[:, :, 0], vectors[:, :, 0])


def test_a_stream_with_a_full_cache_equals_the_whole(layer):
    inputs, size = random(2, 9, 8), 9
    cache = tuple(tf.zeros([2, 2, size, 4]) for _ in range(2))
    parts, seen = [], 0
    for count in (2, 0, 4, 3):
        visible = np.tril(np.ones([count, size + count], bool), size)
        visible &= np.arange(size + count) >= size - seen
        part, cache = layer.stream(
            tf.constant(inputs[:, seen : seen + count]), cache, along(count, start=seen), visible[None, None]
        )
        parts.append(part)
        seen += count
    causal = np.tril(np.ones([9, 9], bool))[None, None]
    np.testing.assert_allclose(tf.concat(parts, 1), layer(inputs, causal), atol=1e-5)


def test_a_width_that_heads_do_not_divide_into_pairs_is_refused():
    with pytest.raises(ValueError, match=r"width 10 is not a multiple of 2 \* num_heads = 4"):
        RotaryAttention(10, 2)


def test_products_of_rotated_vectors_depend_on_the_difference_of_positions_after_hours_and_beyond_the_last_one():
    query, key = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)
    near = np.sum(rotate(query, along(1, start=100)) * rotate(key, along(1, start=7)))
    for start in (90_000, 10**9, 2**31 - 50):  # one hour, a year, positions that run over between key and query
        positions = [np.array([[start + offset]], np.int64).astype(np.int32) for offset in (93, 0)]
        far = np.sum(rotate(query, tf.constant(positions[0])) * rotate(key, tf.constant(positions[1])))
        np.testing.assert_allclose(far, near, atol=1e-5)
    expected = turn(query[0, 0, 0].astype(np.float64), 90_000)
    np.testing.assert_allclose(rotate(query, along(1, start=90_000))[0, 0, 0], expected, atol=1e-3)


def test_each_row_is_rotated_by_its_own_position():
    vectors = random(2, 1, 3, 8)
    both = rotate(vectors, tf.constant([[5, 6, 7], [70, 71, 72]]))
    for row, start in enumerate((5, 70)):
        np.testing.assert_array_equal(both[row], rotate(vectors[row : row + 1], along(3, start=start))[0])
