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
    first_row: tf.Tensor | int = 0,
    num_rows: tf.Tensor | int | None = None,
) -> tf.Tensor:
    """Sets random mel bands and time spans to zero, the mean of the features.

    Time masks are adaptive: each is at most `time_fraction` of the utterance, so short utterances lose as large a part
    as long ones. A pure function of its arguments: the same seed hides the same cells on any device and any run, and a
    part of a batch is masked as it would be within the whole.

    Args:
      features: [B, N, F] float32.
      num_features: [B] int32, valid frames.
      seed: [2] integer.
      num_frequency_masks: bands for each utterance.
      max_frequency_bins: width of a band is uniform in [0, max_frequency_bins].
      num_time_masks: spans for each utterance.
      time_fraction: width of a span is uniform in [0, time_fraction * num_features].
      first_row: where `features` begin in the whole batch.
      num_rows: of the whole batch; None for B.

    Returns:
      [B, N, F] float32.

    References:
      Park et al. 2019 (1904.08779); Park et al. 2020 (1912.05533) for the adaptive width.
    """
    batch, frames, bins = tf.unstack(tf.shape(features))
    num_rows = batch if num_rows is None else num_rows

    def draw(num_masks, seed):
        whole = tf.random.stateless_uniform([num_rows, num_masks, 2], seed)
        return whole[first_row : first_row + batch]  # [B, M, 2]

    time_seed, band_seed = tf.unstack(tf.random.split(seed, 2))
    lengths = tf.cast(num_features, tf.float32)[:, None]  # [B, 1]
    spans = _covered(draw(num_time_masks, time_seed), lengths, time_fraction * lengths, frames)  # [B, N]
    bins_per_row = tf.fill([batch, 1], tf.cast(bins, tf.float32))
    widths = tf.fill([batch, 1], float(max_frequency_bins))
    bands = _covered(draw(num_frequency_masks, band_seed), bins_per_row, widths, bins)  # [B, F]
    return tf.where(spans[:, :, None] | bands[:, None, :], 0.0, features)


def _covered(uniform, lengths, max_widths, size):
    """[B, M, 2] -> [B, size] bool: inside any of M intervals of widths up to `max_widths`, placed within `lengths`."""
    shape = tf.shape(uniform)
    widths = tf.floor(uniform[..., 0] * (tf.floor(tf.minimum(max_widths, lengths)) + 1.0))  # [B, M]
    starts = tf.floor(uniform[..., 1] * (lengths - widths + 1.0))
    after_start = length_mask(tf.reshape(starts, [-1]), size)  # [B*M, size]
    before_end = length_mask(tf.reshape(starts + widths, [-1]), size)
    inside = tf.reshape(before_end & ~after_start, [shape[0], shape[1], size])  # [B, M, size]
    return tf.reduce_any(inside, axis=1)
