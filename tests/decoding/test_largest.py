"""The largest values against `tf.math.top_k`, across the width where blocks begin."""

import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.decoding.largest import top_k_of_many


@pytest.mark.parametrize(("width", "k"), [(7, 3), (255, 8), (1023, 8), (1024, 8), (1025, 8), (4099, 1)])
def test_largest_values_and_their_places(width, k):
    values = np.random.default_rng(width).standard_normal([5, width]).astype("float32")
    values[1, : width - 1] = -np.inf
    found, wanted = top_k_of_many(values, k), tf.math.top_k(values, k)
    np.testing.assert_array_equal(found[0], wanted[0])
    there = np.take_along_axis(values, found[1].numpy(), 1)
    np.testing.assert_array_equal(there[np.isfinite(found[0])], found[0][np.isfinite(found[0])])
    assert all(len(set(row)) == k for row in found[1].numpy()[[0, 2, 3, 4]].tolist())


def test_the_first_of_equal_values_comes_first():
    assert top_k_of_many(np.zeros([2, 1000], np.float32), 8)[1][:, 0].numpy().tolist() == [0, 0]
