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
      label_log_probs: [B, L] float32, what the transducer gave each label at the node that emitted it; 0 beyond.
    """

    labels: tf.Tensor
    num_labels: tf.Tensor
    scores: tf.Tensor
    frames: tf.Tensor
    label_log_probs: tf.Tensor


class NBest(NamedTuple):
    """The K best label sequences of each utterance of a batch, best first.

    Attributes:
      labels: [B, K, L] int32, blank-free; 0 beyond each length.
      num_labels: [B, K] int32.
      scores: [B, K] float32, log-probability summed over the alignments seen, with what a label scorer adds; -inf where
        there is no hypothesis.
      frames: [B, K, L] int32, encoder frame of each label on the best of these alignments; 0 beyond each length.
      label_log_probs: [B, K, L] float32, what the transducer gave each label at that node; 0 beyond each length.
    """

    labels: tf.Tensor
    num_labels: tf.Tensor
    scores: tf.Tensor
    frames: tf.Tensor
    label_log_probs: tf.Tensor

    @property
    def best(self) -> Hypotheses:
        """The first of each utterance."""
        return Hypotheses(*(values[:, 0] for values in self))
