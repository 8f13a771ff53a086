"""Hard targets: a teacher's transcripts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.decoding.offline import pad_audio, recognize
from tf_rnnt_kd.models.transducer import Transducer


class Labelled(NamedTuple):
    """What the teacher makes of a batch of audio, as NumPy arrays.

    Attributes:
      encoded: [B, T, D] float, as it enters the joint's tanh.
      num_frames: [B] int32.
      predicted: [B, U+1, D] float, the prediction network's states on the hypotheses, likewise.
      labels: [B, U] int32, the hypotheses, U that of the longest.
      num_labels: [B] int32.
      scores: [B] float32, log-probability of the path each hypothesis was found on.
    """

    encoded: np.ndarray
    num_frames: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    num_labels: np.ndarray
    scores: np.ndarray


def make_labeller(model: Transducer) -> Callable[[Sequence[np.ndarray]], Labelled]:
    """Returns a function from audio (a list of int16 arrays, 16 kHz) to `Labelled`: greedy search on clean features."""

    @tf.function(input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int32)], autograph=False)
    def label(samples, num_samples):
        recognized = recognize(model, samples, num_samples)
        encoded, num_frames, found = recognized.encoded, recognized.num_frames, recognized.hypotheses
        labels = found.labels[:, : tf.reduce_max(found.num_labels)]  # [B, U]
        predicted = model.predict_labels(labels)
        return Labelled(encoded, num_frames, predicted, labels, found.num_labels, found.scores)

    return lambda audio: Labelled(*(value.numpy() for value in label(*pad_audio(audio))))
