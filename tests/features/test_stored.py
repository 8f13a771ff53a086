import numpy as np
import pytest
import tensorflow as tf

from tests.features.test_log_mel import FLOOR, noise
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.features.log_mel import FRONT_END, RANGE, log_mel

STEPS = {"uint8": (RANGE[1] - RANGE[0]) / 255, "uint16": (RANGE[1] - RANGE[0]) / 65_535}


def features_of(samples):
    return log_mel(tf.constant(samples[None] / 32_768.0, tf.float32))[0]


@pytest.mark.parametrize("dtype", stored.DTYPES)
@pytest.mark.parametrize("scale", [0.001, 0.1, 10.0])
def test_what_comes_back_is_within_half_a_step(dtype, scale):
    samples = np.clip(32_768.0 * noise(16_000, scale=scale), -32_768, 32_767).astype(np.int16)
    quantised = stored.quantise(samples, dtype)
    assert quantised.dtype == dtype and quantised.shape == (98, 80) and len(np.unique(quantised)) > 50
    found = stored.restore(tf.constant(quantised.reshape(-1)))
    np.testing.assert_allclose(found, features_of(samples), atol=0.5 * STEPS[dtype] + 2e-6)


def test_the_range_is_from_silence_to_more_than_the_loudest_there_is():
    assert np.isclose(RANGE[0], FLOOR)
    assert not np.any(stored.quantise(np.zeros(800, np.int16), "uint8"))
    time = np.arange(1_600)
    squares = [np.where(time % period < period // 2, 32_767, -32_768) for period in (2, 4, 8, 16, 32, 64, 160)]
    tones = [32_767 * np.sin(2 * np.pi * k * time / 512) for k in range(1, 250)]  # on the centre of a bin each
    loudest = max(features_of(samples.astype(np.int16)).numpy().max() for samples in squares + tones)
    assert RANGE[1] - 0.5 < loudest < RANGE[1]


@pytest.mark.parametrize("num_samples", [0, 399])
def test_less_than_a_frame_has_no_features(num_samples):
    assert stored.quantise(np.zeros(num_samples, np.int16), "uint8").shape == (0, 80)
    assert stored.restore(tf.zeros([0], tf.uint8)).shape == (0, 80)


def test_another_front_end_is_told_by_what_differs():
    assert stored.front_end_changes(stored.describe("uint8")) == ""
    theirs = {"dtype": "uint8", "front_end": {**FRONT_END, "num_mel_bins": 64, "dither": 1.0}}
    expected = "dither is 1.0 there and None here, num_mel_bins is 64 there and 80 here"
    assert stored.front_end_changes(theirs) == expected
