"""Multi-head self-attention with rotary (relative) positions."""

import math

import keras
import numpy as np
import tensorflow as tf

from tf_rnnt_kd.models.streams import last_frames


class RotaryAttention(keras.layers.Layer):
    """`softmax(R(q) R(k)^T / sqrt(d) + mask) v`, where R rotates by position.

    The product of two rotated vectors depends on the difference of their positions only (Su et al. 2021, 2104.09864).
    Memory: B·H·T² scores, or B·H·T·W in blocks.
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
          mask: bool, true where a query may see a key: [B, 1, T, T], queries on the third axis, or in blocks
            [B, 1, K, S, W], where query s of block k (frame t = k S + s) sees key w if that is frame (k + 1) S - W + w.
            K S >= T; W is a multiple of S; both are static.

        Returns:
          [B, T, D].
        """
        query, key, value = self._project(inputs, tf.range(tf.shape(inputs)[1])[None])
        if mask.shape.rank == 4:
            return self._merge(_attend(query, key, value, mask))
        size, window = mask.shape[3:]
        query = _blocks(query, size)
        key, value = (_with_past(_blocks(values, size), window // size) for values in (key, value))
        context = _attend(query, key, value, mask)  # [B, H, K, S, D/H]
        shape = tf.shape(context)
        context = tf.reshape(context, [shape[0], self.num_heads, shape[2] * size, self.head_dim])
        return self._merge(context[:, :, : tf.shape(inputs)[1]])

    def stream(self, inputs, cache, positions, mask, num_frames=None):
        """A chunk of n frames that sees itself and a cache of the C frames before it.

        Args:
          inputs: [B, n, D].
          cache: two [B, H, C, D/H]: earlier keys, rotated by their own positions, and values.
          positions: [B, n] int32; may run over.
          mask: [1 or B, 1, n, C + n] bool.
          num_frames: [B], real frames of each row; None for n.

        Returns:
          [B, n, D] and the cache moved on by the real frames.
        """
        size = tf.shape(cache[0])[2]
        query, key, value = self._project(inputs, positions)  # [B, H, n, D/H] each
        key = tf.concat([cache[0], key], axis=2)  # [B, H, C+n, D/H]
        value = tf.concat([cache[1], value], axis=2)
        outputs = self._merge(_attend(query, key, value, mask))
        return outputs, (last_frames(key, size, num_frames), last_frames(value, size, num_frames))

    def _project(self, inputs, positions):
        """[B, T, D] -> query, key, both rotated, and value [B, H, T, D/H]."""
        shape = tf.shape(inputs)
        joined = self.project_in(tf.reshape(inputs, [-1, self.width]))  # [B T, 3 D]
        heads = tf.reshape(joined, [shape[0], shape[1], 3 * self.num_heads, self.head_dim])
        rotated, value = tf.split(tf.transpose(heads, [0, 2, 1, 3]), [2 * self.num_heads, self.num_heads], axis=1)
        return *tf.split(rotate(rotated, positions), 2, axis=1), value

    def _merge(self, context):
        context = tf.transpose(context, [0, 2, 1, 3])  # [B, n, H, D/H]
        merged = self.project_out(tf.reshape(context, [-1, self.width]))  # [B n, D]
        return tf.reshape(merged, [*tf.unstack(tf.shape(context)[:2]), self.width])

    def get_config(self):
        return {**super().get_config(), "width": self.width, "num_heads": self.num_heads}


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The softmax over the keys that `mask` shows, in float32, stored once: the gradient needs no more than the result.

    `d scores = p (d p - sum p d p)`. A row that sees nothing (a padded query) is uniform, not NaN.

    Args:
      scores: [..., n, W] floating.
      mask: broadcasts to `scores`, bool.

    Returns:
      [..., n, W], of the dtype of `scores`.
    """

    @tf.custom_gradient
    def softmax(scores):
        weights = tf.nn.softmax(tf.where(mask, tf.cast(scores, tf.float32), -1e9))
        weights = tf.cast(weights, scores.dtype)

        def gradient(upstream):
            share = tf.cast(weights, tf.float32) * tf.cast(upstream, tf.float32)
            total = tf.reduce_sum(share, axis=-1, keepdims=True)
            return tf.cast(share - tf.cast(weights, tf.float32) * total, weights.dtype)

        return weights, gradient

    return softmax(scores)


def _attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """[..., n, d], [..., W, d] twice, [..., n, W] -> [..., n, d]."""
    scores = tf.matmul(query * query.shape[-1] ** -0.5, key, transpose_b=True)  # [..., n, W]
    return tf.matmul(masked_softmax(scores, mask), value)


def _blocks(vectors: tf.Tensor, size: int) -> tf.Tensor:
    """[B, H, T, d] -> [B, H, K, S, d], the last block filled up with zeros."""
    batch, heads, frames, _ = tf.unstack(tf.shape(vectors))
    vectors = tf.pad(vectors, [[0, 0], [0, 0], [0, -frames % size], [0, 0]])
    return tf.reshape(vectors, [batch, heads, -1, size, vectors.shape[-1]])


def _with_past(blocks: tf.Tensor, count: int) -> tf.Tensor:
    """The `count` blocks up to each: [B, H, K, S, d] -> [B, H, K, count S, d], zeros before the first."""
    num_blocks = tf.shape(blocks)[2]
    padded = tf.pad(blocks, [[0, 0], [0, 0], [count - 1, 0], [0, 0], [0, 0]])
    return tf.concat([padded[:, :, i : i + num_blocks] for i in range(count)], axis=3)


def rotate(vectors: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rotates each pair (x_i, x_{i+d/2}) at position t by the angle t · 10000^(-2i/d).

    Angles are counted in integers, 2^32 to a turn, so that they stay exact to float32 after hours and products of
    rotated vectors depend on the difference of their positions even where these have run over.

    Args:
      vectors: [B, H, T, d], d even.
      positions: [1 or B, T] int32. Where layers of one graph share the tensor, TensorFlow finds the angles once.
    """
    half = vectors.shape[-1] // 2
    steps = np.round(10_000.0 ** (-np.arange(half) / half) / (2 * math.pi) * 2**32).astype(np.int32)  # [d/2]
    angles = tf.cast(positions[:, None, :, None] * steps, tf.float32) * (2 * math.pi / 2**32)  # [1 or B, 1, T, d/2]
    cosine, sine = tf.cast(tf.cos(angles), vectors.dtype), tf.cast(tf.sin(angles), vectors.dtype)
    first, second = tf.split(vectors, 2, axis=-1)
    return tf.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
