"""Which positions of a padded batch are real."""

import tensorflow as tf


def length_mask(lengths: tf.Tensor, max_length: int | tf.Tensor) -> tf.Tensor:
    """`mask[b, i] = i < lengths[b]`.

    Args:
      lengths: [B] integer.
      max_length: scalar N, the padded length.

    Returns:
      [B, N] bool.
    """
    return tf.range(max_length)[None, :] < tf.cast(lengths, tf.int32)[:, None]  # [B, N]


def zero_padding(values: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Replaces what lies beyond each length by 0, whatever it holds (NaN times 0 would stay NaN).

    Args:
      values: [B, N, ...] floating.
      lengths: [B] integer.
    """
    mask = length_mask(lengths, tf.shape(values)[1])
    mask = tf.reshape(mask, tf.concat([tf.shape(mask), tf.ones([tf.rank(values) - 2], tf.int32)], 0))
    return tf.where(mask, values, tf.zeros([], values.dtype))
