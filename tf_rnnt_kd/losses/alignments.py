"""Distances between two distributions over the alignments of an utterance, from the arcs of their lattices."""

from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import lattice
from tf_rnnt_kd.losses.transducer import arc_loss


class Arcs(NamedTuple):
    """The log weights of a lattice.

    Attributes:
      log_blank: [B, T, U+1] float32.
      log_label: [B, T, U] float32.
    """

    log_blank: tf.Tensor
    log_label: tf.Tensor


def alignment_entropy(arcs: Arcs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> tf.Tensor:
    """How undecided a lattice is between the alignments of its labels.

    `H = -sum_pi p(pi) log p(pi)`, p(pi) the weight of an alignment divided by their sum Z, computed as
    `log Z - E[log weight]`. Memory O(B T U).

    Args:
      arcs: of one lattice.
      num_frames: [B] integer.
      num_labels: [B] integer.

    Returns:
      [B] float32, in nats; 0 where no alignment exists.

    References:
      Entropy semiring, ICLR 2023, which computes the same by its dual component in log space.
    """
    mean = lattice.expected_cost(*arcs, *arcs, num_frames, num_labels)
    return _log_sum(arcs, num_frames, num_labels)[0] - mean


def sequence_kl(teacher: Arcs, student: Arcs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> tf.Tensor:
    """The KL divergence from the teacher's to the student's distribution over the alignments of the same labels.

    `sum_pi p(pi) log(p(pi) / q(pi))`, both divided by their sums, computed as
    `E_p[log weight_p - log weight_q] - log Z_p + log Z_q`. The gradient by the student's arcs is the difference of the
    two posteriors; the teacher has none. Memory O(B T U).

    Args:
      teacher: arcs of the teacher's lattice.
      student: arcs of the student's lattice, of the same shapes.
      num_frames: [B] integer.
      num_labels: [B] integer.

    Returns:
      [B] float32, in nats; inf where the student excludes what more than 1e-18 of the teacher's alignments take, 0
      where the teacher has none.

    References:
      Entropy semiring, ICLR 2023, eq. 13, where the weights are not divided by their sums.
    """
    teacher = Arcs(*map(tf.stop_gradient, teacher))
    costs = [ours - theirs for ours, theirs in zip(teacher, student, strict=True)]
    mean = lattice.expected_cost(*teacher, *costs, num_frames, num_labels)
    (ours, _), (theirs, possible) = (_log_sum(arcs, num_frames, num_labels) for arcs in (student, teacher))
    kl = tf.where(tf.math.is_inf(mean), mean, mean + ours - theirs)
    return tf.where(possible, kl, 0.0)


def full_sum_distance(teacher: Arcs, student: Arcs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> tf.Tensor:
    """How far apart teacher and student put the probability of the labels, whatever their alignments.

    `|log P_teacher(labels) - log P_student(labels)|`. The teacher has no gradient. Memory O(B T U).

    Args:
      teacher: arcs of the teacher's lattice.
      student: arcs of the student's lattice; T may differ from the teacher's if `num_frames` fits both.
      num_frames: [B] integer.
      num_labels: [B] integer.

    Returns:
      [B] float32, in nats; 0 where either has no alignment.

    References:
      Full-sum distillation, https://arxiv.org/abs/2303.05958; that its distance is L1 is not certain.
    """
    teacher = Arcs(*map(tf.stop_gradient, teacher))
    (ours, reachable), (theirs, possible) = (_log_sum(arcs, num_frames, num_labels) for arcs in (student, teacher))
    return tf.where(reachable & possible, tf.abs(theirs - ours), 0.0)


def _log_sum(arcs: Arcs, num_frames: tf.Tensor, num_labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(log Z [B], 0 where no alignment exists; whether one does [B])."""
    loss = arc_loss(*arcs, num_frames, num_labels)
    possible = tf.math.is_finite(loss)
    return tf.where(possible, -loss, 0.0), possible
