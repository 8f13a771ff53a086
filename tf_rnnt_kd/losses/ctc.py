"""The auxiliary CTC loss on the encoder: TensorFlow's, made safe for every length."""

import tensorflow as tf

from tf_rnnt_kd.masks import length_mask, zero_padding


def ctc_loss(
    logits: tf.Tensor,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    compiled: bool = False,
) -> tf.Tensor:
    """`-log P(labels | logits)` of connectionist temporal classification, 0 where no alignment exists.

    CTC needs one frame a label and one more between equal labels; an utterance with fewer has no loss and no gradient,
    where TensorFlow's operations give infinity or an error.

    Args:
      logits: [B, T, V] floating, unnormalised.
      labels: [B, U] int32, blank-free.
      num_frames: [B] int32.
      num_labels: [B] int32.
      blank_id: index of blank.
      compiled: True inside XLA and on TPU, which lack the native operation; it is some ten times faster on CPU.

    Returns:
      [B] float32.

    References:
      Graves et al. 2006, Connectionist temporal classification.
    """
    labels = tf.pad(tf.cast(labels, tf.int32), [[0, 0], [0, 1]])  # room for the stand-in if no utterance has labels
    real = length_mask(num_labels, tf.shape(labels)[1])  # [B, U]
    repeats = (labels[:, 1:] == labels[:, :-1]) & real[:, 1:]
    possible = num_frames >= num_labels + tf.reduce_sum(tf.cast(repeats, tf.int32), axis=1)
    possible &= (num_labels > 0) & (num_frames > 0)
    # What can't be scored is replaced by one label over one frame, which always can, and then left out.
    stand_in = tf.cast(blank_id == 0, tf.int32)
    labels = tf.where(possible[:, None], labels, stand_in)
    num_labels, num_frames = tf.where(possible, num_labels, 1), tf.where(possible, num_frames, tf.shape(logits)[1])
    logits = zero_padding(tf.cast(logits, tf.float32), num_frames)
    logits = tf.where(possible[:, None, None], logits, 0.0)
    score = _dense if compiled else _native
    return tf.where(possible, score(labels, logits, num_labels, num_frames, blank_id), 0.0)  # [B]


def _dense(labels, logits, num_labels, num_frames, blank_id):
    return tf.nn.ctc_loss(labels, logits, num_labels, num_frames, logits_time_major=False, blank_index=blank_id)


def _native(labels, logits, num_labels, num_frames, blank_id):
    where = tf.where(length_mask(num_labels, tf.shape(labels)[1]))  # [N, 2]
    shape = tf.shape(labels, tf.int64)
    sparse = tf.SparseTensor(where, tf.gather_nd(labels, where), shape)
    return tf.nn.ctc_loss(sparse, logits, None, num_frames, logits_time_major=False, blank_index=blank_id)
