"""SpecAugment: bands and spans of the features are hidden from the student."""

import tensorflow as tf

from tf_rnnt_kd.masks import length_mask


def spec_augment(
    features: tf.Tensor,
    num_features: tf.Tensor,
    *,
    seed: tf.Tensor,
    num_frequency_masks: int = 2,
    max_frequency_bins: int = 27,
    num_time_masks: int = 10,
    time_fraction: float = 0.05,
) -> tf.Tensor:
    """Sets random mel bands and time spans to zero, the mean of the features.

    Time masks are adaptive: each is at most `time_fraction` of the utterance, so short utterances lose as large a part
    as long ones. A pure function of its arguments: the same seed hides the same cells on any device and any run.

    Args:
      features: [B, N, F] float32.
      num_features: [B] int32, valid frames.
      seed: [2] integer.
      num_frequency_masks: bands for each utterance.
      max_frequency_bins: width of a band is uniform in [0, max_frequency_bins].
      num_time_masks: spans for each utterance.
      time_fraction: width of a span is uniform in [0, time_fraction * num_features].

    Returns:
      [B, N, F] float32.

    References:
      Park et al. 2019 (1904.08779); Park et al. 2020 (1912.05533) for the adaptive width.
    """
    batch, frames, bins = tf.unstack(tf.shape(features))
    time_seed, band_seed = tf.unstack(tf.random.split(seed, 2))
    lengths = tf.cast(num_features, tf.float32)[:, None]  # [B, 1]
    spans = _covered([batch, num_time_masks], lengths, time_fraction * lengths, frames, time_seed)  # [B, N]
    bins_per_row = tf.fill([batch, 1], tf.cast(bins, tf.float32))
    widths = tf.fill([batch, 1], float(max_frequency_bins))
    bands = _covered([batch, num_frequency_masks], bins_per_row, widths, bins, band_seed)  # [B, F]
    return tf.where(spans[:, :, None] | bands[:, None, :], 0.0, features)


def _covered(shape, lengths, max_widths, size, seed):
    """[B, size] bool: inside any of M intervals, uniform in width up to `max_widths` and in place within `lengths`."""
    uniform = tf.random.stateless_uniform(tf.concat([shape, [2]], 0), seed)  # [B, M, 2]
    widths = tf.floor(uniform[..., 0] * (tf.floor(tf.minimum(max_widths, lengths)) + 1.0))  # [B, M]
    starts = tf.floor(uniform[..., 1] * (lengths - widths + 1.0))
    after_start = length_mask(tf.reshape(starts, [-1]), size)  # [B*M, size]
    before_end = length_mask(tf.reshape(starts + widths, [-1]), size)
    inside = tf.reshape(before_end & ~after_start, [shape[0], shape[1], size])  # [B, M, size]
    return tf.reduce_any(inside, axis=1)
