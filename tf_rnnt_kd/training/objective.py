"""What a student minimises: hard targets, soft targets, and the auxiliary CTC loss, each with its weight."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import tensorflow as tf
from annotated_types import Ge

from tf_rnnt_kd.batch import Batch
from tf_rnnt_kd.data.pipeline import common_targets
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.losses import DISTANCES, AdditiveJoint, JointInputs, LossWeights, band_losses, joint_loss_sum
from tf_rnnt_kd.losses.ctc import ctc_loss
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.options import (
    Count,
    CountOrZero,
    Distinct,
    Finite,
    Fraction,
    NotEmpty,
    NotNegative,
    OneOf,
    Positive,
    checked,
)

_OF_ALIGNMENTS = ("sequence", "full_sum")  # distances that no node has a part of


class Lattice(NamedTuple):
    """What a student makes of a batch.

    Attributes:
      encoded: [B, T, D] floating, as it enters the joint's tanh.
      predicted: [B, U+1, D] floating, likewise.
      num_frames: [B] integer.
    """

    encoded: tf.Tensor
    predicted: tf.Tensor
    num_frames: tf.Tensor


class Lesson(NamedTuple):
    """The teacher of a batch.

    Attributes:
      teacher: its lattice; None where nothing is to be learnt from one.
      weight: [B] float32, 0 in rows without teacher.
    """

    teacher: JointInputs | tf.Tensor | None
    weight: tf.Tensor


class TeacherJoint(NamedTuple):
    """The part of a factored teacher that is stored once per set."""

    kernel: tf.Tensor  # [D, V]
    bias: tf.Tensor  # [V]


def find_teacher_joint(sets: Sequence[RecordSet], model: Transducer) -> TeacherJoint | None:
    """Kernel and bias of factored targets, None for stored lattices; targets that don't fit the student are refused."""
    spec = common_targets(sets)
    if spec is None:
        raise UserError(
            "the objective has a KL term, but no record set carries teacher targets: label one with a codec"
        )
    owner = next(s for s in sets if s.targets is not None)
    for what, theirs, ours in (
        ("vocabulary size", spec.vocabulary_size, model.vocabulary_size),
        ("blank id", spec.blank_id, model.blank_id),
        ("frame duration in ms", spec.frame_ms, 40),
    ):
        if theirs != ours:
            raise UserError(
                f"{owner.folder}: the teacher's {what} is {theirs}, the student's is {ours}: they must agree"
            )
    if spec.codec != "factored":
        return None
    return TeacherJoint(tf.constant(owner.kernel), tf.constant(owner.bias))


@checked
@dataclasses.dataclass(frozen=True)
class Band:
    """The student's joint network sees a few columns a frame; a cheap one, trained beside it, finds them.

    Attributes:
      columns: width of the band.
      linguistic_scale: share of the cheap network's scores from the prediction network alone.
      acoustic_scale: share from the encoder alone, and the mean of what the prediction network says in a batch.
      additive_weight: of the cheap network's loss.
    """

    columns: Annotated[Count, Ge(2)] = 5
    linguistic_scale: Fraction = 0.25
    acoustic_scale: Fraction = 0.0
    additive_weight: NotNegative = 0.5

    def __post_init__(self):
        if self.linguistic_scale + self.acoustic_scale > 1.0:
            raise UserError("Band.linguistic_scale and acoustic_scale are shares: together they are at most 1")


@checked
@dataclasses.dataclass(frozen=True)
class Objective:
    """`sum_b (w_rnnt L_rnnt + w_ctc L_ctc + w_kl L_kl + ...) / sum_b U_b`, the sums over the global batch.

    Hard targets are `kl_weight=0`: the transducer loss on the teacher's transcripts alone. Soft targets add the lattice
    KL, summed over the nodes of an utterance, as in the entropy-semiring study (eq. 12: weight 0.01 or 0.001); whether
    2210.05793 does the same is not known. Utterances without teacher targets have no KL term.

    Attributes:
      transducer_weight: of the transducer loss.
      ctc_weight: of the CTC loss on the encoder; a causal encoder does not take off without it.
      kl_weight: of the distance from the teacher.
      kl: which distance, see `losses.joint_losses`: "lattice" (all V classes of each node), "collapsed" (blank, next
        label, rest), "teacher_occupancy", "student_occupancy", "best_path", "band", "sequence" or "full_sum".
      kl_mean: divide the distance by the sum of its nodes' weights.
      temperature: of both distributions in the KL.
      teacher_delay: student node (t + delay, u) learns from teacher node (t, u); in frames of 40 ms. Of several, the
        one that fits a batch best, in all its rows with a teacher: see `whole_batch`.
      fastemit_lambda: label-arc gradients are multiplied by 1 + lambda.
      entropy_weight: of the student's alignment entropy; positive for sharper alignments.
      band: prune the lattice, None for all of it.
      product_dtype: of the products with the joint network's kernel, see `losses.joint_losses`.
    """

    transducer_weight: NotNegative = 1.0
    ctc_weight: NotNegative = 0.3
    kl_weight: NotNegative = 0.0
    kl: Annotated[str, OneOf(DISTANCES)] = "lattice"
    kl_mean: bool = False
    temperature: Positive = 1.0
    teacher_delay: CountOrZero | Annotated[tuple[CountOrZero, ...], NotEmpty, Distinct] = 0
    fastemit_lambda: Annotated[Finite, Ge(-1)] = 0.0
    entropy_weight: Finite = 0.0
    band: Band | None = None
    product_dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"

    def __post_init__(self):
        unused = (self.kl, self.kl_mean, self.teacher_delay, self.entropy_weight) != ("lattice", False, 0, 0.0)
        of_nodes = (self.temperature, self.teacher_delay, self.kl_mean) != (1.0, 0, False)
        if self.kl in _OF_ALIGNMENTS and of_nodes:
            raise UserError(f"Objective.kl={self.kl!r} knows no nodes: drop temperature, teacher_delay and kl_mean")
        if self.band and unused:
            raise UserError(
                "Objective.band goes with kl='lattice' alone: drop kl_mean, teacher_delay and entropy_weight"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether batches must carry teacher targets."""
        return self.kl_weight > 0.0

    @property
    def whole_batch(self) -> tuple[str, ...]:
        """Settings that are decided over all rows of a batch, so that no replica may divide its own any further."""
        several = self.needs_teacher and not isinstance(self.teacher_delay, int) and len(self.teacher_delay) > 1
        scaled = self.band is not None and self.band.acoustic_scale != 0.0
        names = {"Objective.teacher_delay of several values": several, "Band.acoustic_scale": scaled}
        return tuple(name for name, asked in names.items() if asked)

    @property
    def summary(self) -> str:
        """The weights, for people."""
        return f"{self.transducer_weight:g} transducer + {self.ctc_weight:g} CTC + {self.kl_weight:g} KL"

    @property
    def passes(self) -> tuple["Objective", ...]:
        """What each pass of the model over an utterance minimises: there is one."""
        return (self,)

    def __call__(
        self, model: Transducer, batch: Batch, teacher_joint: TeacherJoint | None, *, compiled: bool = False
    ) -> dict[str, tf.Tensor]:
        """Sums over the replica's part of the batch.

        Args:
          model: the student.
          batch: one replica's utterances.
          teacher_joint: of a factored teacher.
          compiled: whether this runs inside XLA or on a TPU.

        Returns:
          Scalars float32: `total` (weighted), each term (`transducer`, `ctc`, `kl`, and `entropy` or `additive` where
          they are asked for), and the divisors: `labels`, `kl_labels`, and, where nodes are compared, `kl_nodes`, the
          sum of the weights that they have in the distance: of nodes that count or not, how many count.
        """
        ((lattice, lesson),) = self.read_lattices(model, batch, teacher_joint, training=True)
        return self.of_lattice(model, batch, lattice, lesson, compiled=compiled)

    def read_lattices(
        self, model: Transducer, batch: Batch, teacher_joint: TeacherJoint | None, *, training: bool
    ) -> list[tuple[Lattice, Lesson]]:
        """What each of the `passes` makes of a batch, and what it is taught."""
        if model.second_pass is not None:
            raise UserError("a model with a second pass needs an objective for it: take cascade.CascadedObjective")
        encoded, num_frames, predicted = model(batch.features, batch.num_features, batch.labels, training=training)
        return [(Lattice(encoded, predicted, num_frames), self.read_lesson(batch, teacher_joint))]

    def of_lattice(
        self, model: Transducer, batch: Batch, lattice: Lattice, lesson: Lesson, *, compiled: bool = False
    ) -> dict[str, tf.Tensor]:
        """The losses of what `model` made of a batch, as in `__call__`."""
        student = JointInputs(lattice.encoded, lattice.predicted, model.joint_kernel, model.joint_bias)
        utterances = batch.labels, lattice.num_frames, batch.num_labels
        teacher, taught = lesson
        num_labels = tf.cast(batch.num_labels, tf.float32)
        weights = LossWeights(
            transducer=tf.fill(tf.shape(num_labels), self.transducer_weight),
            kl=tf.where(taught > 0.0, self.kl_weight, 0.0),
            entropy=tf.fill(tf.shape(num_labels), self.entropy_weight) if self.entropy_weight else None,
        )
        if self.band is None:
            total, terms, nodes = self._whole_lattice(student, teacher, utterances, weights, model.blank_id)
        else:
            if not model.has_additive_joint:
                raise UserError("Objective.band needs a second joint network: set Transducer.has_additive_joint = True")
            additive = AdditiveJoint(*model.additive_joint(lattice.encoded, lattice.predicted))
            total, terms, nodes = self._in_band(student, teacher, additive, utterances, weights, model.blank_id)
        terms["ctc"] = self._ctc(model, lattice, batch, compiled)
        sums = {name: tf.reduce_sum(values) for name, values in terms.items()}
        total += self.ctc_weight * sums["ctc"]
        labels = {"labels": tf.reduce_sum(num_labels), "kl_labels": tf.reduce_sum(num_labels * taught)}
        if self.needs_teacher and self.kl not in _OF_ALIGNMENTS:
            labels["kl_nodes"] = tf.reduce_sum(nodes * taught)
        return {"total": total, **sums, **labels}

    def _whole_lattice(self, student, teacher, utterances, weights, blank_id):
        losses = joint_loss_sum(
            student,
            teacher,
            *utterances,
            weights,
            blank_id=blank_id,
            fastemit_lambda=self.fastemit_lambda,
            temperature=self.temperature,
            teacher_delay=self.teacher_delay,
            kl=self.kl,
            kl_mean=self.kl_mean,
            product_dtype=self.product_dtype,
        )
        terms = {"transducer": losses.transducer, "kl": losses.kl}
        if self.entropy_weight:
            terms["entropy"] = losses.entropy
        return losses.total, terms, losses.nodes

    def _in_band(self, student, teacher, additive, utterances, weights, blank_id):
        if teacher is not None and not isinstance(teacher, JointInputs):
            raise UserError("Objective.band needs factored teacher targets: set Generation.codec = 'factored'")
        losses = band_losses(
            student,
            teacher,
            additive,
            *utterances,
            columns=self.band.columns,
            linguistic_scale=self.band.linguistic_scale,
            acoustic_scale=self.band.acoustic_scale,
            blank_id=blank_id,
            fastemit_lambda=self.fastemit_lambda,
            temperature=self.temperature,
        )
        kl = tf.where(weights.kl > 0.0, losses.kl, 0.0)
        total = tf.reduce_sum(weights.transducer * losses.transducer + weights.kl * kl)
        total += self.band.additive_weight * tf.reduce_sum(losses.additive)
        return total, {"transducer": losses.transducer, "kl": kl, "additive": losses.additive}, losses.nodes

    def read_lesson(self, batch: Batch, joint: TeacherJoint | None) -> Lesson:
        """The teacher in the records of a batch, if this objective asks for one."""
        if not self.needs_teacher:
            return Lesson(None, tf.zeros_like(batch.num_labels, tf.float32))
        if joint is None:
            return Lesson(batch.teacher.logits, batch.teacher.weight)
        teacher = JointInputs(batch.teacher.encoded, batch.teacher.predicted, joint.kernel, joint.bias)
        return Lesson(teacher, batch.teacher.weight)

    def _ctc(self, model, lattice, batch, compiled):
        if not self.ctc_weight:
            return tf.zeros([tf.shape(lattice.encoded)[0]])
        logits = model.ctc_logits(lattice.encoded)
        return ctc_loss(
            logits, batch.labels, lattice.num_frames, batch.num_labels, blank_id=model.blank_id, compiled=compiled
        )  # [B]
