"""Hard targets: a teacher's transcripts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.decoding.greedy import greedy_search
from tf_rnnt_kd.features.log_mel import NUM_MEL_BINS, log_mel, num_log_mel_frames
from tf_rnnt_kd.masks import zero_padding
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
        num_features = num_log_mel_frames(num_samples)
        features = zero_padding(log_mel(samples), num_features)  # [B, N, F]
        features = tf.pad(features, [[0, 0], [0, -tf.shape(features)[1] % 4], [0, 0]])  # [B, 4T, F]
        features = tf.ensure_shape(features, [None, None, NUM_MEL_BINS])
        encoded, num_frames = model.encode(features, num_features)
        found = greedy_search(
            encoded,
            num_frames,
            join=model.join,
            initial_prediction=model.initial_prediction,
            step_prediction=model.step_prediction,
            blank_id=model.blank_id,
        )
        labels = found.labels[:, : tf.reduce_max(found.num_labels)]  # [B, U]
        predicted = model.predict_labels(labels)
        return Labelled(encoded, num_frames, predicted, labels, found.num_labels, found.scores)

    def run(audio):
        num_samples = np.array([len(samples) for samples in audio], np.int32)
        padded = np.zeros([len(audio), max(1, num_samples.max())], np.float32)
        for row, samples in zip(padded, audio, strict=True):
            row[: len(samples)] = samples / 32768.0
        return Labelled(*(value.numpy() for value in label(padded, num_samples)))

    return run
