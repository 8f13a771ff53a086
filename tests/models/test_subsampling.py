import numpy as np
import pytest
import tensorflow as tf

from tests.models.layers import check_layer
from tf_rnnt_kd.models.subsampling import REDUCTION, Subsampling


def features(batch=2, frames=24, seed=0):
    return np.random.default_rng(seed).standard_normal([batch, frames, 10]).astype(np.float32)


@pytest.fixture(scope="module")
def layer():
    layer = Subsampling(8)
    layer.build((None, None, 10))
    return layer


def test_layer():
    check_layer(lambda: Subsampling(8, dropout=0.1), [features(), np.array([24, 12])], (2, 6, 8))
    check_layer(lambda: Subsampling(8, channels=12), [features(), np.array([24, 12])], (2, 6, 8))


def test_equals_two_strided_convolutions_padded_on_the_left(layer):
    def convolve(inputs, weights):  # [N, F] -> [N/2, D]
        kernel, bias = (w.numpy().astype(np.float64) for w in weights)
        padded = np.concatenate([np.zeros([1, inputs.shape[1]]), inputs])
        rows = [np.einsum("kf,kfd->d", padded[t : t + 3], kernel) + bias for t in range(0, len(inputs), 2)]
        return np.array([row / (1 + np.exp(-row)) for row in rows])

    halves = convolve(features(1)[0], layer.first.weights)
    frames = convolve(halves, layer.second.weights)
    kernel, bias = (w.numpy() for w in layer.project.weights)
    np.testing.assert_allclose(layer(features(1), np.array([24]))[0], frames @ kernel + bias, atol=1e-5)


def test_output_t_sees_features_up_to_4t_plus_3_and_no_later(layer):
    plain = layer(features(1), np.array([24])).numpy()
    for t in range(6):
        last = REDUCTION * t + REDUCTION - 1
        changed = features(1)
        changed[:, last] += 1.0
        differs = np.any(layer(changed, np.array([24])).numpy() != plain, axis=(0, 2))
        assert differs[t] and not differs[:t].any()


@pytest.mark.parametrize("num_features", [0, 3, 4, 17, 24])
def test_nan_in_padding_changes_no_valid_output(layer, num_features):
    clean, dirty = features(1), features(1)
    clean[:, num_features:], dirty[:, num_features:] = 0.0, np.nan
    valid = num_features // REDUCTION
    outputs = layer(dirty, np.array([num_features]))[:, :valid]
    np.testing.assert_array_equal(outputs, layer(clean, np.array([num_features]))[:, :valid])
    if valid:
        alone = layer(features(1)[:, : REDUCTION * valid], np.array([REDUCTION * valid]))
        np.testing.assert_allclose(outputs, alone, atol=1e-6)


def test_chunks_of_any_size_equal_the_whole(layer):
    stream = tf.function(
        lambda chunk, *state: layer.stream(chunk, state),
        input_signature=[tf.TensorSpec([2, None, 10]), tf.TensorSpec([2, 1, 10]), tf.TensorSpec([2, 1, 8])],
        autograph=False,
    )
    state, parts = layer.initial_state(2), []
    for start, stop in ((0, 4), (4, 16), (16, 24)):
        frames, state = stream(tf.constant(features()[:, start:stop]), *state)
        parts.append(frames)
    np.testing.assert_allclose(tf.concat(parts, 1), layer(features(), np.array([24, 24])), atol=1e-5)


def test_dropout_is_on_in_training_only():
    layer = Subsampling(8, dropout=0.5)
    quiet = layer(features(), np.array([24, 24]))
    np.testing.assert_array_equal(layer(features(), np.array([24, 24])), quiet)
    assert np.mean(layer(features(), np.array([24, 24]), training=True).numpy() == 0.0) > 0.2
