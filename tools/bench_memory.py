"""Measures what training steps take and compares it with what `training/memory.py` predicts.

    python tools/bench_memory.py --output memory.json

One process a shape: builds the model, runs two steps on random features, and reads the peak of its resident memory,
less what it was after importing TensorFlow. Prints predicted and measured bytes.
"""

import json
import os
import resource
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_SHAPE = flags.DEFINE_string("shape", None, "JSON of one shape, measured in this process.")

_FIELDS = ("batch", "frames", "labels", "width", "blocks", "heads", "joint", "vocabulary", "with_teacher")
_SHAPES = (
    (2, 100, 20, 64, 1, 4, 64, 30, False),
    (32, 100, 100, 96, 3, 4, 96, 14, True),
    (16, 250, 40, 144, 4, 4, 320, 1024, False),
    (16, 250, 40, 144, 4, 4, 320, 1024, True),
    (16, 250, 40, 144, 8, 4, 320, 1024, False),
    (4, 600, 60, 144, 4, 4, 320, 1024, False),
    (4, 600, 60, 144, 4, 8, 320, 1024, False),
    (16, 250, 40, 256, 4, 4, 320, 256, False),
    (2, 200, 40, 512, 6, 8, 640, 1024, False),
    (4, 300, 60, 144, 16, 4, 320, 1024, True),
    (4, 200, 100, 96, 2, 4, 640, 4096, True),
    (8, 300, 40, 144, 16, 4, 320, 1024, True),
    (2, 400, 40, 512, 8, 8, 640, 1024, True),
    (1, 20, 5, 144, 16, 4, 320, 1024, False),
    (1, 20, 5, 512, 2, 8, 640, 1024, False),
)


def main(argv):
    """Starts a process for each shape and prints the table."""
    del argv
    if _SHAPE.value:
        print(json.dumps(measure(**json.loads(_SHAPE.value))))
        return
    rows = []
    print(
        f"{'B':>3} {'T':>4} {'U':>4} {'width':>5} {'N':>3} {'H':>2} {'D':>4} {'V':>5}  KL  predicted  measured  error"
    )
    for values in _SHAPES:
        shape = dict(zip(_FIELDS, values, strict=True))
        command = [sys.executable, __file__, f"--shape={json.dumps(shape)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append({**shape, **row})
        error = row["predicted"] / row["measured"] - 1
        print(
            "{:3} {:4} {:4} {:5} {:3} {:2} {:4} {:5}".format(*values[:-1]),
            f" {'yes' if values[-1] else ' no'} {row['predicted'] / 1e6:7.0f} MB {row['measured'] / 1e6:6.0f} MB",
            f"{error:+6.1%}",
            flush=True,
        )
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


def measure(batch, frames, labels, width, blocks, heads, joint, vocabulary, with_teacher):
    """Bytes, predicted and measured, of one shape."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    import tensorflow as tf

    from tf_rnnt_kd.batch import Batch, TeacherTargets
    from tf_rnnt_kd.models.conformer import ConformerEncoder
    from tf_rnnt_kd.models.transducer import Transducer
    from tf_rnnt_kd.nst import jobs
    from tf_rnnt_kd.training.memory import StepShape, step_bytes
    from tf_rnnt_kd.training.objective import Objective, TeacherJoint
    from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step

    jobs.keep_memory()
    before = _resident()
    model = Transducer(
        vocabulary, ConformerEncoder(width, blocks, heads, 31, dropout=0.1), prediction_width=joint, joint_width=joint
    )
    optimizer = ReducedAdamW(1e-3)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)

    def random(*shape):
        return tf.constant(rng.standard_normal(shape), tf.float32)

    logits = tf.zeros([batch, 0, 0, 0])
    teacher = TeacherTargets(*[tf.zeros([batch, 0, 0])] * 2, logits, tf.zeros([batch]))
    if with_teacher:
        teacher = TeacherTargets(
            random(batch, frames, joint), random(batch, labels + 1, joint), logits, tf.ones([batch])
        )
    data = Batch(
        random(batch, 4 * frames, 80),
        tf.fill([batch], 4 * frames),
        tf.constant(rng.integers(1, vocabulary, (batch, labels)), tf.int32),
        tf.fill([batch], labels),
        teacher,
        tf.zeros([batch], tf.int32),
    )
    objective = Objective(kl_weight=0.01 if with_teacher else 0.0)
    kernel = TeacherJoint(random(joint, vocabulary), random(vocabulary)) if with_teacher else None
    step = make_train_step(model, optimizer, objective, kernel, clip_norm=1.0)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    any_size = tf.nest.map_structure(
        lambda t: tf.TensorSpec([None] * min(len(t.shape), 2) + list(t.shape[2:]), t.dtype), data
    )
    run = tf.function(lambda data: step(strategy, data), autograph=False, input_signature=[any_size])
    for _ in range(2):
        float(run(data)["loss"])
    predicted = step_bytes(model, objective, StepShape(batch, frames, labels))
    return {"predicted": predicted, "measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


def _resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    app.run(main)
