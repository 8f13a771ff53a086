import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.masks import length_mask, zero_padding


def test_length_mask_is_true_below_each_length():
    expected = [[False, False, False], [True, False, False], [True, True, True]]
    np.testing.assert_array_equal(length_mask(tf.constant([0, 1, 3]), 3), expected)


def test_length_mask_of_a_length_beyond_the_padded_one_is_all_true():
    np.testing.assert_array_equal(length_mask(tf.constant([9]), 2), [[True, True]])


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64, tf.float32])
def test_length_mask_takes_lengths_of_any_type(dtype):
    np.testing.assert_array_equal(length_mask(tf.constant([2], dtype), 3), [[True, True, False]])


def test_length_mask_takes_a_tensor_as_padded_length_inside_a_function():
    masked = tf.function(length_mask, autograph=False)
    np.testing.assert_array_equal(masked(tf.constant([1, 0]), tf.constant(2)), [[True, False], [False, False]])


def test_an_empty_batch_and_an_empty_axis_have_empty_masks():
    assert length_mask(tf.zeros([0], tf.int32), 4).shape == (0, 4)
    assert length_mask(tf.constant([0, 0]), 0).shape == (2, 0)


@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf])
def test_zero_padding_removes_whatever_lies_beyond_and_keeps_the_rest(trailing, dtype, rubbish):
    values = np.full([2, 4, *trailing], rubbish)
    values[0, :3], values[1, :1] = 1.5, -2.0
    expected = np.where(np.isfinite(values), values, 0.0)
    result = zero_padding(tf.constant(values, dtype), tf.constant([3, 1]))
    assert result.dtype == dtype
    np.testing.assert_array_equal(tf.cast(result, tf.float32), expected)


def test_nothing_flows_back_into_the_padding():
    values = tf.constant([[1.0, np.nan], [np.inf, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = tf.reduce_sum(tf.square(zero_padding(values, tf.constant([1, 0]))))
    np.testing.assert_array_equal(tape.gradient(loss, values), [[2.0, 0.0], [0.0, 0.0]])


def test_zero_padding_works_with_unknown_sizes():
    signature = [tf.TensorSpec([None, None, 2]), tf.TensorSpec([None], tf.int32)]
    padded = tf.function(zero_padding, input_signature=signature, autograph=False)
    np.testing.assert_array_equal(padded(tf.ones([1, 2, 2]), tf.constant([1])), [[[1, 1], [0, 0]]])
