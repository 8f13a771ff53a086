"""What a cascade minimises: both of its passes at once, the first of which may learn from the second."""

import dataclasses

import tensorflow as tf

from tf_rnnt_kd.batch import Batch
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.losses import JointInputs
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.options import NotNegative, checked
from tf_rnnt_kd.training.objective import Lattice, Lesson, Objective, TeacherJoint


@checked
@dataclasses.dataclass(frozen=True)
class CascadedObjective:
    """`L(first pass) + w L(second pass)`, over one encoder, one prediction network and one joint network.

    With `in_place` the teacher in the KL of the first pass is the second pass at the same step, without gradient
    (Yu et al. 2020, 2010.06030), for every utterance, on its labels, whoever gave them. A teacher from records then
    teaches the second pass alone, and the first through it. The two losses of a step cost what two objectives cost.

    Attributes:
      first_pass: of the causal encoder; its `kl_weight` and `teacher_delay` are those of the teacher that it has.
      second_pass: of the full-context blocks; its teacher comes from records.
      second_pass_weight: of the second pass.
      in_place: whether the second pass teaches the first; else records do, as they do the second.
    """

    first_pass: Objective = Objective()
    second_pass: Objective = Objective()
    second_pass_weight: NotNegative = 1.0
    in_place: bool = True

    @property
    def needs_teacher(self) -> bool:
        """Whether batches must carry teacher targets."""
        return self.second_pass.needs_teacher or (self.first_pass.needs_teacher and not self.in_place)

    @property
    def whole_batch(self) -> tuple[str, ...]:
        """Settings of either pass that are decided over all rows of a batch, see `Objective.whole_batch`."""
        return self.first_pass.whole_batch + self.second_pass.whole_batch

    @property
    def summary(self) -> str:
        """The weights, for people."""
        place = " in place" if self.in_place and self.first_pass.needs_teacher else ""
        return f"{self.first_pass.summary}{place}, + {self.second_pass_weight:g} x ({self.second_pass.summary})"

    @property
    def passes(self) -> tuple[Objective, Objective]:
        """What each pass minimises."""
        return self.first_pass, self.second_pass

    def __call__(
        self, model: Transducer, batch: Batch, teacher_joint: TeacherJoint | None, *, compiled: bool = False
    ) -> dict[str, tf.Tensor]:
        """Sums over the replica's part of the batch, as those of `Objective`.

        Args:
          model: a student with a second pass.
          batch: one replica's utterances.
          teacher_joint: of a factored teacher.
          compiled: whether this runs inside XLA or on a TPU.

        Returns:
          What `Objective` returns for the first pass, with the `total` of both, and for the second pass its terms and
          divisors, their names after `second_pass_`.
        """
        first, second = self.read_lattices(model, batch, teacher_joint, training=True)
        sums = self.first_pass.of_lattice(model, batch, *first, compiled=compiled)
        others = self.second_pass.of_lattice(model, batch, *second, compiled=compiled)
        sums["total"] += self.second_pass_weight * others.pop("total")
        del others["labels"]
        return {**sums, **{f"second_pass_{name}": value for name, value in others.items()}}

    def read_lattices(
        self, model: Transducer, batch: Batch, teacher_joint: TeacherJoint | None, *, training: bool
    ) -> list[tuple[Lattice, Lesson]]:
        """What both passes make of a batch, and what they are taught."""
        if model.second_pass is None:
            raise UserError("CascadedObjective needs a second pass: set Transducer.second_pass_blocks")
        encoded, again, num_frames = model.encode_twice(batch.features, batch.num_features, training=training)
        predicted = model.predict_labels(batch.labels, training=training)
        first, second = (Lattice(frames, predicted, num_frames) for frames in (encoded, again))
        lesson = self._lesson(model, batch, second, teacher_joint)
        return [(first, lesson), (second, self.second_pass.read_lesson(batch, teacher_joint))]

    def _lesson(self, model, batch, second, teacher_joint):
        """What the first pass learns from."""
        if not (self.in_place and self.first_pass.needs_teacher):
            return self.first_pass.read_lesson(batch, teacher_joint)
        teacher = JointInputs(second.encoded, second.predicted, model.joint_kernel, model.joint_bias)
        return Lesson(tf.nest.map_structure(tf.stop_gradient, teacher), tf.ones_like(batch.num_labels, tf.float32))
