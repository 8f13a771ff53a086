"""What a loss needs from the logits of some nodes, wherever in a lattice they lie, and its gradient."""

from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import distillation, transducer


class NodeTask(NamedTuple):
    """What is asked of each node."""

    blank_id: int
    temperature: float
    divergence: distillation.NodeDivergence


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
    log_norm = transducer.log_sum_exp(logits)  # [n]
    blank = logits[:, task.blank_id] - log_norm
    label = tf.gather(logits, tf.maximum(upcoming, 0), batch_dims=1) - log_norm
    if teacher is None:
        return blank, label, tf.zeros_like(log_norm), log_norm
    tempered, tempered_norm = _tempered(task, logits, log_norm)
    return blank, label, task.divergence.value(teacher, tempered, tempered_norm, upcoming, task.blank_id), log_norm


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
    result = -(blank + label)[:, None] * transducer.softmax(logits, log_norm)  # [n, V]
    if teacher is not None:
        tempered, tempered_norm = _tempered(task, logits, log_norm)
        target = task.divergence.target(teacher, tempered, upcoming, task.blank_id)
        result += (divergence / task.temperature)[:, None] * (transducer.softmax(tempered, tempered_norm) - target)
    node = tf.range(tf.shape(blank)[0])
    arcs = [tf.fill(tf.shape(node), task.blank_id), tf.maximum(upcoming, 0)]
    index = tf.concat([tf.stack([node, arc], axis=1) for arc in arcs], axis=0)  # [2n, 2]
    return tf.tensor_scatter_nd_add(result, index, tf.concat([blank, label], axis=0))


def _tempered(task: NodeTask, logits: tf.Tensor, log_norm: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if task.temperature == 1.0:
        return logits, log_norm
    logits /= task.temperature
    return logits, transducer.log_sum_exp(logits)
