"""What a student's joint network learns from: its labels, and a teacher's lattice in one of several readings."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import alignments, distillation, lattice, pruning, transducer
from tf_rnnt_kd.losses.alignments import Arcs
from tf_rnnt_kd.losses.joint_tiles import JointInputs, LatticeNodes, joint_nodes
from tf_rnnt_kd.masks import length_mask

Teacher = JointInputs | tf.Tensor  # a live joint network, or stored logits


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


class Utterances(NamedTuple):
    """What the lattices of a batch have in common.

    Attributes:
      labels: [B, U] integer, without blanks.
      num_frames: [B] integer, at most T.
      num_labels: [B] integer, at most U.
      blank_id: the blank's class.
      frames_per_tile: as in `joint_nodes`.
      product_dtype: as in `joint_nodes`.
    """

    labels: tf.Tensor
    num_frames: tf.Tensor
    num_labels: tf.Tensor
    blank_id: int = 0
    frames_per_tile: int | None = None
    product_dtype: str = "float32"

    def nodes(self, student: JointInputs, teacher: Teacher | None = None, **options: object) -> LatticeNodes:
        """`joint_nodes` of these utterances."""
        return joint_nodes(student, teacher, *self[:3], **dict(zip(self._fields[3:], self[3:], strict=True)), **options)

    def arcs(self, inputs: Teacher) -> Arcs:
        """The lattice of a joint network or of stored logits, without gradient."""
        if isinstance(inputs, JointInputs):
            return Arcs(*self.nodes(JointInputs(*map(tf.stop_gradient, inputs)))[:2])
        return Arcs(*transducer.log_arcs(tf.stop_gradient(inputs), *self[:3], self.blank_id))


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
        of the batch is taken, which costs two products a node.
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
    delays = (teacher_delay,) if isinstance(teacher_delay, int) else tuple(teacher_delay)
    _check(kl, temperature, delays, kl_mean)
    if teacher is None:
        nodes, distance = utterances.nodes(student), tf.zeros_like(num_frames, tf.float32)
    elif kl in _ALIGNMENT_DISTANCES:
        nodes = utterances.nodes(student)
        arcs = utterances.arcs(teacher), Arcs(*nodes[:2])
        distance = _ALIGNMENT_DISTANCES[kl](*arcs, num_frames, num_labels)
    else:
        divergence, weigh = _NODE_DISTANCES[kl]
        needs_arcs = weigh is not None or len(delays) > 1
        reading = _Reading(utterances, utterances.arcs(teacher) if needs_arcs else None, band_columns)
        delay = _choose(reading, student, delays)
        nodes = utterances.nodes(student, _delayed(teacher, delay), divergence=divergence, temperature=temperature)
        weight = _weight(reading, nodes, delay, weigh)
        distance = tf.reduce_sum(tf.math.multiply_no_nan(nodes.divergence, weight), axis=[1, 2])
        if kl_mean:
            distance = tf.math.divide_no_nan(distance, tf.reduce_sum(weight, axis=[1, 2]))
    arcs = Arcs(*nodes[:2])
    loss = transducer.arc_loss(*arcs, num_frames, num_labels, fastemit_lambda=fastemit_lambda)
    return JointLosses(loss, distance, arcs)


def closest_delay(
    teacher: Arcs, student: Arcs, num_frames: tf.Tensor, num_labels: tf.Tensor, delays: Sequence[int]
) -> tf.Tensor:
    """The delay under which a batch's lattices resemble each other most.

    Compared are blank, next label and rest at the nodes, weighted by the teacher's occupancy:
    `argmin_d mean over (t, u) of occupancy(t, u) KL(teacher(t, u) || student(t + d, u))`. Costs O(B T U) a candidate.

    Args:
      teacher: arcs of the teacher's lattice.
      student: arcs of the student's lattice.
      num_frames: [B] integer.
      num_labels: [B] integer.
      delays: candidates, in frames.

    Returns:
      Scalar int32; of equally good ones the first.
    """
    occupancy = lattice.occupancies(*teacher, num_frames, num_labels).node  # [B, T, U+1]
    ours = _three_classes(student, num_labels)
    gaps = []
    for delay in delays:
        theirs = _three_classes(Arcs(*(_shifted(arc, delay) for arc in teacher)), num_labels)
        kl = tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)  # [B, T, U+1]
        matched = lattice.node_mask(num_frames, num_labels, tf.shape(kl)[1], tf.shape(kl)[2] - 1)
        weight = tf.where(matched & _has_counterpart(kl, delay), _shifted(occupancy, delay), 0.0)
        total = tf.reduce_sum(weight)
        # Padding may hold NaN; a delay that leaves nothing to compare is no match.
        gap = tf.math.divide_no_nan(tf.reduce_sum(tf.math.multiply_no_nan(kl, weight)), total)
        gaps.append(tf.where(total > 0.0, gap, float("inf")))
    return tf.gather(tf.constant(delays, tf.int32), tf.argmin(tf.stack(gaps), output_type=tf.int32))


class _Reading(NamedTuple):
    """What node weights are made from."""

    utterances: Utterances
    teacher: Arcs | None
    band_columns: int

    def occupancy(self, arcs: Arcs) -> tf.Tensor:
        return lattice.occupancies(*arcs, *self.utterances[1:3]).node  # [B, T, U+1]


def _choose(reading: _Reading, student: JointInputs, delays: tuple[int, ...]) -> int | tf.Tensor:
    if len(delays) == 1:
        return delays[0]
    utterances = reading.utterances
    return closest_delay(reading.teacher, utterances.arcs(student), *utterances[1:3], delays)


def _weight(
    reading: _Reading, nodes: LatticeNodes, delay: int | tf.Tensor, weigh: Callable[..., tf.Tensor] | None
) -> tf.Tensor:
    """[B, T, U+1], 0 where a node has no counterpart in the teacher."""
    _, frames, columns = tf.unstack(tf.shape(nodes.divergence))
    real = lattice.node_mask(*reading.utterances[1:3], frames, columns - 1)
    weight = tf.cast(real & _has_counterpart(nodes.divergence, delay), tf.float32)
    if weigh is None:
        return weight
    return weight * weigh(reading, Arcs(*map(tf.stop_gradient, nodes[:2])), delay)


def _by_teacher(reading: _Reading, student: Arcs, delay: int | tf.Tensor) -> tf.Tensor:
    del student
    return _shifted(reading.occupancy(reading.teacher), delay)


def _by_student(reading: _Reading, student: Arcs, delay: int | tf.Tensor) -> tf.Tensor:
    del delay
    return reading.occupancy(student)


def _by_best_path(reading: _Reading, student: Arcs, delay: int | tf.Tensor) -> tf.Tensor:
    del student
    frames = lattice.best_path(*reading.teacher, *reading.utterances[1:3])[0]  # [B, U]
    frame = tf.range(tf.shape(reading.teacher.log_blank)[1])[:, None]  # [T, 1]
    # The path is in column u from the frame of label u-1 to that of label u.
    last = tf.where(length_mask(reading.utterances.num_labels, tf.shape(frames)[1]), frames, tf.shape(frame)[0])
    until = tf.pad(last, [[0, 0], [0, 1]], constant_values=tf.int32.max)[:, None]  # [B, 1, U+1]
    since = tf.pad(last, [[0, 0], [1, 0]])[:, None]  # [B, 1, U+1]
    return _shifted(tf.cast((since <= frame) & (frame <= until), tf.float32), delay)


def _by_band(reading: _Reading, student: Arcs, delay: int | tf.Tensor) -> tf.Tensor:
    del student
    occupancy = reading.occupancy(reading.teacher)
    starts = pruning.band_starts(occupancy, *reading.utterances[1:3], reading.band_columns)  # [B, T]
    offset = tf.range(tf.shape(occupancy)[2]) - starts[:, :, None]  # [B, T, U+1]
    return _shifted(tf.cast((offset >= 0) & (offset < reading.band_columns), tf.float32), delay)


def _delayed(teacher: Teacher, delay: int | tf.Tensor) -> Teacher:
    if isinstance(teacher, JointInputs):
        return teacher._replace(encoded=_shifted(teacher.encoded, delay))
    return _shifted(teacher, delay)


def _shifted(values: tf.Tensor, delay: int | tf.Tensor) -> tf.Tensor:
    """values[:, t - delay] at t, the first frame where that is none."""
    if isinstance(delay, int) and delay == 0:
        return values
    return tf.gather(values, tf.maximum(tf.range(tf.shape(values)[1]) - delay, 0), axis=1)


def _has_counterpart(nodes: tf.Tensor, delay: int | tf.Tensor) -> tf.Tensor:
    return tf.range(tf.shape(nodes)[1])[:, None] >= delay  # [T, 1]


def _three_classes(arcs: Arcs, num_labels: tf.Tensor) -> tf.Tensor:
    """Log-probabilities of blank, next label and rest [B, T, U+1, 3], none below -16."""
    real = length_mask(num_labels, tf.shape(arcs.log_label)[2])[:, None]  # the last column has no next label
    label = tf.where(real, arcs.log_label, lattice.LOG_ZERO)
    label = tf.pad(label, [[0, 0], [0, 0], [0, 1]], constant_values=lattice.LOG_ZERO)
    two = tf.stack([arcs.log_blank, label], axis=-1)  # [B, T, U+1, 2]
    rest = tf.math.log(tf.maximum(1.0 - tf.reduce_sum(tf.exp(two), axis=-1, keepdims=True), 1e-7))
    return tf.maximum(tf.concat([two, rest], axis=-1), -16.0)


def _check(kl: str, temperature: float, delays: tuple[int, ...], kl_mean: bool) -> None:
    names = [*_NODE_DISTANCES, *_ALIGNMENT_DISTANCES]
    if kl not in names:
        raise ValueError(f"kl={kl!r} must be one of {names}")
    if not delays or min(delays) < 0:
        raise ValueError(f"teacher_delay={delays} must be frames, at least 0")
    if kl in _ALIGNMENT_DISTANCES and (temperature != 1.0 or delays != (0,) or kl_mean):
        raise ValueError(
            f"kl={kl!r} is of whole alignments: temperature, teacher_delay and kl_mean mean nothing for it"
        )


_NODE_DISTANCES: Mapping[str, tuple[distillation.NodeDivergence, Callable[..., tf.Tensor] | None]] = MappingProxyType(
    {
        "lattice": (distillation.LATTICE, None),
        "collapsed": (distillation.COLLAPSED, None),
        "teacher_occupancy": (distillation.LATTICE, _by_teacher),
        "student_occupancy": (distillation.LATTICE, _by_student),
        "best_path": (distillation.LATTICE, _by_best_path),
        "band": (distillation.LATTICE, _by_band),
    }
)
_ALIGNMENT_DISTANCES: Mapping[str, Callable[..., tf.Tensor]] = MappingProxyType(
    {"sequence": alignments.sequence_kl, "full_sum": alignments.full_sum_distance}
)
