"""What travels from the records to the loss."""

from typing import NamedTuple

import tensorflow as tf


class TeacherTargets(NamedTuple):
    """A teacher's lattice of each utterance, as its record carries it; the fields its codec does not use are empty.

    Attributes:
      encoded: [B, T, D] float, teacher frames as they enter the joint's tanh (codec `factored`; else [B, 0, 0]).
      predicted: [B, U+1, D] float, teacher label states likewise.
      logits: [B, T, U+1, V] float16 (codec `lattice`; else [B, 0, 0, 0]).
      weight: [B] float32, 1 where the utterance has a teacher, 0 where it has a human transcript only.
    """

    encoded: tf.Tensor
    predicted: tf.Tensor
    logits: tf.Tensor
    weight: tf.Tensor


class Batch(NamedTuple):
    """Utterances padded to one bucket's static shape.

    Attributes:
      features: [B, 4T, F] float32 log-mel frames, 10 ms.
      num_features: [B] int32.
      labels: [B, U] int32, blank-free.
      num_labels: [B] int32.
      teacher: `TeacherTargets`; its fields are empty and its weights 0 when no loss asks for a teacher.
      source: [B] int32, 0 for labelled and 1 for pseudo-labelled utterances.
    """

    features: tf.Tensor
    num_features: tf.Tensor
    labels: tf.Tensor
    num_labels: tf.Tensor
    teacher: TeacherTargets
    source: tf.Tensor
