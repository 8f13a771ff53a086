"""Losses and gradients of the joint batches."""

import numpy as np
import tensorflow as tf

from tests.losses.batches import JointBatch, joint_batch
from tf_rnnt_kd.losses import JointInputs, joint_tile_losses


def large_batch(seed: int, **sizes) -> JointBatch:
    """Lattices of several blocks: 27, of which 15 are padding, and 9, 2 and 1 belong to the three utterances."""
    return joint_batch(seed, frames=37, labels=11, lengths=((37, 20, 5), (11, 3, 0)), **sizes)


def constants(inputs):
    return JointInputs(*map(tf.constant, inputs))


def clean(batch):
    """The same batch with zeros for NaN and infinity in the padding."""
    student, teacher = (JointInputs(*map(np.nan_to_num, inputs)) for inputs in batch[:2])
    return batch._replace(
        student=student._replace(predicted=np.clip(student.predicted, -9, 9)),
        teacher=teacher._replace(predicted=np.clip(teacher.predicted, -9, 9)),
    )


def logits(inputs):
    return tf.tanh(inputs.encoded[:, :, None] + inputs.predicted[:, None]) @ inputs.kernel + inputs.bias


def value_and_gradient(batch, kl_weight=0.3, losses=joint_tile_losses, **options):
    student = constants(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        transducer, kl = losses(student, batch.teacher, *map(tf.constant, batch[2:]), **options)
        total = transducer + kl_weight * kl
    return transducer, kl, tape.gradient(total, student)


def step(student, teacher, labels, num_frames, num_labels, losses=joint_tile_losses, **options):
    """`value_and_gradient` of tensors, to be compiled."""
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = losses(student, teacher, labels, num_frames, num_labels, **options)
        total = tf.add_n(values)
    return values, tape.gradient(total, student)


def unknown_shapes(width, vocabulary):
    """The signature of `step` when only D and V are known."""

    def inputs(width):
        batched = tf.TensorSpec([None, None, width])
        return JointInputs(batched, batched, tf.TensorSpec([width, vocabulary]), tf.TensorSpec([vocabulary]))

    integers = tf.TensorSpec([None], tf.int32)
    return [inputs(width), inputs(width + 1), tf.TensorSpec([None, None], tf.int32), integers, integers]


def assert_same(found, wanted, **tolerance):
    for values, expected in zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True):
        np.testing.assert_allclose(values, expected, **({"rtol": 1e-5, "atol": 2e-5} | tolerance))
