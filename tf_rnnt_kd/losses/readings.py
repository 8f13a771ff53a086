"""How a student may read a teacher's lattice: which nodes are compared, with what weight, at what delay."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.losses import alignments, distillation, lattice, pruning, transducer
from tf_rnnt_kd.losses.alignments import Arcs
from tf_rnnt_kd.losses.joint_passes import LatticeNodes, joint_nodes
from tf_rnnt_kd.losses.joint_tiles import JointInputs
from tf_rnnt_kd.losses.nodes import NodeDivergence
from tf_rnnt_kd.losses.replicas import sum_over_replicas
from tf_rnnt_kd.masks import length_mask

Teacher = JointInputs | tf.Tensor  # a live joint network, or stored logits


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

    @property
    def node_options(self) -> dict[str, object]:
        """The last three."""
        return dict(zip(self._fields[3:], self[3:], strict=True))

    def nodes(self, student: JointInputs, teacher: Teacher | None = None, **options: object) -> LatticeNodes:
        """`joint_nodes` of these utterances."""
        return joint_nodes(student, teacher, *self[:3], **self.node_options, **options)

    def arcs(self, inputs: Teacher) -> Arcs:
        """The lattice of a joint network or of stored logits, without gradient."""
        if isinstance(inputs, JointInputs):
            return Arcs(*self.nodes(JointInputs(*map(tf.stop_gradient, inputs)))[:2])
        return Arcs(*transducer.log_arcs(tf.stop_gradient(inputs), *self[:3], self.blank_id))


class Reading(NamedTuple):
    """How a teacher's lattice is read.

    Attributes:
      utterances: of the batch.
      kl: the name of the distance.
      kl_mean: whether to divide by the sum of the weights.
      band_columns: width of the band.
      delay: of the student, in frames.
      arcs: the teacher's, where the distance needs them.
      teacher: whose nodes the student's are compared with; None where there is no teacher, or arcs say all.
    """

    utterances: Utterances
    kl: str
    kl_mean: bool
    band_columns: int
    delay: int | tf.Tensor
    arcs: Arcs | None
    teacher: Teacher | None

    @property
    def divergence(self) -> NodeDivergence:
        """Of teacher and student at a node."""
        return _NODE_DISTANCES.get(self.kl, _NODE_DISTANCES["lattice"])[0]

    def occupancy(self, arcs: Arcs) -> tf.Tensor:
        """[B, T, U+1], how probable it is that an alignment visits a node."""
        return lattice.occupancies(*arcs, *self.utterances[1:3]).node  # [B, T, U+1]

    def distance(self, student: Arcs) -> tf.Tensor:
        """[B], of whole alignments; 0 where nodes are compared, or nothing is."""
        if self.kl in _NODE_DISTANCES or self.arcs is None:
            return tf.zeros_like(self.utterances.num_frames, tf.float32)
        return _ALIGNMENT_DISTANCES[self.kl](self.arcs, student, *self.utterances[1:3])

    def weight(self, student: Arcs) -> tf.Tensor:
        """[B, T, U+1], without gradient; 0 where a node has no counterpart in the teacher."""
        student = Arcs(*map(tf.stop_gradient, student))
        _, frames, columns = tf.unstack(tf.shape(student.log_blank))
        real = lattice.node_mask(*self.utterances[1:3], frames, columns - 1)
        weight = tf.cast(real & _has_counterpart(student.log_blank, self.delay), tf.float32)
        weigh = _NODE_DISTANCES[self.kl][1]
        if weigh is not None:
            weight *= weigh(self, student)
        if self.kl_mean:
            weight = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, axis=[1, 2], keepdims=True))
        return weight


def read_teacher(
    utterances: Utterances,
    student: JointInputs,
    teacher: Teacher | None,
    kl: str,
    temperature: float,
    teacher_delay: int | Sequence[int],
    kl_mean: bool,
    band_columns: int,
    taught: tf.Tensor | None = None,
) -> Reading:
    """Chooses the delay, and gets what the distance needs; the arguments are those of `joint_losses`.

    `taught` is as in `closest_delay`.
    """
    delays = (teacher_delay,) if isinstance(teacher_delay, int) else tuple(teacher_delay)
    _check(kl, temperature, delays, kl_mean)
    if teacher is None:
        return Reading(utterances, kl, kl_mean, band_columns, 0, None, None)
    if kl in _ALIGNMENT_DISTANCES:
        return Reading(utterances, kl, kl_mean, band_columns, 0, utterances.arcs(teacher), None)
    arcs = utterances.arcs(teacher) if kl in _NEED_TEACHER_ARCS or len(delays) > 1 else None
    delay = delays[0]
    if len(delays) > 1:
        delay = closest_delay(arcs, utterances.arcs(student), *utterances[1:3], delays, taught)
    return Reading(utterances, kl, kl_mean, band_columns, delay, arcs, _delayed(teacher, delay))


def closest_delay(
    teacher: Arcs,
    student: Arcs,
    num_frames: tf.Tensor,
    num_labels: tf.Tensor,
    delays: Sequence[int],
    taught: tf.Tensor | None = None,
) -> tf.Tensor:
    """The delay under which a batch's lattices resemble each other most; the batch is that of all replicas.

    Compared are blank, next label and rest at the nodes, weighted by the teacher's occupancy:
    `argmin_d mean over (t, u) of occupancy(t, u) KL(teacher(t, u) || student(t + d, u))`. Costs O(B T U) a candidate.

    Args:
      teacher: arcs of the teacher's lattice.
      student: arcs of the student's lattice.
      num_frames: [B] integer.
      num_labels: [B] integer.
      delays: candidates, in frames.
      taught: [B] boolean, which utterances have a teacher, the others have no say; None for all.

    Returns:
      Scalar int32; of equally good ones the first.
    """
    occupancy = lattice.occupancies(*teacher, num_frames, num_labels).node  # [B, T, U+1]
    ours = _three_classes(student, num_labels)
    sums = []
    for delay in delays:
        theirs = _three_classes(Arcs(*(_shifted(arc, delay) for arc in teacher)), num_labels)
        kl = tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=-1)  # [B, T, U+1]
        matched = lattice.node_mask(num_frames, num_labels, tf.shape(kl)[1], tf.shape(kl)[2] - 1)
        matched = matched if taught is None else matched & taught[:, None, None]
        weight = tf.where(matched & _has_counterpart(kl, delay), _shifted(occupancy, delay), 0.0)
        sums += [tf.reduce_sum(tf.math.multiply_no_nan(kl, weight)), tf.reduce_sum(weight)]  # padding may hold NaN
    gaps, weights = tf.unstack(tf.reshape(sum_over_replicas(tf.stack(sums)), [-1, 2]), axis=1)
    # A delay that leaves nothing to compare is no match.
    gaps = tf.where(weights > 0.0, tf.math.divide_no_nan(gaps, weights), float("inf"))
    return tf.gather(tf.constant(delays, tf.int32), tf.argmin(gaps, output_type=tf.int32))


def _by_teacher(reading: Reading, student: Arcs) -> tf.Tensor:
    del student
    return _shifted(reading.occupancy(reading.arcs), reading.delay)


def _by_student(reading: Reading, student: Arcs) -> tf.Tensor:
    return reading.occupancy(student)


def _by_best_path(reading: Reading, student: Arcs) -> tf.Tensor:
    del student
    frames = lattice.best_path(*reading.arcs, *reading.utterances[1:3])[0]  # [B, U]
    frame = tf.range(tf.shape(reading.arcs.log_blank)[1])[:, None]  # [T, 1]
    # The path is in column u from the frame of label u-1 to that of label u.
    last = tf.where(length_mask(reading.utterances.num_labels, tf.shape(frames)[1]), frames, tf.shape(frame)[0])
    until = tf.pad(last, [[0, 0], [0, 1]], constant_values=tf.int32.max)[:, None]  # [B, 1, U+1]
    since = tf.pad(last, [[0, 0], [1, 0]])[:, None]  # [B, 1, U+1]
    return _shifted(tf.cast((since <= frame) & (frame <= until), tf.float32), reading.delay)


def _by_band(reading: Reading, student: Arcs) -> tf.Tensor:
    del student
    occupancy = reading.occupancy(reading.arcs)
    starts = pruning.band_starts(occupancy, *reading.utterances[1:3], reading.band_columns)  # [B, T]
    offset = tf.range(tf.shape(occupancy)[2]) - starts[:, :, None]  # [B, T, U+1]
    return _shifted(tf.cast((offset >= 0) & (offset < reading.band_columns), tf.float32), reading.delay)


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
    if kl not in DISTANCES:
        raise ValueError(f"kl={kl!r} must be one of {DISTANCES}")
    if not delays or min(delays) < 0:
        raise ValueError(f"teacher_delay={delays} must be frames, at least 0")
    if kl in _ALIGNMENT_DISTANCES and (temperature != 1.0 or delays != (0,) or kl_mean):
        raise ValueError(
            f"kl={kl!r} is of whole alignments: temperature, teacher_delay and kl_mean mean nothing for it"
        )


_NODE_DISTANCES: Mapping[str, tuple[NodeDivergence, Callable[..., tf.Tensor] | None]] = MappingProxyType(
    {
        "lattice": (distillation.LATTICE, None),
        "collapsed": (distillation.COLLAPSED, None),
        "teacher_occupancy": (distillation.LATTICE, _by_teacher),
        "student_occupancy": (distillation.LATTICE, _by_student),
        "best_path": (distillation.LATTICE, _by_best_path),
        "band": (distillation.LATTICE, _by_band),
    }
)
_NEED_TEACHER_ARCS = ("teacher_occupancy", "best_path", "band")
_ALIGNMENT_DISTANCES: Mapping[str, Callable[..., tf.Tensor]] = MappingProxyType(
    {"sequence": alignments.sequence_kl, "full_sum": alignments.full_sum_distance}
)
DISTANCES = (*_NODE_DISTANCES, *_ALIGNMENT_DISTANCES)
