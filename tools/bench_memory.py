"""Measures what training steps take and compares it with what `training/memory.py` predicts.

    python tools/bench_memory.py --output memory.json
    python tools/bench_memory.py --files            # those of configs/models, one utterance of 16 s each

One process a shape: builds the model, runs two steps on random features, and reads the peak of its resident memory,
less what it was after importing TensorFlow. Prints predicted and measured bytes. Of XL, whose step takes four copies of
604 M weights, only the forward pass is measured.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
_FILES = flags.DEFINE_bool("files", False, "The networks of configs/models in place of the shapes.")
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
_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs" / "models"
_MODELS = ("s", "m", "l", "xl")


def main(argv):
    """Starts a process for each shape and prints the table."""
    del argv
    if _SHAPE.value:
        print(json.dumps(measure(**json.loads(_SHAPE.value))))
        return
    shapes = [dict(zip(_FIELDS, values, strict=True)) for values in _SHAPES]
    if _FILES.value:
        common = {"batch": 1, "frames": 400, "labels": 60, "vocabulary": 1024, "with_teacher": False}
        shapes = [{"file": name, "forward": name == "xl"} | common for name in _MODELS]
    rows = []
    print(f"{'B':>3} {'T':>4} {'U':>4} {'network':>20} {'V':>5}  KL  predicted  measured  error")
    for shape in shapes:
        command = [sys.executable, __file__, f"--shape={json.dumps(shape)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = shape | json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(_to_line(row), flush=True)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _to_line(row):
    network = "{width} x {blocks}, {heads} h, {joint}".format_map(row) if "width" in row else f"{row['file']}.gin"
    teacher = "yes" if row["with_teacher"] else " no"
    line = f"{row['batch']:3} {row['frames']:4} {row['labels']:4} {network:>20} {row['vocabulary']:5} {teacher}"
    measured = f"{row['measured'] / 1e6:6.0f} MB"
    if row.get("forward"):
        return f"{line}  (forward)   {measured}"
    return f"{line} {row['predicted'] / 1e6:7.0f} MB {measured} {row['predicted'] / row['measured'] - 1:+6.1%}"


def measure(batch, frames, labels, vocabulary, with_teacher, *, forward=False, **network):
    """Bytes, predicted and measured, of one shape."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    import tensorflow as tf

    from tf_rnnt_kd.batch import Batch, TeacherTargets
    from tf_rnnt_kd.nst import jobs
    from tf_rnnt_kd.training.memory import StepShape, step_bytes
    from tf_rnnt_kd.training.objective import Objective, TeacherJoint
    from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step

    jobs.keep_memory()
    before = _resident()
    model = _build(vocabulary, **network)
    joint = model.joint_width
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
    if forward:
        run = tf.function(model.__call__, autograph=False)
        assert np.all(np.isfinite(run(data.features, data.num_features, data.labels)[0]))
        return {"measured": _peak() - before}
    optimizer = ReducedAdamW(1e-3)
    optimizer.build(model.trainable_variables)
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
    return {"predicted": predicted, "measured": _peak() - before}


def _build(vocabulary, file=None, width=None, blocks=None, heads=None, joint=None):
    from tf_rnnt_kd.config import load_factory
    from tf_rnnt_kd.models.conformer import ConformerEncoder
    from tf_rnnt_kd.models.transducer import Transducer

    if file is None:
        encoder = ConformerEncoder(width, blocks, heads, 31, dropout=0.1)
        return Transducer(vocabulary, encoder, prediction_width=joint, joint_width=joint)
    return load_factory([str(_FOLDER / f"{file}.gin")], Transducer)(vocabulary)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    app.run(main)
