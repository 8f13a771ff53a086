"""Both losses inside two replicas, compared with one device; run as a program by `test_transducer.py`."""

import numpy as np
import tensorflow as tf

from tests.losses.batches import joint_batch, lattice_batch
from tf_rnnt_kd.losses import JointInputs, joint_tile_losses, transducer_loss


def transducer_step(logits, labels, num_frames, num_labels):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = transducer_loss(logits, labels, num_frames, num_labels)
    return loss, tape.gradient(loss, logits)


def joint_step(encoded, predicted, teacher_encoded, teacher_predicted, *rest, weights):
    student = JointInputs(encoded, predicted, *weights[0])
    teacher = JointInputs(teacher_encoded, teacher_predicted, *weights[1])
    with tf.GradientTape() as tape:
        tape.watch(student)
        losses = joint_tile_losses(student, teacher, *rest, frames_per_tile=3)
        total = tf.add_n(losses)
    return *losses, *tape.gradient(total, student)[:2]


def compare(strategy, step, arguments, compiled):
    arguments = [np.concatenate([values, values]) for values in arguments]
    per_replica = len(arguments[0]) // strategy.num_replicas_in_sync
    inner = tf.function(step, jit_compile=compiled)

    @tf.function
    def replicated(*values):
        return strategy.run(inner, args=values)

    def distribute(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group * per_replica :][:per_replica])
        )

    found = replicated(*map(distribute, arguments))
    for values, wanted in zip(found, step(*map(tf.constant, arguments)), strict=True):
        together = tf.concat(strategy.experimental_local_results(values), axis=0)
        np.testing.assert_allclose(together, wanted, rtol=1e-5, atol=1e-5)


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    lattices, joints = lattice_batch(0, batch=2), joint_batch(0, batch=2)
    weights = [[tf.constant(values) for values in inputs[2:]] for inputs in (joints.student, joints.teacher)]
    inputs = [*joints.student[:2], *joints.teacher[:2], *joints[2:]]
    for compiled in (False, True):
        compare(strategy, transducer_step, lattices[1:], compiled)
        compare(strategy, lambda *values: joint_step(*values, weights=weights), inputs, compiled)


if __name__ == "__main__":
    main()
