"""The transducer loss on stored logits, and the alignment it likes best."""

from collections.abc import Callable

import tensorflow as tf

from tf_rnnt_kd.losses import lattice
from tf_rnnt_kd.losses.nodes import NodeTask, node_gradient, node_values


def transducer_loss(
    logits: tf.Tensor,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
) -> tf.Tensor:
    """The negative log-probability of the labels, summed over all alignments.

    `-log P(labels | logits)`, with P the sum over alignments of the product of softmax(logits) along them.
    FastEmit multiplies the gradient of every label arc by (1 + lambda) and changes nothing else, the value included.
    The gradient needs as much memory again as the logits.

    Args:
      logits: [B, T, U+1, V] floating, unnormalised; classes may be -inf, and padding may hold anything.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.
      fastemit_lambda: weight of FastEmit, 0 for none.

    Returns:
      [B] float32, in nats; inf where no alignment exists (the gradient is 0 there).

    References:
      Graves 2012, https://arxiv.org/abs/1211.3711; FastEmit, https://arxiv.org/abs/2010.11148.
    """
    log_blank, log_label = log_arcs(logits, labels, num_frames, num_labels, blank_id)
    return arc_loss(log_blank, log_label, num_frames, num_labels, fastemit_lambda=fastemit_lambda)


def best_alignment(
    logits: tf.Tensor, labels: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor, *, blank_id: int = 0
) -> tuple[tf.Tensor, tf.Tensor]:
    """The most probable alignment of the labels (Viterbi); no gradient.

    Args:
      logits: [B, T, U+1, V] floating, unnormalised.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.

    Returns:
      (frames [B, U] int32, the frame that emits each label, -1 in padding and where no alignment exists;
      score [B] float32, the alignment's log-probability in nats, -inf there).
    """
    log_blank, log_label = log_arcs(logits, labels, num_frames, num_labels, blank_id)
    return lattice.best_path(tf.stop_gradient(log_blank), tf.stop_gradient(log_label), num_frames, num_labels)


def arc_loss(
    log_blank: tf.Tensor,
    log_label: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    fastemit_lambda: float = 0.0,
) -> tf.Tensor:
    """The transducer loss of the lattice's two arcs; the backward recursion runs only if a gradient is asked for.

    `d loss / d arc = -posterior(arc)`, times (1 + lambda) for a label.

    Args:
      log_blank: [B, T, U+1] float32.
      log_label: [B, T, U] float32.
      num_frames: [B] integer.
      num_labels: [B] integer.
      fastemit_lambda: weight of FastEmit.

    Returns:
      [B] float32, inf where no alignment exists.
    """

    @tf.custom_gradient
    def loss(log_blank: tf.Tensor, log_label: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        forward = lattice.sum_alignments(log_blank, log_label, num_frames, num_labels)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            blank, label = lattice.arc_posteriors(forward)
            upstream = upstream[:, None, None]
            return -upstream * blank, -upstream * (1.0 + fastemit_lambda) * label

        return -forward.log_likelihood, gradient

    return loss(log_blank, log_label)


def next_labels(labels: tf.Tensor, num_labels: tf.Tensor) -> tf.Tensor:
    """The label each lattice column emits, -1 where there is none: [B, U+1] int32."""
    labels = tf.pad(tf.cast(labels, tf.int32), [[0, 0], [0, 1]])  # [B, U+1]
    return tf.where(lattice.length_mask(num_labels, tf.shape(labels)[1]), labels, -1)


def log_arcs(
    logits: tf.Tensor, labels: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor, blank_id: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Log-probabilities of the two arcs of each node.

    Args:
      logits: [B, T, U+1, V] floating, unnormalised; padding may hold anything.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer.
      num_labels: [B] integer.
      blank_id: the blank's class.

    Returns:
      (log_blank [B, T, U+1], log_label [B, T, U]) float32.
    """
    logits = tf.cast(logits, tf.float32)
    shape = tf.shape(logits)
    _, frames, columns, vocabulary = tf.unstack(shape)
    upcoming = tf.broadcast_to(next_labels(labels, num_labels)[:, None], shape[:3])  # [B, T, U+1]
    upcoming = tf.reshape(upcoming, [-1])  # [n], n = B T (U+1)
    task = NodeTask(blank_id)

    @tf.custom_gradient
    def arcs(logits: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        log_blank, log_label, divergence = node_values(task, logits, None, upcoming)  # [n]

        def gradient(blank: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
            result = node_gradient(task, logits, None, upcoming, blank, label, divergence)
            mask = lattice.node_mask(num_frames, num_labels, frames, columns - 1)
            return tf.where(tf.reshape(mask, [-1, 1]), result, 0.0)  # padding may hold NaN

        return (log_blank, log_label), gradient

    log_blank, log_label = (tf.reshape(arc, shape[:3]) for arc in arcs(tf.reshape(logits, [-1, vocabulary])))
    return log_blank, log_label[:, :, :-1]
