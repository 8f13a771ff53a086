"""What a loss needs from the logits of some nodes, wherever in a lattice they lie, and its gradient."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class NodeDivergence(NamedTuple):
    """A divergence of two distributions over the classes of a node, with gradient `P_student - target` by the logits.

    Attributes:
      value: (teacher [..., V], student [..., V], log_norm of the student [...], upcoming [...], blank_id) to [...].
      target: (teacher, student, upcoming, blank_id) to [..., V], what the student's softmax is drawn to.
    """

    value: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]
    target: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]


class NodeTask(NamedTuple):
    """What is asked of each node; the last two only where there is a teacher."""

    blank_id: int
    temperature: float = 1.0
    divergence: NodeDivergence | None = None


def node_values(
    task: NodeTask, logits: tf.Tensor, teacher: tf.Tensor | None, upcoming: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """What is kept of some nodes' logits.

    Args:
      task: what is asked.
      logits: [n, V] float32, the student's.
      teacher: [n, V] float32, the teacher's over the temperature, or None.
      upcoming: [n] int32, next labels, -1 for none.

    Returns:
      (log_blank, log_label, divergence, log-normaliser): [n] float32; log_label means nothing where `upcoming` is -1.
    """
    log_norm = log_sum_exp(logits)  # [n]
    blank = logits[:, task.blank_id] - log_norm
    label = tf.gather(logits, tf.maximum(upcoming, 0), batch_dims=1) - log_norm
    if teacher is None:
        return blank, label, tf.zeros_like(log_norm), log_norm
    return blank, label, node_divergence(task, logits, teacher, upcoming, log_norm), log_norm


def node_divergence(
    task: NodeTask, logits: tf.Tensor, teacher: tf.Tensor, upcoming: tf.Tensor, log_norm: tf.Tensor
) -> tf.Tensor:
    """The divergence [n] of `node_values`, for those who have the log-normaliser already."""
    tempered, tempered_norm = _tempered(task, logits, log_norm)
    return task.divergence.value(teacher, tempered, tempered_norm, upcoming, task.blank_id)


def node_gradient(
    task: NodeTask,
    logits: tf.Tensor,
    teacher: tf.Tensor | None,
    upcoming: tf.Tensor,
    log_norm: tf.Tensor,
    blank: tf.Tensor,
    label: tf.Tensor,
    divergence: tf.Tensor,
) -> tf.Tensor:
    """The gradient of `node_values` by the student's logits.

    `blank [k = blank] + label [k = next] - (blank + label) P(k) + divergence (P(k) - target(k)) / temperature`.

    Args:
      task: what was asked.
      logits: [n, V] float32, the student's.
      teacher: [n, V] float32, the teacher's over the temperature, or None.
      upcoming: [n] int32.
      log_norm: [n] float32, from `node_values`.
      blank: [n] float32, gradient by log_blank.
      label: [n] float32, gradient by log_label.
      divergence: [n] float32, gradient by the divergence.

    Returns:
      [n, V] float32.
    """
    label = tf.where(upcoming >= 0, label, 0.0)
    result = -(blank + label)[:, None] * softmax(logits, log_norm)  # [n, V]
    if teacher is not None:
        tempered, tempered_norm = _tempered(task, logits, log_norm)
        target = task.divergence.target(teacher, tempered, upcoming, task.blank_id)
        result += (divergence / task.temperature)[:, None] * (softmax(tempered, tempered_norm) - target)
    node = tf.range(tf.shape(blank)[0])
    arcs = [tf.fill(tf.shape(node), task.blank_id), tf.maximum(upcoming, 0)]
    index = tf.concat([tf.stack([node, arc], axis=1) for arc in arcs], axis=0)  # [2n, 2]
    return tf.tensor_scatter_nd_add(result, index, tf.concat([blank, label], axis=0))


def log_sum_exp(logits: tf.Tensor) -> tf.Tensor:
    """The log-normaliser over the last axis; 0 for a node without any class, so that its arcs are -inf and not NaN."""
    log_norm = tf.reduce_logsumexp(logits, axis=-1)
    return tf.where(tf.math.is_inf(log_norm), 0.0, log_norm)


def softmax(logits: tf.Tensor, log_norm: tf.Tensor) -> tf.Tensor:
    """Probabilities of the last axis, given its `log_sum_exp`; all 0 for a node without any class."""
    return tf.exp(logits - log_norm[..., None])


def _tempered(task: NodeTask, logits: tf.Tensor, log_norm: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if task.temperature == 1.0:
        return logits, log_norm
    logits /= task.temperature
    return logits, log_sum_exp(logits)
