"""What a student minimises: hard targets, soft targets, and the auxiliary CTC loss, each with its weight."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.batch import Batch
from tf_rnnt_kd.losses import JointInputs, joint_tile_losses
from tf_rnnt_kd.losses.ctc import ctc_loss
from tf_rnnt_kd.models.transducer import Transducer


class TeacherJoint(NamedTuple):
    """The part of a factored teacher that is stored once per set."""

    kernel: tf.Tensor  # [D, V]
    bias: tf.Tensor  # [V]


@dataclasses.dataclass(frozen=True)
class Objective:
    """`sum_b (w_rnnt L_rnnt + w_ctc L_ctc + w_kl L_kl) / sum_b U_b`, the sums over the global batch.

    Hard targets are `kl_weight=0`: the transducer loss on the teacher's transcripts alone. Soft targets add the lattice
    KL, summed over the nodes of an utterance, as in the entropy-semiring study (eq. 12: weight 0.01 or 0.001); whether
    2210.05793 does the same is not known. Utterances without teacher targets have no KL term.

    Attributes:
      transducer_weight: of the transducer loss.
      ctc_weight: of the CTC loss on the encoder; a causal encoder does not take off without it.
      kl_weight: of the KL over the teacher's lattice.
      kl: "lattice" (all V classes of each node) or "collapsed" (blank, next label, rest).
      temperature: of both distributions in the KL.
      teacher_delay: student node (t + delay, u) learns from teacher node (t, u); in frames of 40 ms.
      fastemit_lambda: label-arc gradients are multiplied by 1 + lambda.
    """

    transducer_weight: float = 1.0
    ctc_weight: float = 0.3
    kl_weight: float = 0.0
    kl: str = "lattice"
    temperature: float = 1.0
    teacher_delay: int = 0
    fastemit_lambda: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether batches must carry teacher targets."""
        return self.kl_weight > 0.0

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
          Scalars float32: `total` (weighted), `transducer`, `ctc`, `kl`, `labels` and `kl_labels` (the divisors).
        """
        encoded, num_frames, predicted = model(batch.features, batch.num_features, batch.labels, training=True)
        student = JointInputs(encoded, predicted, model.joint_kernel, model.joint_bias)
        transducer, kl = joint_tile_losses(
            student,
            self._teacher(batch, teacher_joint),
            batch.labels,
            num_frames,
            batch.num_labels,
            blank_id=model.blank_id,
            fastemit_lambda=self.fastemit_lambda,
            temperature=self.temperature,
            teacher_delay=self.teacher_delay,
            kl=self.kl,
        )
        num_labels = tf.cast(batch.num_labels, tf.float32)
        weight = batch.teacher.weight if self.needs_teacher else tf.zeros_like(num_labels)
        sums = {
            "transducer": tf.reduce_sum(transducer),
            "ctc": tf.reduce_sum(self._ctc(model, encoded, num_frames, batch, compiled)),
            "kl": tf.reduce_sum(tf.where(weight > 0.0, kl, 0.0)),
        }
        weights = {"transducer": self.transducer_weight, "ctc": self.ctc_weight, "kl": self.kl_weight}
        total = tf.add_n([weights[name] * value for name, value in sums.items()])
        labels = {"labels": tf.reduce_sum(num_labels), "kl_labels": tf.reduce_sum(num_labels * weight)}
        return {"total": total, **sums, **labels}

    def _teacher(self, batch, joint):
        if not self.needs_teacher:
            return None
        if joint is None:
            return batch.teacher.logits
        return JointInputs(batch.teacher.encoded, batch.teacher.predicted, joint.kernel, joint.bias)

    def _ctc(self, model, encoded, num_frames, batch, compiled):
        if not self.ctc_weight:
            return tf.zeros([tf.shape(encoded)[0]])
        logits = model.ctc_logits(encoded)
        return ctc_loss(
            logits, batch.labels, num_frames, batch.num_labels, blank_id=model.blank_id, compiled=compiled
        )  # [B]
