"""A training that goes from one device to two replicas and back; run as a program by `test_loop.py`, as it needs two
logical CPUs: `python -m tests.training.moves FOLDER RECORDS`.
"""

import sys

import numpy as np
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.data.batching import Buckets
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.training.loop import train
from tf_rnnt_kd.training.objective import Objective
from tf_rnnt_kd.training.strategy import make_strategy
from tf_rnnt_kd.training.watching import Evaluation, Shown


class Stopped(Exception):
    """Ends a part of the training."""


def run(folder, records, strategy, stop):
    """Trains up to step 6, or until step `stop` has a checkpoint."""
    training = tiny.training(
        6,
        buckets=Buckets((1.2, 2.0), batch_seconds=8.0, batch_multiple=2),
        checkpoint_every=1,
        evaluate_every=1,
        ema_decay=0.8,
    )
    left = [stop]

    def watch(model):
        left[0] -= 1
        if left[0] < 0:  # the step after; the checkpoint of the one before is written
            raise Stopped
        return Evaluation({"dev_wer": 50.0}, [])

    def model():
        return tiny.transducer(dropout=0.0)  # whose masks are of a replica's rows

    shown = Shown(list(records.read(0, 1)), " ABCDE")
    how = {"folder": folder, "seed": 5, "strategy": strategy, "evaluators": [watch], "shown": shown}
    return train("toy", model, Objective(), training, [records], [], **how).model


def main(folder, records):
    """Compares the weights after six steps."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    records = open_records(records)
    one, two = make_strategy("one_device"), make_strategy("mirrored")
    assert two.num_replicas_in_sync == 2
    expected = run(f"{folder}/whole", records, one, 6)
    for strategy in (one, two):
        try:
            run(f"{folder}/parts", records, strategy, 2)
        except Stopped:
            pass
        else:
            raise AssertionError("it was not stopped")
    moved = run(f"{folder}/parts", records, one, 2)
    start = tiny.transducer(dropout=0.0, seed=5)
    for theirs, ours, old in zip(moved.weights, expected.weights, start.weights, strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=0.0, atol=1e-6, err_msg=ours.path)
        assert "seed_generator" in ours.path or np.max(np.abs(ours.numpy() - old.numpy())) > 1e-5, ours.path


if __name__ == "__main__":
    main(*sys.argv[1:])
