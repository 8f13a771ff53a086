"""A compiled training step over all buckets, twice; run as a program by `test_compiled_step.py`.

Prints JSON: for each pass over the buckets, how often TensorFlow traced the step and how many programs XLA compiled so
far, and the losses.
"""

import json
import os
import sys

import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.pipeline import Augmentation, read_batches
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.training.loop import make_optimizer, make_step
from tf_rnnt_kd.training.objective import Objective, TeacherJoint
from tf_rnnt_kd.training.strategy import make_strategy


def main(labelled, pseudo, dump):
    sets = [open_records(labelled), open_records(pseudo)]
    schedule = make_schedule([sets[0]], [sets[1]], tiny.BUCKETS, num_steps=40, labelled_fraction=0.3, seed=0)
    batches = read_batches(sets, schedule, first_step=0, augmentation=Augmentation(), seed=0, with_teacher=True)
    model = tiny.transducer(rematerialise=True)
    training = tiny.training(40, jit_compile=True)
    optimizer = make_optimizer(training, model)
    optimizer.build(model.trainable_variables)
    joint = TeacherJoint(tf.constant(sets[1].kernel), tf.constant(sets[1].bias))
    objective, strategy = Objective(kl_weight=0.01), make_strategy("one_device")
    step = make_step(model, optimizer, objective, training, joint, seed=0)
    # As the training loop traces it: once, for all buckets.
    call = tf.function(
        lambda batch: step(strategy, batch), input_signature=[batches.element_spec], jit_compile=True, autograph=False
    )
    of_bucket = {}
    for bucket, batch in zip(schedule.bucket.tolist(), batches, strict=False):
        of_bucket.setdefault(bucket, []).append(batch)
    passes = []
    for i in range(2):
        losses = [float(call(of_bucket[bucket][i])["loss"]) for bucket in sorted(of_bucket)]
        programs = sum(name.endswith("before_optimizations.txt") for name in os.listdir(dump))
        passes.append({"traces": call.experimental_get_tracing_count(), "programs": programs, "losses": losses})
    print(json.dumps(passes))


if __name__ == "__main__":
    main(*sys.argv[1:])
