"""How far a student's distribution is from a teacher's, node by node over the lattice."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import tensorflow as tf

from tf_rnnt_kd.losses.lattice import node_mask
from tf_rnnt_kd.losses.nodes import NodeDivergence, log_sum_exp, softmax
from tf_rnnt_kd.losses.transducer import next_labels


def lattice_kl(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    temperature: float = 1.0,
) -> tf.Tensor:
    """The KL divergence from teacher to student, summed over the nodes of the lattice.

    `sum over t < T_b, u <= U_b of KL(softmax(teacher / temperature) || softmax(student / temperature))`. It is not
    multiplied by temperature^2. A class the teacher excludes adds nothing. The gradient by the student's logits is
    `(P_student - P_teacher) / temperature` at each node; the teacher has none.

    Args:
      teacher_logits: [B, T, U+1, V] floating; padding may hold anything.
      student_logits: [B, T, U+1, V] floating.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      temperature: what both are divided by.

    Returns:
      [B] float32, in nats; inf where the student excludes a class that the teacher does not.

    References:
      Entropy semiring, ICLR 2023, eq. 12; https://arxiv.org/abs/2210.05793.
    """
    labels = tf.zeros(tf.shape(student_logits)[0:3:2] - [0, 1], tf.int32)  # [B, U], which the full divergence ignores
    return _summed(LATTICE, teacher_logits, student_logits, labels, num_frames, num_labels, 0, temperature)


def collapsed_lattice_kl(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    temperature: float = 1.0,
) -> tf.Tensor:
    """The KL divergence of three classes, blank, the next label and the rest, summed over the nodes of the lattice.

    The last column has no next label and so two classes. Never more than `lattice_kl`.

    Args:
      teacher_logits: [B, T, U+1, V] floating; padding may hold anything.
      student_logits: [B, T, U+1, V] floating.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.
      temperature: what both are divided by before classes are put together.

    Returns:
      [B] float32, in nats; inf where the student excludes a class that the teacher does not.

    References:
      Panchapagesan et al. 2021, https://arxiv.org/abs/2011.06110.
    """
    return _summed(COLLAPSED, teacher_logits, student_logits, labels, num_frames, num_labels, blank_id, temperature)


def _summed(
    divergence: NodeDivergence,
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    blank_id: int,
    temperature: float,
) -> tf.Tensor:
    upcoming = tf.broadcast_to(next_labels(labels, num_labels)[:, None], tf.shape(student_logits)[:3])  # [B, T, U+1]
    teacher = tf.stop_gradient(tf.cast(teacher_logits, tf.float32) / temperature)

    @tf.custom_gradient
    def total(student: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        mask = node_mask(num_frames, num_labels, tf.shape(student)[1], tf.shape(student)[2] - 1)
        nodes = divergence.value(teacher, student, upcoming, blank_id)  # [B, T, U+1]

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            gap = softmax(student) - divergence.target(teacher, student, upcoming, blank_id)
            return tf.where(mask[..., None], upstream[:, None, None, None] * gap, 0.0)

        return tf.reduce_sum(tf.where(mask, nodes, 0.0), axis=[1, 2]), gradient

    return total(tf.cast(student_logits, tf.float32) / temperature)


def _kl(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    # multiply_no_nan: a class at -inf in the teacher counts 0, whatever the student says.
    gap = tf.math.multiply_no_nan(teacher - student, softmax(teacher))
    return tf.reduce_sum(gap, axis=-1) - log_sum_exp(teacher) + log_sum_exp(student)


def _lattice_value(teacher: tf.Tensor, student: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tf.Tensor:
    del upcoming, blank_id
    return _kl(teacher, student)


def _lattice_target(teacher: tf.Tensor, student: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tf.Tensor:
    del student, upcoming, blank_id
    return softmax(teacher)


def _collapsed_value(teacher: tf.Tensor, student: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tf.Tensor:
    return _kl(_collapse(teacher, upcoming, blank_id), _collapse(student, upcoming, blank_id))


def _collapsed_target(teacher: tf.Tensor, student: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tf.Tensor:
    # P_teacher(class of k) P_student(k | class of k)
    classes = _collapse(teacher, upcoming, blank_id)  # [..., 3]
    blank, label, rest = tf.split(softmax(classes), 3, axis=-1)  # [..., 1]
    others = tf.where(_is_rest(student, upcoming, blank_id), student, float("-inf"))  # [..., V]
    vocabulary = tf.shape(student)[-1]
    result = rest * softmax(others) + blank * tf.one_hot(blank_id, vocabulary)
    return result + label * tf.one_hot(upcoming, vocabulary)  # [..., V]


def _collapse(logits: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tf.Tensor:
    """Logits of blank, next label and rest: [..., 3]."""
    label = tf.gather(logits, tf.maximum(upcoming, 0), batch_dims=upcoming.shape.rank)
    label = tf.where(upcoming >= 0, label, float("-inf"))
    others = tf.where(_is_rest(logits, upcoming, blank_id), logits, float("-inf"))  # [..., V]
    # Taking the two from 1 instead would lose a small rest to rounding.
    return tf.stack([logits[..., blank_id], label, tf.reduce_logsumexp(others, axis=-1)], axis=-1)  # [..., 3]


def _is_rest(logits: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tf.Tensor:
    classes = tf.range(tf.shape(logits)[-1])  # [V]
    return (classes != blank_id) & (classes != upcoming[..., None])  # [..., V]


LATTICE = NodeDivergence(_lattice_value, _lattice_target)
COLLAPSED = NodeDivergence(_collapsed_value, _collapsed_target)
DIVERGENCES: Mapping[str, NodeDivergence] = MappingProxyType({"lattice": LATTICE, "collapsed": COLLAPSED})
