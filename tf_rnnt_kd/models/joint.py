"""The additive joint network."""

import keras
import tensorflow as tf


class Joint(keras.layers.Layer):
    """`logits = tanh(A enc_t + a + B pred_u + b) K + k`.

    It is used in two halves: the projections (`project_encoded`, `project_predicted`) run once a frame and once a
    label; what follows, the tanh and the product with `kernel`, runs once a node, and training leaves it to
    `losses.joint_tile_losses`, which never holds all nodes at once. The factored teacher targets are the projections.
    """

    def __init__(self, vocabulary_size: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size, self.width = vocabulary_size, width
        self.project_encoded = keras.layers.Dense(width, name="project_encoded")
        self.project_predicted = keras.layers.Dense(width, name="project_predicted")

    def build(self, encoded_shape, predicted_shape):
        self.project_encoded.build(encoded_shape)
        self.project_predicted.build(predicted_shape)
        self.kernel = self.add_weight(name="kernel", shape=(self.width, self.vocabulary_size))  # [D, V]
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")  # [V]

    def call(self, encoded, predicted):
        """Projected [..., D] and [..., D] -> logits [..., V] float32."""
        hidden = tf.cast(tf.tanh(encoded + predicted), tf.float32)
        # `tensordot` makes one product of matrices of it, where `matmul` makes one for each row of the batch.
        return tf.tensordot(hidden, tf.cast(self.kernel, tf.float32), 1) + tf.cast(self.bias, tf.float32)

    def get_config(self):
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size, "width": self.width}
