"""What a student's joint network learns from: its labels, and a teacher's lattice in one of several readings."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import alignments, transducer
from tf_rnnt_kd.losses.alignments import Arcs
from tf_rnnt_kd.losses.joint_passes import ArcTerms, joint_total
from tf_rnnt_kd.losses.joint_tiles import JointInputs
from tf_rnnt_kd.losses.readings import Teacher, Utterances, read_teacher


class JointLosses(NamedTuple):
    """What `joint_losses` returns.

    Attributes:
      transducer: [B] float32, in nats.
      kl: [B] float32, in nats, 0 without a teacher.
      arcs: the student's lattice, with gradient.
    """

    transducer: tf.Tensor
    kl: tf.Tensor
    arcs: Arcs


def joint_tile_losses(
    student: JointInputs,
    teacher: Teacher | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    **options: object,
) -> tuple[tf.Tensor, tf.Tensor]:
    """(transducer [B], kl [B]) of `joint_losses`, which lists the options."""
    return joint_losses(student, teacher, labels, num_frames, num_labels, **options)[:2]


def joint_losses(
    student: JointInputs,
    teacher: Teacher | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    *,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
    temperature: float = 1.0,
    teacher_delay: int | Sequence[int] = 0,
    frames_per_tile: int | None = None,
    product_dtype: str = "float32",
    kl: str = "lattice",
    kl_mean: bool = False,
    band_columns: int = 5,
) -> JointLosses:
    """The transducer loss of a student and its distance from a teacher, without storing logits.

    `kl` names the distance. Either node by node, `sum over nodes of weight(t, u) divergence(t, u)`:

    - `lattice`: all V classes, weight 1;
    - `collapsed`: blank, next label and rest, weight 1;
    - `teacher_occupancy`: all classes, weight the probability that the teacher's alignments visit the node;
    - `student_occupancy`: the student's instead, without gradient;
    - `best_path`: weight 1 on the nodes of the teacher's best alignment, else 0;
    - `band`: weight 1 on the `band_columns` columns of each frame that the teacher's alignments visit most, else 0;

    or of whole alignments: `sequence` is `sequence_kl`, `full_sum` is `full_sum_distance`.
    Products and memory are those of `joint_nodes`. All but the first two and `student_occupancy` need the teacher's
    arcs beforehand, one product a node more; those with weights pay for the gradient only where their weight is.

    Args:
      student: `JointInputs`; the gradient goes to its four tensors. Padding may hold anything.
      teacher: `JointInputs` of the same B, T, U and V (the width may differ), or stored logits [B, T, U+1, V] floating,
        or None for no KL. It has no gradient.
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.
      fastemit_lambda: weight of FastEmit, as in `transducer_loss`.
      temperature: of the divergence only, as in `lattice_kl`.
      teacher_delay: the student's node (t + delay, u) is compared with the teacher's (t, u), in frames, >= 0; the
        student's first `delay` frames and the teacher's last ones have no counterpart. Of several, the `closest_delay`
        of the batch of all replicas is taken, which costs two products a node.
      frames_per_tile: frames of the batch at a time, or None to choose by memory.
      product_dtype: as in `joint_nodes`.
      kl: the distance.
      kl_mean: divide the sum over nodes by the sum of the weights.
      band_columns: width of `kl="band"`.

    Returns:
      `JointLosses`.

    Raises:
      ValueError: `kl` is not in the list, or an option means nothing for it.
    """
    utterances = Utterances(labels, num_frames, num_labels, blank_id, frames_per_tile, product_dtype)
    reading = read_teacher(utterances, student, teacher, kl, temperature, teacher_delay, kl_mean, band_columns)
    nodes = utterances.nodes(student, reading.teacher, divergence=reading.divergence, temperature=temperature)
    arcs = Arcs(*nodes[:2])
    distance = reading.distance(arcs)
    if reading.teacher is not None:
        weighted = tf.math.multiply_no_nan(nodes.divergence, reading.weight(arcs))
        distance = tf.reduce_sum(weighted, axis=[1, 2])
    loss = transducer.arc_loss(*arcs, num_frames, num_labels, fastemit_lambda=fastemit_lambda)
    return JointLosses(loss, distance, arcs)


class LossWeights(NamedTuple):
    """What `joint_loss_sum` multiplies each utterance's losses by.

    Attributes:
      transducer: [B] float32.
      kl: [B] float32; where it is 0 no divergence is made, and the result says 0.
      entropy: [B] float32, of the student's alignment entropy; None not to compute it.
    """

    transducer: tf.Tensor
    kl: tf.Tensor
    entropy: tf.Tensor | None = None


class JointLossSum(NamedTuple):
    """What `joint_loss_sum` returns; only the total has a gradient.

    Attributes:
      total: scalar float32.
      transducer: [B] float32, in nats.
      kl: [B] float32, in nats.
      entropy: [B] float32, in nats, 0 where nobody asked.
      nodes: [B] float32, the sum of the weights of all nodes compared; 0 where none is.
    """

    total: tf.Tensor
    transducer: tf.Tensor
    kl: tf.Tensor
    entropy: tf.Tensor
    nodes: tf.Tensor


def joint_loss_sum(
    student: JointInputs,
    teacher: Teacher | None,
    labels: tf.Tensor,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    weights: LossWeights,
    *,
    blank_id: int = 0,
    fastemit_lambda: float = 0.0,
    temperature: float = 1.0,
    teacher_delay: int | Sequence[int] = 0,
    frames_per_tile: int | None = None,
    product_dtype: str = "float32",
    kl: str = "lattice",
    kl_mean: bool = False,
    band_columns: int = 5,
) -> JointLossSum:
    """`joint_losses` for a training step, which knows beforehand how it will add them up.

    `sum_b w_b transducer_b + v_b kl_b + e_b entropy_b`, with the same gradient as that sum of `joint_losses` has, for
    one product a node less (`joint_total`).

    Args:
      student: `JointInputs`; the gradient of the total goes to its four tensors.
      teacher: as in `joint_losses`.
      labels: [B, U] integer.
      num_frames: [B] integer.
      num_labels: [B] integer.
      weights: w, v and e; without gradient.
      blank_id: as in `joint_losses`, like all that follow.
      fastemit_lambda: weight of FastEmit.
      temperature: of the divergence.
      teacher_delay: in frames.
      frames_per_tile: frames of the batch at a time.
      product_dtype: of the products.
      kl: the distance.
      kl_mean: divide by the sum of the weights.
      band_columns: width of `kl="band"`.

    Returns:
      `JointLossSum`.

    Raises:
      ValueError: as `joint_losses`.
    """
    utterances = Utterances(labels, num_frames, num_labels, blank_id, frames_per_tile, product_dtype)
    taught = weights.kl > 0.0
    reading = read_teacher(utterances, student, teacher, kl, temperature, teacher_delay, kl_mean, band_columns, taught)

    def of_arcs(log_blank: tf.Tensor, log_label: tf.Tensor) -> ArcTerms:
        arcs = Arcs(log_blank, log_label)
        losses = {
            "transducer": transducer.arc_loss(*arcs, num_frames, num_labels, fastemit_lambda=fastemit_lambda),
            "kl": reading.distance(arcs),
        }
        if weights.entropy is not None:
            losses["entropy"] = alignments.alignment_entropy(arcs, num_frames, num_labels)
        weighted = [tf.math.multiply_no_nan(loss, getattr(weights, name)) for name, loss in losses.items()]
        total = tf.reduce_sum(tf.add_n(weighted))
        if reading.teacher is None:
            return ArcTerms(total, None, losses)
        weight = reading.weight(arcs)
        losses["nodes"] = tf.reduce_sum(weight, axis=[1, 2])
        return ArcTerms(total, weights.kl[:, None, None] * weight, losses)

    nodes = utterances.node_options | {"divergence": reading.divergence, "temperature": temperature}
    total, divergences, losses = joint_total(student, reading.teacher, *utterances[:3], of_arcs, **nodes)
    if reading.teacher is not None:
        losses["kl"] = tf.math.divide_no_nan(divergences, weights.kl)
    nothing = tf.zeros_like(losses["transducer"])
    others = (losses.get(name, nothing) for name in ("entropy", "nodes"))
    return JointLossSum(total, losses["transducer"], losses["kl"], *others)
