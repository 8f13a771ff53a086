"""Step functions for tests of the search: one that spells a script, one that is random."""

import numpy as np
import tensorflow as tf


def scripted(script, num_frames):
    """A network that emits script[frame] on that frame, given one-hot frames; and its alphabet, blank first."""
    word = "".join(script.values())
    alphabet = [""] + sorted(set(word))
    logits = np.zeros([num_frames, len(word) + 1, len(alphabet)], np.float32)  # [T, U+1, V]
    logits[..., 0] = 5.0
    position = 0
    for frame, letters in script.items():
        for letter in letters:
            logits[frame, position, alphabet.index(letter)] = 10.0
            position += 1

    def join(encoded, predicted):
        predicted = tf.broadcast_to(predicted, tf.concat([tf.shape(encoded)[:-1], tf.shape(predicted)[-1:]], 0))
        return tf.einsum("bnt,bnu,tuv->bnv", encoded, predicted, logits)

    def step(label, state):
        assert label.dtype == tf.int32
        position = state[0] + 1
        return tf.one_hot(position[:, 0], len(word) + 1), (position,)

    def initial(batch_size):
        position = tf.zeros([batch_size, 1], tf.int32)
        return tf.one_hot(position[:, 0], len(word) + 1), (position,)

    return {"join": join, "initial_prediction": initial, "step_prediction": step}, alphabet


class Random:
    """A random network with two states; blank wins about half of the nodes."""

    width, vocabulary_size = 6, 5

    def __init__(self, seed, blank_id=0, dtype=tf.float32, blank_bias=2.0):
        self._random = np.random.default_rng(seed)
        draw = self._random.standard_normal
        self._embedding = draw([self.vocabulary_size, self.width]).astype("float32")
        self._recurrent = draw([self.width, self.width]).astype("float32")
        self._kernel = 2 * draw([self.width, self.vocabulary_size]).astype("float32")
        self._bias = np.where(np.arange(self.vocabulary_size) == blank_id, blank_bias, 0.0).astype("float32")
        self._dtype = dtype
        self.search = {
            "join": self._join,
            "initial_prediction": self._initial,
            "step_prediction": self._step,
            "blank_id": blank_id,
        }
        self.numpy_search = {
            "join": lambda encoded, predicted: np.tanh(encoded + predicted) @ self._kernel + self._bias,
            "predicted": np.zeros(self.width),
            "state": (np.zeros(self.width), 0),
            "step_prediction": self._numpy_step,
            "blank_id": blank_id,
        }

    def encoded(self, batch_size, num_frames):
        return self._random.standard_normal([batch_size, num_frames, self.width]).astype("float32")

    def _join(self, encoded, predicted):
        return tf.tanh(encoded + predicted) @ tf.cast(self._kernel, self._dtype) + tf.cast(self._bias, self._dtype)

    def _initial(self, batch_size):
        zeros = tf.zeros([batch_size, self.width], self._dtype)
        return zeros, (zeros, tf.zeros([batch_size], self._dtype))

    def _step(self, label, state):
        mixed = tf.gather(tf.cast(self._embedding, self._dtype), label) + state[0] @ tf.cast(
            self._recurrent, self._dtype
        )
        hidden, count = tf.tanh(mixed), state[1] + 1
        return hidden * (1 + 0.1 * count[:, None]), (hidden, count)

    def _numpy_step(self, label, state):
        hidden, count = np.tanh(self._embedding[label] + state[0] @ self._recurrent), state[1] + 1
        return hidden * (1 + 0.1 * count), (hidden, count)
