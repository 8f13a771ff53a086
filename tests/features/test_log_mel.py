import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.features.log_mel import log_mel, num_log_mel_frames

FLOOR = (np.log(1e-5) + 4.0) / 4.0


def noise(*shape, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def mel(frequency):
    return 1127.0 * np.log(1.0 + frequency / 700.0)


def oracle(samples):
    """One utterance [S] -> [N, 80], in float64, bin by bin."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = np.linspace(mel(20.0), mel(7_600.0), 82)
    bins = mel(np.arange(257) * 16_000 / 512)
    rows = []
    for start in range(0, len(samples) - 399, 160):
        power = np.abs(np.fft.rfft(samples[start : start + 400].astype(np.float64) * window, 512)) ** 2
        row = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            triangle = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
            triangle[0] = 0.0
            row.append((np.log(max(triangle @ power, 1e-5)) + 4.0) / 4.0)
        rows.append(row)
    return np.array(rows).reshape(-1, 80)


@pytest.mark.parametrize(
    ("num_samples", "frames"), [(0, 0), (1, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16_000, 98)]
)
def test_number_of_frames_is_that_of_whole_windows(num_samples, frames):
    assert num_log_mel_frames(num_samples) == frames
    assert num_log_mel_frames(np.array([num_samples])).tolist() == [frames]
    assert num_log_mel_frames(tf.constant([num_samples])).numpy().tolist() == [frames]
    assert log_mel(tf.zeros([1, num_samples])).shape == (1, frames, 80)


def test_features_equal_the_textbook():
    samples = noise(2_000)
    np.testing.assert_allclose(log_mel(samples[None])[0], oracle(samples), atol=2e-4)


def test_a_tone_excites_the_bin_of_its_frequency():
    tone = 0.3 * np.sin(2 * np.pi * 1_000.0 * np.arange(1_600) / 16_000)
    centres = np.linspace(mel(20.0), mel(7_600.0), 82)[1:-1]
    expected = np.argmin(np.abs(centres - mel(1_000.0)))
    loudest = np.argmax(log_mel(tf.constant(tone[None], tf.float32))[0], axis=1)
    assert np.all(np.abs(loudest - expected) <= 1)


def test_silence_gives_the_floor_and_full_scale_is_finite():
    np.testing.assert_allclose(log_mel(tf.zeros([1, 800])), FLOOR, rtol=1e-6)
    square = np.where(np.arange(1_600) % 40 < 20, 1.0, -1.0).astype(np.float32)
    assert np.all(np.isfinite(log_mel(square[None])))


def test_a_frame_depends_on_its_own_samples_only():
    samples = noise(1, 4_000)
    for frame in (0, 7, 22):
        changed = noise(1, 4_000, seed=1)
        own = slice(160 * frame, 160 * frame + 400)
        changed[:, own] = samples[:, own]
        np.testing.assert_array_equal(log_mel(changed)[0, frame], log_mel(samples)[0, frame])


def test_chunks_that_start_on_a_frame_give_the_frames_of_the_whole():
    samples = noise(1, 8_000)
    whole = log_mel(samples)
    np.testing.assert_allclose(log_mel(samples[:, 160 * 5 :])[0], whole[0, 5:], atol=1e-5)
    np.testing.assert_allclose(log_mel(samples[:, : 160 * 9 + 400])[0], whole[0, :10], atol=1e-5)


def test_padding_behind_an_utterance_does_not_change_its_frames():
    samples = noise(1, 3_000)
    padded = np.concatenate([samples, np.full([1, 777], np.nan, np.float32)], 1)
    frames = num_log_mel_frames(3_000)
    np.testing.assert_allclose(log_mel(padded)[:, :frames], log_mel(samples), atol=1e-6)


def test_rows_do_not_see_each_other():
    samples = noise(3, 2_000)
    samples[1] = np.nan
    alone = log_mel(samples[2:])
    np.testing.assert_allclose(log_mel(samples)[2:], alone, atol=1e-6)


def test_the_same_inside_a_dataset():
    samples = noise(2, 2_000)
    dataset = tf.data.Dataset.from_tensor_slices(samples).batch(2).map(log_mel)
    np.testing.assert_allclose(next(iter(dataset)), log_mel(samples), atol=1e-4)
