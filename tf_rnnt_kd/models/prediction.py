"""The prediction network: a language-model-like LSTM over the labels."""

import keras
import tensorflow as tf

START_ID = 0  # the start of an utterance; blank, which is never a label, lends its id


class PredictionNetwork(keras.layers.Layer):
    """Embedding and LSTM layers over the labels so far: `[B, U] -> [B, U+1, D]`.

    Output u has read labels 1 … u; output 0 has read the start mark only.
    """

    def __init__(self, vocabulary_size: int, width: int, num_layers: int = 1, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size, self.width, self.num_layers, self.dropout = vocabulary_size, width, num_layers, dropout
        # A product with one-hot rows: its gradient is a matrix product too, where that of a look-up is a scatter,
        # slow on TPU and summed in no fixed order on CPU.
        policy = self.dtype_policy
        self.embedding = keras.layers.Dense(width, use_bias=False, dtype=policy, name="embedding")
        self.drop = keras.layers.Dropout(dropout, dtype=policy, name="drop")
        self.layers = [
            keras.layers.LSTM(width, return_sequences=True, dtype=policy, name=f"lstm_{i}") for i in range(num_layers)
        ]

    def build(self, labels_shape):
        self.embedding.build((None, None, self.vocabulary_size))
        for layer in self.layers:
            layer.build((None, None, self.width))

    def call(self, labels, training=False):
        """[B, U] int32 -> [B, U+1, D]. Labels in the padding are read, but only outputs beyond num_labels see them."""
        start = tf.fill([tf.shape(labels)[0], 1], START_ID)
        hidden = self._embed(tf.concat([start, labels], axis=1))  # [B, U+1, D]
        hidden = self.drop(hidden, training=training)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def initial_state(self, batch_size) -> tuple[tf.Tensor, ...]:
        """Two [B, D] zeros for each LSTM layer."""
        return tuple(tf.zeros([batch_size, self.width], self.compute_dtype) for _ in range(2 * self.num_layers))

    def step(self, label, state):
        """One label: [B] int32, state -> [B, D], state."""
        # Nothing learns here, so a look-up will do: the product is as large as a joint node's.
        hidden, moved = tf.gather(tf.cast(self.embedding.kernel, self.compute_dtype), label), []
        for layer, cell_state in zip(self.layers, zip(*[iter(state)] * 2, strict=True), strict=True):
            hidden, cell_state = layer.cell(hidden, list(cell_state))
            moved.extend(cell_state)
        return hidden, tuple(moved)

    def _embed(self, labels):
        return self.embedding(tf.one_hot(labels, self.vocabulary_size, dtype=self.compute_dtype))

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
        }
