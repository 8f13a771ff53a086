"""What a search returns."""

from typing import NamedTuple

import tensorflow as tf


class Hypotheses(NamedTuple):
    """One label sequence for each utterance of a batch, and the alignment it was found on.

    Attributes:
      labels: [B, L] int32, blank-free; 0 beyond each length.
      num_labels: [B] int32.
      scores: [B] float32, log-probability of the path (its labels and its blanks).
      frames: [B, L] int32, encoder frame on which each label was emitted; 0 beyond each length.
    """

    labels: tf.Tensor
    num_labels: tf.Tensor
    scores: tf.Tensor
    frames: tf.Tensor
