"""The lattice pruned to a band: a cheap joint network finds the columns each frame needs, the real one sees no others.

Two passes, after Kuang et al. 2022. The first sums the lattice of a joint network that only adds, whose normalisers are
one matrix product; where its alignments pass, a band of a few columns a frame is laid. The second is the student's own
joint network inside that band, and, with a teacher, the KL there.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import distillation, lattice, transducer
from tf_rnnt_kd.losses.joint_tiles import JointInputs, cleaned
from tf_rnnt_kd.losses.nodes import NodeTask, node_gradient, node_values
from tf_rnnt_kd.losses.replicas import sum_over_replicas
from tf_rnnt_kd.masks import length_mask, zero_padding


class AdditiveJoint(NamedTuple):
    """A joint network without nonlinearity: `logits(t, u) = acoustic_t + linguistic_u`.

    Attributes:
      acoustic: [B, T, V] floating, from the encoder.
      linguistic: [B, U+1, V] floating, from the prediction network.
    """

    acoustic: tf.Tensor
    linguistic: tf.Tensor


class BandLosses(NamedTuple):
    """What `band_losses` returns.

    Attributes:
      transducer: [B] float32, in nats, of the alignments inside the band.
      kl: [B] float32, in nats, over the nodes of the band; 0 without a teacher.
      additive: [B] float32, in nats, the loss of the additive joint network on the whole lattice.
      starts: [B, T] int32, first column of the band in each frame.
      nodes: [B] float32, how many nodes of the lattice are in the band.
    """

    transducer: tf.Tensor
    kl: tf.Tensor
    additive: tf.Tensor
    starts: tf.Tensor
    nodes: tf.Tensor


def band_losses(
    student: JointInputs,
    teacher: JointInputs | None,
    additive: AdditiveJoint,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    columns: int = 5,
    linguistic_scale: float = 0.25,
    acoustic_scale: float = 0.0,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
    temperature: float = 1.0,
) -> BandLosses:
    """Transducer loss and lattice KL in a band of the lattice.

    Equal to `joint_tile_losses` when the band covers all columns. Memory O(B T columns V + B T U).

    Args:
      student: `JointInputs`; the gradient goes to its four tensors. Padding may hold anything.
      teacher: `JointInputs` of the same B, T, U and V, or None for no KL. It has no gradient.
      additive: the cheap joint network; the gradient of its own loss goes to its two tensors, the band has none.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      columns: width of the band.
      linguistic_scale: share of the additive network's label scores taken from `linguistic` alone, as in
        `additive_arcs`.
      acoustic_scale: share taken from `acoustic` alone.
      blank_id: the blank's class.
      fastemit_lambda: weight of FastEmit in the band.
      temperature: of the KL only.

    Returns:
      `BandLosses`; the transducer loss is inf where no alignment fits the band (always if U_b > (columns - 1) T_b).

    References:
      Pruned RNN-T, https://arxiv.org/abs/2206.13236.
    """
    num_frames, num_labels = tf.cast(num_frames, tf.int32), tf.cast(num_labels, tf.int32)
    scales = {"linguistic_scale": linguistic_scale, "acoustic_scale": acoustic_scale}
    arcs = additive_arcs(additive, labels, num_frames, num_labels, blank_id=blank_id, **scales)
    loss, occupancy = _loss_and_occupancy(*arcs, num_frames, num_labels)
    starts = band_starts(occupancy, num_frames, num_labels, columns)  # [B, T]
    column = starts[:, :, None] + tf.range(tf.minimum(columns, tf.shape(occupancy)[2]))  # [B, T, S]
    task = NodeTask(blank_id, temperature, distillation.LATTICE)
    log_blank, log_label, divergences = _band_nodes(task, student, teacher, labels, num_frames, num_labels, column)
    max_frames, max_columns = tf.shape(occupancy)[1], tf.shape(occupancy)[2]
    real = length_mask(num_frames, max_frames)[:, :, None] & (column <= num_labels[:, None, None])  # [B, T, S]
    arcs = _spread(log_blank, starts, max_columns), _spread(log_label, starts, max_columns)[:, :, :-1]
    banded = transducer.arc_loss(*arcs, num_frames, num_labels, fastemit_lambda=fastemit_lambda)
    kl = tf.reduce_sum(tf.where(real, divergences, 0.0), axis=[1, 2])
    return BandLosses(banded, kl, loss, starts, tf.reduce_sum(tf.cast(real, tf.float32), axis=[1, 2]))


def additive_arcs(
    additive: AdditiveJoint,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    linguistic_scale: float = 0.0,
    acoustic_scale: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The arcs of a lattice whose logits are sums, without making these.

    `log sum_k exp(a_t(k) + l_u(k)) = log(exp(l) exp(a)^T)` is one product. With scales, an arc's score is mixed with
    what each network says alone: `(1 - s_l - s_a) both + s_l linguistic + s_a acoustic`, the acoustic one under the
    mean distribution of the linguistic one, over the batch of all replicas. Memory O(B T U + B (T + U) V).

    Args:
      additive: the joint network; padding may hold anything.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer.
      num_labels: [B] integer.
      blank_id: the blank's class.
      linguistic_scale: s_l.
      acoustic_scale: s_a.

    Returns:
      (log_blank [B, T, U+1], log_label [B, T, U]) float32.
    """
    acoustic = zero_padding(tf.cast(additive.acoustic, tf.float32), num_frames)  # [B, T, V]
    linguistic = zero_padding(tf.cast(additive.linguistic, tf.float32), num_labels + 1)  # [B, U+1, V]
    # Classes are picked by products with one-hot rows: the gradient of a gather is a scatter, slower and unordered.
    acoustic, linguistic = (tf.maximum(values, lattice.LOG_ZERO) for values in (acoustic, linguistic))  # no inf times 0
    upcoming = tf.maximum(transducer.next_labels(labels, num_labels), 0)  # [B, U+1]
    picked = tf.one_hot(tf.pad(upcoming, [[0, 0], [0, 1]], constant_values=blank_id), tf.shape(linguistic)[2])

    def of_acoustic(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Blank [B, T, 1] and next label [B, T, U+1]."""
        scores = tf.matmul(values, picked, transpose_b=True)  # [B, T, U+2]
        return scores[:, :, -1:], scores[:, :, :-1]

    def of_linguistic(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Blank and next label [B, 1, U+1]."""
        return values[:, None, :, blank_id], tf.reduce_sum(values * picked[:, :-1], axis=2)[:, None]

    def mixed(
        acoustic: tuple[tf.Tensor, tf.Tensor], linguistic: tuple[tf.Tensor, tf.Tensor], norm: tf.Tensor
    ) -> list[tf.Tensor]:
        return [ours + theirs - norm for ours, theirs in zip(acoustic, linguistic, strict=True)]

    heard, expected = of_acoustic(acoustic), of_linguistic(linguistic)
    arcs = mixed(heard, expected, _additive_norm(acoustic, linguistic))
    scale = 1.0 - linguistic_scale - acoustic_scale
    if linguistic_scale:
        alone = mixed((0.0, 0.0), expected, tf.reduce_logsumexp(linguistic, axis=2)[:, None])
        arcs = [scale * arc + linguistic_scale * own for arc, own in zip(arcs, alone, strict=True)]
        scale = 1.0
    if acoustic_scale:
        mask = tf.cast(length_mask(num_labels + 1, tf.shape(linguistic)[1]), tf.float32)[:, :, None]
        total = tf.reduce_sum(mask * tf.nn.softmax(linguistic), axis=[0, 1])  # [V]
        total = sum_over_replicas(tf.concat([total, [tf.reduce_sum(mask)]], axis=0))
        mean = total[:-1] / total[-1]
        mean = tf.math.log(mean + 1e-30) + tf.zeros_like(linguistic)
        alone = mixed(heard, of_linguistic(mean), tf.reduce_logsumexp(acoustic + mean[:, :1], axis=2)[:, :, None])
        arcs = [scale * arc + acoustic_scale * own for arc, own in zip(arcs, alone, strict=True)]
    return arcs[0], arcs[1][:, :, :-1]


def _additive_norm(acoustic: tf.Tensor, linguistic: tf.Tensor) -> tf.Tensor:
    """Log-normalisers [B, T, U+1] of all sums of a row [V] of one and a row of the other."""
    tops = [tf.stop_gradient(tf.reduce_max(values, axis=2)) for values in (acoustic, linguistic)]
    weights = [tf.exp(values - top[:, :, None]) for values, top in zip((acoustic, linguistic), tops, strict=True)]
    product = tf.matmul(*weights, transpose_b=True)  # [B, T, U+1]
    return tf.math.log(product + 1e-30) + tops[0][:, :, None] + tops[1][:, None]


def band_starts(occupancy: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor, columns: int) -> tf.Tensor:
    """The first column of the band in each frame: where its `columns` columns hold most of the occupancy.

    Then so that alignments fit: 0 at first, never falling, rising by less than `columns` a frame, and in the last frame
    ending with the last column.

    Args:
      occupancy: [B, T, U+1] float32, probability that an alignment visits the node.
      num_frames: [B] integer.
      num_labels: [B] integer.
      columns: width of the band.

    Returns:
      [B, T] int32, without gradient.

    References:
      Pruned RNN-T, https://arxiv.org/abs/2206.13236, section 3.2.
    """
    max_frames, max_columns = tf.shape(occupancy)[1], tf.shape(occupancy)[2]
    last = tf.maximum(tf.cast(num_labels, tf.int32) + 1 - columns, 0)[:, None]  # [B, 1]
    before = tf.pad(tf.cumsum(occupancy, axis=2), [[0, 0], [0, 0], [1, 0]])  # [B, T, U+2]
    start = tf.range(max_columns)
    mass = tf.gather(before, tf.minimum(start + columns, max_columns), axis=2) - before[:, :, :-1]  # [B, T, U+1]
    mass = tf.where(start <= last[:, :, None], mass, -1.0)
    starts = tf.argmax(mass, axis=2, output_type=tf.int32)  # [B, T]
    frame = tf.range(max_frames)
    starts = tf.where(frame >= tf.cast(num_frames, tf.int32)[:, None] - 1, last, starts)
    steepest = (columns - 1) * frame
    return steepest - tf.maximum(_least_to_come(steepest - _least_to_come(starts)), 0)


def _least_to_come(values: tf.Tensor) -> tf.Tensor:
    """The least of later positions, itself included, by doubling: [B, T] to [B, T]."""
    length = tf.shape(values)[1]

    def body(step: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        later = tf.gather(values, tf.minimum(tf.range(length) + step, length - 1), axis=1)
        return 2 * step, tf.minimum(values, later)

    return tf.while_loop(lambda step, _: step < length, body, (1, values))[1]


def _loss_and_occupancy(
    log_blank: tf.Tensor, log_label: tf.Tensor, num_frames: tf.Tensor, num_labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The transducer loss [B] and, without gradient, the node occupancies [B, T, U+1], which its gradient needs too."""

    @tf.custom_gradient
    def loss(log_blank: tf.Tensor, log_label: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        occupancy, blank, label, log_likelihood = lattice.occupancies(log_blank, log_label, num_frames, num_labels)

        def gradient(upstream: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return -upstream[:, None, None] * blank, -upstream[:, None, None] * label

        return (-log_likelihood, occupancy), gradient

    return loss(log_blank, log_label)


def _band_nodes(
    task: NodeTask,
    student: JointInputs,
    teacher: JointInputs | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    column: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """log_blank, log_label and divergence of the band's nodes, [B, T, S] each."""
    upcoming = tf.gather(transducer.next_labels(labels, num_labels), column, batch_dims=1)  # [B, T, S]
    upcoming = tf.reshape(upcoming, [-1])
    student_logits = _band_logits(student, num_frames, num_labels, column)  # [BTS, V]
    teacher_logits = None
    if teacher is not None:
        teacher_logits = _band_logits(JointInputs(*map(tf.stop_gradient, teacher)), num_frames, num_labels, column)
        teacher_logits = tf.stop_gradient(teacher_logits / task.temperature)

    @tf.custom_gradient
    def nodes(logits: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        values = node_values(task, logits, teacher_logits, upcoming)

        def gradient(*upstream: tf.Tensor) -> tf.Tensor:
            upstream = [tf.reshape(values, [-1]) for values in upstream]
            return node_gradient(task, logits, teacher_logits, upcoming, *upstream)

        return tuple(tf.reshape(value, tf.shape(column)) for value in values), gradient

    return nodes(student_logits)


def _band_logits(inputs: JointInputs, num_frames: tf.Tensor, num_labels: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
    encoded, predicted, kernel, bias = cleaned(inputs, num_frames, num_labels)
    hidden = tf.tanh(encoded[:, :, None] + tf.gather(predicted, column, batch_dims=1))  # [B, T, S, D]
    return tf.nn.bias_add(tf.matmul(tf.reshape(hidden, [-1, tf.shape(hidden)[3]]), kernel), bias)  # [BTS, V]


def _spread(band: tf.Tensor, starts: tf.Tensor, max_columns: tf.Tensor) -> tf.Tensor:
    """A band [B, T, S] in its place in the lattice [B, T, U+1], `LOG_ZERO` around it."""

    @tf.custom_gradient
    def spread(band: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        width = tf.shape(band)[2]
        offset = tf.range(max_columns) - starts[:, :, None]  # [B, T, U+1]
        inside = (offset >= 0) & (offset < width)
        placed = tf.gather(band, tf.clip_by_value(offset, 0, width - 1), batch_dims=2)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.gather(upstream, starts[:, :, None] + tf.range(width), batch_dims=2)

        return tf.where(inside, placed, lattice.LOG_ZERO), gradient

    return spread(band)
