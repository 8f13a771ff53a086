"""The transducer loss on stored logits, and the alignment it likes best."""

from collections.abc import Callable

import tensorflow as tf

from tf_rnnt_kd.losses import lattice


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


def node_arcs(logits: tf.Tensor, upcoming: tf.Tensor, blank_id: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Log-probabilities of the two arcs, and the log-normaliser, of each node.

    Args:
      logits: [B, T, U+1, V] float32.
      upcoming: [B, U+1] int32, from `next_labels`.
      blank_id: the blank's class.

    Returns:
      (log_blank, log_label, log_norm): [B, T, U+1] float32; log_label means nothing where `upcoming` is -1.
    """
    log_norm = log_sum_exp(logits)  # [B, T, U+1]
    index = tf.broadcast_to(tf.maximum(upcoming, 0)[:, None], tf.shape(log_norm))  # [B, T, U+1]
    log_label = tf.gather(logits, index, batch_dims=3) - log_norm
    return logits[..., blank_id] - log_norm, log_label, log_norm


def node_targets(upcoming: tf.Tensor, blank_id: int, vocabulary: int, blank: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Puts a weight for each node's two arcs on their classes.

    `weight(k) = blank [k = blank] + label [k = next]`. With the gradients of the two log-probabilities as weights, the
    gradient by the logits is `weight(k) - (blank + label) p(k)`.

    Args:
      upcoming: [B, U+1] int32, from `next_labels`.
      blank_id: the blank's class.
      vocabulary: V.
      blank: [B, T, U+1] float32.
      label: [B, T, U+1] float32.

    Returns:
      [B, T, U+1, V] float32.
    """
    is_label = tf.one_hot(upcoming, vocabulary)[:, None]  # [B, 1, U+1, V]
    return blank[..., None] * tf.one_hot(blank_id, vocabulary) + label[..., None] * is_label  # [B, T, U+1, V]


def log_sum_exp(logits: tf.Tensor) -> tf.Tensor:
    """The log-normaliser over the last axis; 0 for a node without any class, so that its arcs are -inf and not NaN."""
    log_norm = tf.reduce_logsumexp(logits, axis=-1)
    return tf.where(tf.math.is_inf(log_norm), 0.0, log_norm)


def softmax(logits: tf.Tensor, log_norm: tf.Tensor) -> tf.Tensor:
    """Probabilities of the last axis, given its `log_sum_exp`; all 0 for a node without any class."""
    return tf.exp(logits - log_norm[..., None])


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
    upcoming = next_labels(labels, num_labels)  # [B, U+1]

    @tf.custom_gradient
    def arcs(logits: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        log_blank, log_label, log_norm = node_arcs(logits, upcoming, blank_id)

        def gradient(blank: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
            _, frames, columns, vocabulary = tf.unstack(tf.shape(logits))
            label = tf.pad(label, [[0, 0], [0, 0], [0, 1]])  # [B, T, U+1]
            result = node_targets(upcoming, blank_id, vocabulary, blank, label)
            result -= (blank + label)[..., None] * softmax(logits, log_norm)  # [B, T, U+1, V]
            mask = lattice.node_mask(num_frames, num_labels, frames, columns - 1)
            return tf.where(mask[..., None], result, 0.0)  # padding may hold NaN

        return (log_blank, log_label[:, :, :-1]), gradient

    return arcs(tf.cast(logits, tf.float32))
