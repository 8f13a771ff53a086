"""Three updates on one device and on two replicas, of objectives that decide something over the whole batch.

Run as a program by `test_step.py`.
"""

import numpy as np
import tensorflow as tf

from tests import tiny
from tests.training.test_objective import D, T, U, V, random
from tf_rnnt_kd.batch import Batch, TeacherTargets
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.objective import Band, Objective, TeacherJoint
from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step
from tf_rnnt_kd.training.strategy import make_strategy

DELAYS = Objective(kl_weight=0.5, teacher_delay=(0, 1, 2, 3))
BANDED = Objective(kl_weight=0.1, band=Band(columns=3, acoustic_scale=0.3))


def batch_of(seed):
    """Four utterances, the last without a teacher."""
    rng = np.random.default_rng(seed)
    weight = tf.constant([1.0, 1.0, 1.0, 0.0])
    lattice = 2.0 * random(rng, 4, T, 7), 2.0 * random(rng, 4, U + 1, 7), random(rng, 4, T, U + 1, V)
    num_features, num_labels = tf.constant([4 * T, 30, 37, 33]), tf.constant([4, 1, 3, 2])
    labels, source = tf.constant(rng.integers(1, V, [4, U]), tf.int32), tf.constant([1, 1, 1, 0])
    features = random(rng, 4, 4 * T, 80)
    return Batch(features, num_features, labels, num_labels, TeacherTargets(*lattice, weight), source)


def updated(strategy, objective, **options):
    """Losses of three updates, and the weights after them."""
    rng = np.random.default_rng(1)
    joint = TeacherJoint(random(rng, 7, V), random(rng, V))
    with strategy.scope():
        model = tiny.transducer(V, dropout=0.0, joint_width=D, **options)
        optimizer = ReducedAdamW(1e-2)
        optimizer.build(model.trainable_variables)
    step = make_train_step(model, optimizer, objective, joint, clip_norm=1.0)
    run = tf.function(lambda batch: step(strategy, batch), autograph=False)
    count, metrics = strategy.num_replicas_in_sync, []
    for seed in range(3):
        parts = [tf.nest.map_structure(lambda v, i=i: v[i::count], batch_of(seed)) for i in range(count)]
        batch = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )
        metrics.append({name: float(value) for name, value in run(batch).items()})
    return metrics, [v.numpy() for v in model.trainable_variables]


def compare(replicas, objective, **options):
    ours, weights = updated(make_strategy("one_device"), objective, **options)
    theirs, others = updated(replicas, objective, **options)
    for a, b in zip(ours, theirs, strict=True):
        assert a["skipped"] == 0.0 and a["kl"] > 0.0
        np.testing.assert_allclose(
            [b[name] for name in a], list(a.values()), rtol=2e-5, atol=1e-6, err_msg=str(list(a))
        )
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=0.0, atol=2e-5)


def check_compiled(replicas):
    """Replicas cannot meet inside what XLA compiles: refused by name."""
    model = tiny.transducer(V, dropout=0.0)
    step = make_train_step(model, ReducedAdamW(1e-2), DELAYS, None, clip_norm=1.0, jit_compile=True)
    try:
        step(replicas, batch_of(0))
    except UserError as error:
        assert "jit_compile on 2 replicas" in error.message
    else:
        raise AssertionError


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    replicas = make_strategy("mirrored")
    compare(replicas, DELAYS)
    compare(replicas, BANDED, has_additive_joint=True)
    cascade = CascadedObjective(first_pass=DELAYS)
    compare(replicas, cascade, causal=True, second_pass_blocks=1)
    check_compiled(replicas)


if __name__ == "__main__":
    main()
