"""A language model over the tokenizer's labels: the prediction network, trained on text alone."""

from typing import Annotated

import keras
import tensorflow as tf
from annotated_types import Ge

from tf_rnnt_kd.models.prediction import START_ID, PredictionNetwork
from tf_rnnt_kd.options import Count, FractionBelowOne, checked

END_ID = START_ID  # the end of a sentence: blank is no label, so its id serves at both ends


@checked
class LanguageModel(keras.Model):
    """P(label | labels before it), built and ready after construction.

    The column of blank holds the end of the sentence. A search does not read it: what a hypothesis is given is the
    probability that a sentence begins with its labels. Computes in float32, whatever the process trains in.

    Args:
      vocabulary_size: V, blank included.
      width: of the LSTM layers and of the label embedding.
      num_layers: LSTM layers.
      dropout: on the label embedding and before the softmax.
    """

    def __init__(
        self,
        vocabulary_size: Annotated[Count, Ge(2)],
        *,
        width: Count,
        num_layers: Count = 1,
        dropout: FractionBelowOne = 0.1,
        **kwargs,
    ):
        super().__init__(**{"name": "language_model", "dtype": "float32", **kwargs})
        self.vocabulary_size, self.width, self.num_layers, self.dropout = vocabulary_size, width, num_layers, dropout
        self.network = PredictionNetwork(vocabulary_size, width, num_layers, dropout, dtype="float32", name="network")
        self.drop = keras.layers.Dropout(dropout, dtype="float32", name="drop")
        self.head = keras.layers.Dense(vocabulary_size, dtype="float32", name="head")
        self.build((None, None))

    def build(self, labels_shape):
        self.network.build(labels_shape)
        self.head.build((None, None, self.width))
        self.built = True

    def call(self, labels, training=False):
        """[B, U] int32 -> log_probs [B, U+1, V] float32 of what follows the first 0 … U labels."""
        return self._log_probs(self.drop(self.network(labels, training=training), training=training))

    def negative_log_likelihood(self, labels, num_labels, ends, training=False):
        """-log P of each sentence, its end included where `ends`: [B, U], [B], [B] bool -> [B] float32."""
        log_probs = self(labels, training=training)  # [B, U+1, V]
        places = tf.range(tf.shape(log_probs)[1])
        is_label = places < num_labels[:, None]  # [B, U+1]
        targets = tf.where(is_label, tf.pad(labels, [[0, 0], [0, 1]]), END_ID)
        counts = is_label | ((places == num_labels[:, None]) & ends[:, None])
        # A product with one-hot rows, as in the embedding: its gradient is no scatter.
        found = tf.reduce_sum(tf.where(tf.one_hot(targets, self.vocabulary_size) > 0.0, log_probs, 0.0), 2)
        return -tf.reduce_sum(tf.where(counts, found, 0.0), 1)

    # === One label at a time, for search: the functions of a `decoding.fusion.LabelScorer` ===

    def initial(self, batch_size):
        """Before any label: log_probs [B, V] and the LSTM state."""
        return self.step(tf.fill([batch_size], START_ID), self.network.initial_state(batch_size))

    def step(self, label, state):
        """[B] int32, state -> log_probs [B, V] float32, state."""
        hidden, state = self.network.step(label, state)
        return self._log_probs(hidden), state

    def _log_probs(self, hidden):
        return tf.nn.log_softmax(self.head(hidden))

    def get_config(self):
        return {
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
        }
