"""From 10 ms features to 40 ms frames."""

import keras
import tensorflow as tf

from tf_rnnt_kd.masks import zero_padding
from tf_rnnt_kd.models.streams import last_frames

REDUCTION = 4  # feature frames per encoder frame
_KERNEL = 3


class Subsampling(keras.layers.Layer):
    """Two strided convolutions over time, then a projection: `[B, 4T, F] -> [B, T, D]`.

        h = swish(conv_3/2(x));  h = swish(conv_3/2(h));  y = dropout(h W + b)

    Each convolution is padded with one frame on its left only. Output t therefore sees features up to 4t + 3, the
    frame rate is exactly a quarter, no valid output sees padding, and one frame of state a convolution makes it stream.

    Args:
      width: D.
      channels: of the two convolutions; None for D.
      dropout: on the output.
    """

    def __init__(self, width: int, channels: int | None = None, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.channels, self.dropout = width, channels or width, dropout
        self.first = keras.layers.Conv1D(self.channels, _KERNEL, strides=2, activation="swish", name="first")
        self.second = keras.layers.Conv1D(self.channels, _KERNEL, strides=2, activation="swish", name="second")
        self.project = keras.layers.Dense(width, name="project")
        self.drop = keras.layers.Dropout(dropout, name="drop")

    def build(self, features_shape):
        self.first.build((None, None, features_shape[-1]))
        self.second.build((None, None, self.channels))
        self.project.build((None, None, self.channels))
        self.num_bins = features_shape[-1]

    def call(self, features, num_features, training=False):
        """[B, 4T, F], [B] -> [B, T, D]; frames at and beyond num_features // 4 are undefined."""
        features = zero_padding(features, num_features)
        frames, _ = self.stream(features, self.initial_state(tf.shape(features)[0]))
        return self.drop(frames, training=training)

    def initial_state(self, batch_size) -> tuple[tf.Tensor, tf.Tensor]:
        """The frame before the first, for each convolution: zeros."""
        dtype = self.compute_dtype
        return tf.zeros([batch_size, 1, self.num_bins], dtype), tf.zeros([batch_size, 1, self.channels], dtype)

    def stream(self, features, state, num_frames=None):
        """[B, 4n, F], state, [B] -> [B, n, D], state, n > 0. The same arithmetic as `call`, without dropout."""
        last_feature, last_half = state
        features = tf.concat([last_feature, tf.cast(features, self.compute_dtype)], axis=1)  # [B, 1+4n, F]
        halves = tf.concat([last_half, self.first(features)], axis=1)  # [B, 1+2n, C]
        frames = self.project(self.second(halves))  # [B, n, D]
        quads = None if num_frames is None else REDUCTION * num_frames
        pairs = None if num_frames is None else REDUCTION // 2 * num_frames
        return frames, (last_frames(features, 1, quads), last_frames(halves, 1, pairs))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "channels": self.channels, "dropout": self.dropout}
