"""What a loss needs from the logits of some nodes, wherever in a lattice they lie, and its gradient."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class NodeDivergence(NamedTuple):
    """A divergence of two distributions over the classes of a node, with gradient `P_student - target` by the logits.

    Attributes:
      value: (teacher [..., V], student [..., V], upcoming [...], blank_id) to [...].
      target: (teacher, student, upcoming, blank_id) to [..., V], what the student's softmax is drawn to.
    """

    value: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]
    target: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]


class NodeTask(NamedTuple):
    """What is asked of each node; the last two only where there is a teacher."""

    blank_id: int
    temperature: float = 1.0
    divergence: NodeDivergence | None = None


def node_values(
    task: NodeTask, logits: tf.Tensor, teacher: tf.Tensor | None, upcoming: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What is kept of some nodes' logits.

    Args:
      task: what is asked.
      logits: [n, V] float32, the student's.
      teacher: [n, V] float32, the teacher's over the temperature, or None.
      upcoming: [n] int32, next labels, -1 for none.

    Returns:
      (log_blank, log_label, divergence): [n] float32; log_label means nothing where `upcoming` is -1.
    """
    log_norm = log_sum_exp(logits)  # [n]
    blank = logits[:, task.blank_id] - log_norm
    label = tf.gather(logits, tf.maximum(upcoming, 0), batch_dims=1) - log_norm
    nothing = tf.zeros_like(log_norm)
    return blank, label, nothing if teacher is None else node_divergence(task, logits, teacher, upcoming)


def node_divergence(task: NodeTask, logits: tf.Tensor, teacher: tf.Tensor, upcoming: tf.Tensor) -> tf.Tensor:
    """The divergence [n] of `node_values` alone."""
    return task.divergence.value(teacher, _tempered(task, logits), upcoming, task.blank_id)


def node_gradient(
    task: NodeTask,
    logits: tf.Tensor,
    teacher: tf.Tensor | None,
    upcoming: tf.Tensor,
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
      blank: [n] float32, gradient by log_blank.
      label: [n] float32, gradient by log_label.
      divergence: [n] float32, gradient by the divergence.

    Returns:
      [n, V] float32.
    """
    label = tf.where(upcoming >= 0, label, 0.0)
    pull = -(blank + label)
    if teacher is None:
        result = pull[:, None] * softmax(logits)  # [n, V]
    else:
        tempered, divergence = _tempered(task, logits), divergence / task.temperature
        target = task.divergence.target(teacher, tempered, upcoming, task.blank_id)
        if tempered is logits:  # one distribution in place of two
            result = (pull + divergence)[:, None] * softmax(logits)
        else:
            result = pull[:, None] * softmax(logits) + divergence[:, None] * softmax(tempered)
        result -= divergence[:, None] * target
    node = tf.range(tf.shape(blank)[0])
    arcs = [tf.fill(tf.shape(node), task.blank_id), tf.maximum(upcoming, 0)]
    index = tf.concat([tf.stack([node, arc], axis=1) for arc in arcs], axis=0)  # [2n, 2]
    return tf.tensor_scatter_nd_add(result, index, tf.concat([blank, label], axis=0))


def log_sum_exp(logits: tf.Tensor) -> tf.Tensor:
    """The log-normaliser over the last axis; 0 for a node without any class, so that its arcs are -inf and not NaN.

    `max logits - log max P`: devices have a kernel for P, the softmax, and who needs both gets one from the other.
    """
    largest = tf.reduce_max(logits, axis=-1)
    log_norm = largest - tf.math.log(tf.reduce_max(tf.nn.softmax(logits), axis=-1))
    return tf.where(_is_none(largest), 0.0, log_norm)


def softmax(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities of the last axis; all 0 for a node without any class."""
    return tf.where(_is_none(tf.reduce_max(logits, axis=-1, keepdims=True)), 0.0, tf.nn.softmax(logits))


def _is_none(largest: tf.Tensor) -> tf.Tensor:
    """Whether all classes are excluded; a logit of +inf is an error that has to stay visible, as NaN."""
    return largest == float("-inf")


def _tempered(task: NodeTask, logits: tf.Tensor) -> tf.Tensor:
    return logits if task.temperature == 1.0 else logits / task.temperature
