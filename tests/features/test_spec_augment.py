import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.features.spec_augment import spec_augment

ONES = tf.ones([64, 100, 80])
LENGTHS = tf.constant(np.linspace(1, 100, 64), tf.int32)


def hidden(features=ONES, num_features=LENGTHS, seed=(1, 2), **settings):
    """[B, N, F] bool: the cells that were hidden."""
    result = spec_augment(features, num_features, seed=tf.constant(seed, tf.int64), **settings)
    return np.asarray(result) == 0.0


def bands(**settings):
    return hidden(num_time_masks=0, **settings)[:, 0, :]  # [B, F]


def spans(**settings):
    return hidden(num_frequency_masks=0, **settings)[:, :, 0]  # [B, N]


def is_one_stretch(row):
    return np.abs(np.diff(np.concatenate([[0], row.astype(int), [0]]))).sum() <= 2


def test_without_masks_nothing_changes():
    features = tf.constant(np.random.default_rng(0).standard_normal([2, 9, 80]), tf.float32)
    result = spec_augment(
        features, tf.constant([9, 4]), seed=tf.constant([0, 0]), num_frequency_masks=0, num_time_masks=0
    )
    np.testing.assert_array_equal(result, features)


def test_what_is_not_hidden_is_untouched_and_what_is_becomes_zero_even_if_not_finite():
    features = np.random.default_rng(0).standard_normal([8, 50, 80]).astype(np.float32) + 10.0
    covered = hidden(tf.constant(features), tf.fill([8], 50))
    assert 0.0 < covered.mean() < 0.9
    poisoned = tf.constant(np.where(covered, np.nan, features))
    result = spec_augment(poisoned, tf.fill([8], 50), seed=tf.constant([1, 2], tf.int64))
    np.testing.assert_array_equal(result, np.where(covered, 0.0, features))


def test_the_seed_alone_decides():
    np.testing.assert_array_equal(hidden(), hidden())
    assert np.any(hidden() != hidden(seed=(1, 3)))
    assert np.any(hidden() != hidden(seed=(2, 2)))


def test_the_same_cells_inside_a_function_and_a_dataset():
    dataset = tf.data.Dataset.from_tensors((ONES, LENGTHS))
    dataset = dataset.map(lambda f, n: spec_augment(f, n, seed=tf.constant([1, 2], tf.int64)))
    np.testing.assert_array_equal(np.asarray(next(iter(dataset))) == 0.0, hidden())


def test_utterances_are_masked_differently_and_bands_independently_of_spans():
    assert len(np.unique(bands(), axis=0)) > 32
    assert len(np.unique(spans()[32:], axis=0)) > 16
    full = tf.fill([64], 80)
    square = tf.ones([64, 80, 80])
    one = {"num_frequency_masks": 1, "num_time_masks": 1, "max_frequency_bins": 40, "time_fraction": 0.5}
    cells = hidden(square, full, **one)
    same = [np.array_equal(cells[i].all(axis=1), cells[i].all(axis=0)) for i in range(64)]
    assert np.mean(same) < 0.5


def test_one_band_is_one_stretch_of_every_width_up_to_the_largest():
    found = bands(num_frequency_masks=1, max_frequency_bins=5)
    assert all(is_one_stretch(row) for row in found)
    assert set(found.sum(axis=1)) == {0, 1, 2, 3, 4, 5}


def test_bands_reach_both_ends_of_the_spectrum():
    found = np.concatenate([bands(seed=(0, i)) for i in range(8)]).mean(axis=0)
    assert np.all(found > 0.0)


def test_one_span_lies_within_the_utterance_and_is_at_most_its_part():
    found = spans(num_time_masks=1, time_fraction=0.25)
    widths, lengths = found.sum(axis=1), LENGTHS.numpy()
    assert all(is_one_stretch(row) for row in found)
    assert np.all(widths <= 0.25 * lengths)
    assert np.any(widths > 0.2 * lengths)
    assert not np.any(found & (np.arange(100) >= lengths[:, None]))


def test_several_masks_hide_more_than_one():
    assert spans(num_time_masks=10).mean() > 3 * spans(num_time_masks=1).mean() > 0.0
    assert bands(num_frequency_masks=4).mean() > 1.5 * bands(num_frequency_masks=1).mean()


def test_a_band_may_be_wider_than_the_spectrum():
    assert bands(num_frequency_masks=1, max_frequency_bins=1_000).any()


@pytest.mark.parametrize("num_frames", [0, 4])
def test_empty_utterances_and_empty_batches(num_frames):
    settings = {"num_features": tf.zeros([2], tf.int32), "num_frequency_masks": 0}
    assert not hidden(tf.ones([2, num_frames, 80]), **settings).any()
    assert hidden(tf.ones([0, num_frames, 80]), tf.zeros([0], tf.int32)).shape == (0, num_frames, 80)
