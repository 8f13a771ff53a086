"""Two replicas, step after step: dropout seeds, and an update that is skipped; run as a program by `test_step.py`."""

import keras
import numpy as np
import tensorflow as tf

from tests import tiny
from tests.training.test_objective import V, make_batch
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step
from tf_rnnt_kd.training.strategy import make_strategy


def states(model):
    return [v.numpy() for v in model.non_trainable_variables]


def local_values(strategy, variables):
    """Bytes of each variable on each replica, which have to agree."""
    found = [[value.numpy().tobytes() for value in strategy.experimental_local_results(v.value)] for v in variables]
    assert all(len(set(values)) == 1 and len(values) == 2 for values in found)
    return [values[0] for values in found]


def check_skipping(strategy):
    """What one replica finds not finite is skipped on both, to the bit, and the next update is made."""
    with strategy.scope():
        model = tiny.transducer(V, dropout=0.5)
        optimizer = ReducedAdamW(1e-2, weight_decay=0.1, use_ema=True, ema_momentum=0.9)
        optimizer.build(model.trainable_variables)
        factor = tf.Variable(1.0)

    def objective(model, batch, joint, *, compiled=False):
        sums = Objective()(model, batch, joint, compiled=compiled)
        mine = tf.distribute.get_replica_context().replica_id_in_sync_group
        return {**sums, "total": sums["total"] * tf.where(tf.equal(mine, 1), factor, 1.0)}

    step = make_train_step(model, optimizer, objective, None, clip_norm=1.0, accumulation=3)
    run = tf.function(lambda batch: step(strategy, batch), autograph=False)
    states = []
    for value in (1.0, np.nan, np.inf, 1.0):
        factor.assign(value)
        batch = strategy.experimental_distribute_values_from_function(lambda _: make_batch())
        assert run(batch)["skipped"] == (not np.isfinite(value))
        states.append(local_values(strategy, [*model.variables, *optimizer.variables]))
    assert states[0] == states[1] == states[2] != states[3]
    assert optimizer.iterations.numpy() == 2


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = tiny.transducer(V, dropout=0.5)
        optimizer = ReducedAdamW(1e-3)
        optimizer.build(model.trainable_variables)
    ones = tf.ones([1000])

    def objective(model, batch, joint, *, compiled=False):
        """A sum that is even where both replicas drop alike, in code that no replica has to itself."""
        kept = tf.cast(keras.random.dropout(ones, 0.5, seed=model.prediction.drop.seed_generator) > 0.0, tf.float32)
        mine = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
        total = tf.reduce_sum(model.joint.bias)
        return {
            "total": total,
            "labels": tf.constant(1.0),
            "first": (1.0 - mine) * kept[:20],
            "second": mine * kept[:20],
        }

    step = make_train_step(model, optimizer, objective, None, clip_norm=1.0, accumulation=3)
    batch = strategy.experimental_distribute_values_from_function(lambda _: make_batch())
    run = tf.function(lambda batch: step(strategy, batch), autograph=False)
    before = states(model)
    drawn = []
    for _ in range(2):
        metrics = run(batch)
        drawn += [metrics["first"].numpy(), metrics["second"].numpy()]
    assert len({mask.tobytes() for mask in drawn}) == 4, drawn
    moved = [a - b for a, b in zip(states(model), before, strict=True) if np.any(a != b)]
    np.testing.assert_array_equal(moved, [[0, 6]])  # three micro-batches, two steps, no trace of the shift
    for variable in model.non_trainable_variables:
        first, second = (value.numpy() for value in strategy.experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second)
    check_skipping(strategy)


if __name__ == "__main__":
    main()
