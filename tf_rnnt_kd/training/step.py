"""One update of the student on all replicas."""

import keras
import tensorflow as tf

from tf_rnnt_kd.batch import Batch
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.training.objective import Objective, TeacherJoint


class ReducedAdamW(keras.optimizers.AdamW):
    """AdamW for gradients that are already summed over replicas.

    Clipping by the global norm has to come after the sum, or the update would depend on the number of replicas; so the
    step sums and clips, and the optimizer must not sum again. Biases and norms have no weight decay.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars

    def build(self, variables):
        """Builds the moments; vectors are left out of the decay."""
        super().build(variables)
        self.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])


def make_train_step(
    model: Transducer,
    optimizer: ReducedAdamW,
    objective: Objective,
    teacher_joint: TeacherJoint | None,
    *,
    clip_norm: float,
    jit_compile: bool = False,
):
    """Returns `step(strategy, batch) -> metrics`, the whole update in one `tf.function` without retracing.

    Metrics are float32 scalars of the global batch: each loss per label, the gradient's norm before clipping, and
    1 where the update was skipped because a gradient was not finite.

    Args:
      model: the student, built.
      optimizer: built on `model.trainable_variables`.
      objective: what to minimise.
      teacher_joint: of factored targets.
      clip_norm: the gradient's global norm is at most this.
      jit_compile: compile forward and backward with XLA, once for each bucket shape.
    """
    compiled = jit_compile or bool(tf.config.list_logical_devices("TPU"))
    variables = [variable.value for variable in model.trainable_variables]

    def gradients(batch: Batch, num_labels):
        with tf.GradientTape() as tape:
            sums = objective(model, batch, teacher_joint, compiled=compiled)
            loss = sums["total"] / num_labels
        return sums, tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    if jit_compile:
        gradients = tf.function(gradients, jit_compile=True, autograph=False)

    def replica_step(batch: Batch):
        context = tf.distribute.get_replica_context()
        num_labels = tf.reduce_sum(tf.cast(batch.num_labels, tf.float32))
        num_labels = tf.maximum(context.all_reduce(tf.distribute.ReduceOp.SUM, num_labels), 1.0)
        sums, grads = gradients(batch, num_labels)
        sums["seconds"] = tf.reduce_sum(tf.cast(batch.num_features, tf.float32)) / 100.0
        sums, grads = context.all_reduce(tf.distribute.ReduceOp.SUM, [sums, grads])
        clipped, norm = tf.clip_by_global_norm(grads, clip_norm)
        finite = tf.math.is_finite(norm)
        # Zero gradients in place of a branch: a conditional update is not allowed inside a replica.
        clipped = [tf.where(finite, g, tf.zeros_like(g)) for g in clipped]
        optimizer.apply(clipped, model.trainable_variables)
        return _metrics(sums, norm, finite)

    def step(strategy, batch):
        per_replica = strategy.run(replica_step, args=(batch,))
        return {name: strategy.experimental_local_results(value)[0] for name, value in per_replica.items()}

    return step


def _metrics(sums, norm, finite):
    terms = {name for name in sums if not name.endswith("labels")} - {"total", "seconds"}
    divisors = {name: sums.get(f"{name}_labels", sums["labels"]) for name in terms}
    return {
        "loss": sums["total"] / tf.maximum(sums["labels"], 1.0),
        **{name: sums[name] / tf.maximum(divisor, 1.0) for name, divisor in divisors.items()},
        "seconds": sums["seconds"],
        "gradient_norm": norm,
        "skipped": 1.0 - tf.cast(finite, tf.float32),
    }
