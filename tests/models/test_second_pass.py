import numpy as np
import pytest
import tensorflow as tf

from tests.models.layers import check_layer
from tf_rnnt_kd.models.second_pass import SecondPass

FULL = np.array([9, 9])


def frames(seed=0):
    return np.random.default_rng(seed).standard_normal([2, 9, 8]).astype(np.float32)


@pytest.fixture(scope="module")
def layer():
    layer = SecondPass(8, 2, 2, 3, dropout=0.2)
    layer.build((None, None, 8))
    return layer


def test_layer():
    check_layer(lambda: SecondPass(8, 1, 2, 3, dropout=0.1), [frames(), np.array([9, 4])], (2, 9, 8))


def test_every_output_depends_on_every_frame(layer):
    plain = layer(frames(), FULL).numpy()
    for t in (0, 4, 8):
        changed = frames()
        changed[:, t] += 1.0
        assert np.all(np.any(layer(changed, FULL).numpy() != plain, axis=2))


@pytest.mark.parametrize("length", [0, 1, 5])
def test_nan_in_padding_changes_neither_outputs_nor_gradients(layer, length):
    lengths, dirty = np.array([length, 9]), frames()
    dirty[0, length:] = np.nan

    def run(inputs):
        with tf.GradientTape() as tape:
            outputs = layer(inputs, lengths)
            loss = tf.reduce_sum(outputs[0, :length] ** 3) + tf.reduce_sum(outputs[1] ** 3)
        return outputs, tape.gradient(loss, [v.value for v in layer.trainable_variables])

    (outputs, gradients), (clean, expected) = run(dirty), run(frames())
    np.testing.assert_array_equal(outputs[0, :length], clean[0, :length])
    np.testing.assert_array_equal(outputs[1], clean[1])
    for ours, theirs in zip(gradients, expected, strict=True):
        assert np.all(np.isfinite(ours))
        np.testing.assert_array_equal(ours, theirs)
    if length:
        alone = layer(frames()[:1, :length], np.array([length]))
        np.testing.assert_allclose(outputs[:1, :length], alone, atol=1e-5)


def test_recomputed_blocks_drop_the_same(layer):
    seeds = [block_layer.seeds.state for block in layer.blocks for block_layer in _dropped(block)]
    before, results = [seed.numpy() for seed in seeds], []
    for layer.rematerialise in (True, False):
        for seed, value in zip(seeds, before, strict=True):
            seed.assign(value)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(frames(), FULL, training=True) ** 3)
        results.append((loss, *tape.gradient(loss, [v.value for v in layer.trainable_variables])))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.any(layer(frames(), FULL).numpy() != layer(frames(), FULL, training=True).numpy())


def _dropped(block):
    return block.feed_forward_in, block, block.convolution, block.feed_forward_out
