"""What a stream carries from chunk to chunk."""

import tensorflow as tf


def last_frames(frames: tf.Tensor, size: int | tf.Tensor, num_new: tf.Tensor | None) -> tf.Tensor:
    """The cache of the next chunk: `size` frames of each row, up to its last new one.

    Args:
      frames: [B, …, size + n, D], the cache of this chunk and n new frames.
      size: frames of a cache.
      num_new: [B] int32, new frames of each row, 0 to n; what lies beyond is not kept. None for n in every row.
    """
    if num_new is None:
        return frames[..., tf.shape(frames)[-2] - size :, :]
    return tf.gather(frames, num_new[:, None] + tf.range(size), axis=-2, batch_dims=1)
