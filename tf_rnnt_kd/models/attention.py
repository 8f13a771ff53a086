"""Multi-head self-attention with rotary (relative) positions."""

import keras
import tensorflow as tf


class RotaryAttention(keras.layers.Layer):
    """`softmax(R(q) R(k)^T / sqrt(d) + mask) v`, where R rotates by position.

    The product of two rotated vectors depends on the difference of their positions only (Su et al. 2021, 2104.09864),
    so a stream may number its frames from the start of its cache. Memory: B·H·T² scores.
    """

    def __init__(self, width: int, num_heads: int, **kwargs):
        super().__init__(**kwargs)
        if width % (2 * num_heads):
            raise ValueError(f"width {width} is not a multiple of 2 * num_heads = {2 * num_heads}")
        self.width, self.num_heads = width, num_heads
        self.head_dim = width // num_heads
        self.project_in = keras.layers.Dense(3 * width, use_bias=False, name="project_in")
        self.project_out = keras.layers.Dense(width, name="project_out")

    def build(self, inputs_shape):
        self.project_in.build((None, None, self.width))
        self.project_out.build((None, None, self.width))

    def call(self, inputs, mask):
        """Whole utterances.

        Args:
          inputs: [B, T, D].
          mask: [B, 1, T, T] bool, true where the query (third axis) may see the key (last axis).

        Returns:
          [B, T, D].
        """
        query, key, value = self._project(inputs)
        return self._attend(query, key, value, mask)

    def stream(self, inputs, cache, mask):
        """A chunk of n frames that sees itself and a cache of the C frames before it.

        Args:
          inputs: [B, n, D].
          cache: two [B, H, C, D/H]: earlier keys, not yet rotated, and values.
          mask: [1 or B, 1, n, C + n] bool.

        Returns:
          [B, n, D] and the cache moved on by n frames.
        """
        size = tf.shape(cache[0])[2]
        query, key, value = self._project(inputs)  # [B, H, n, D/H] each
        key = tf.concat([cache[0], key], axis=2)  # [B, H, C+n, D/H]
        value = tf.concat([cache[1], value], axis=2)
        query = tf.pad(query, [[0, 0], [0, 0], [size, 0], [0, 0]])  # gives each query the position of its key
        outputs = self._attend(query, key, value, mask, first_query=size)
        moved = tf.shape(inputs)[1]
        return outputs, (key[:, :, moved:], value[:, :, moved:])

    def _project(self, inputs):
        shape = tf.shape(inputs)
        heads = tf.reshape(self.project_in(inputs), [shape[0], shape[1], 3 * self.num_heads, self.head_dim])
        return tf.split(tf.transpose(heads, [0, 2, 1, 3]), 3, axis=1)  # three [B, H, T, D/H]

    def _attend(self, query, key, value, mask, first_query=0):
        query = rotate(query)[:, :, first_query:]
        scores = tf.matmul(query, rotate(key), transpose_b=True) * (self.head_dim**-0.5)  # [B, H, n, C+n]
        # A finite floor: a row with no visible key (a padded query) stays free of NaN.
        scores = tf.where(mask, tf.cast(scores, tf.float32), -1e9)
        weights = tf.cast(tf.nn.softmax(scores), self.compute_dtype)
        context = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])  # [B, n, H, D/H]
        return self.project_out(tf.reshape(context, [tf.shape(context)[0], -1, self.width]))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "num_heads": self.num_heads}


def rotate(vectors: tf.Tensor) -> tf.Tensor:
    """Rotates each pair (x_i, x_{i+d/2}) at position t by the angle t · 10000^(-2i/d).

    Args:
      vectors: [B, H, T, d], d even.
    """
    half = vectors.shape[-1] // 2
    frequencies = 10_000.0 ** (-tf.range(half, dtype=tf.float32) / half)  # [d/2]
    angles = tf.range(tf.cast(tf.shape(vectors)[2], tf.float32))[:, None] * frequencies  # [T, d/2]
    cosine, sine = tf.cast(tf.cos(angles), vectors.dtype), tf.cast(tf.sin(angles), vectors.dtype)
    first, second = tf.split(vectors, 2, axis=-1)
    return tf.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
