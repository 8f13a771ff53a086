"""Checks the losses on this machine's device: published vectors, enumeration, closed forms and finite differences.

    python tools/check_loss.py --strategy auto --dtype bfloat16 --vectors rnnt_vectors.json

Prints one line a check with the largest error and what is allowed, and exits with 1 if any fails. A device that
multiplies in less than float32 (TPU, TensorFloat-32) shows here what that costs.
"""

import json
import math
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import numpy as np
from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, tpu, mirrored, multiworker or one_device.")
_TPU = flags.DEFINE_string("tpu", None, "Name of the TPU; 'local' on a TPU VM.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of the inputs of the losses.")
_VECTORS = flags.DEFINE_string("vectors", None, "JSON file of published loss vectors; without it one known case.")
_MODES = flags.DEFINE_list("modes", ["eager", "graph", "xla"], "How the losses are run.")

# warp-transducer, tests/test_cpu.cpp: T=2, U=2, V=5 (Apache-2.0).
_KNOWN = {
    "name": "warp-transducer's small case",
    "logits": [
        [
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
        ]
    ],
    "labels": [[1, 2]],
    "logit_lengths": [2],
    "label_lengths": [2],
    "blank": 0,
    "reference_float64": {"cost": [4.4956668]},
}


class Checks:
    """Runs functions in every mode and keeps the table."""

    def __init__(self, strategy):
        self.failures = 0
        self._strategy = strategy

    def compare(self, name, function, arguments, wanted, *, relative=1e-5, absolute=1e-5):
        """`function(*arguments)` in each mode against `wanted`, a list of arrays in the same order."""
        import tensorflow as tf

        for mode in _MODES.value:
            run = function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")
            found = self._strategy.run(run, args=tuple(map(tf.constant, arguments)))
            found = [self._strategy.experimental_local_results(values)[0].numpy() for values in tf.nest.flatten(found)]
            errors = [
                np.max(np.abs(np.nan_to_num(f - w, nan=0.0 if np.array_equal(f, w) else np.inf)), initial=0.0)
                for f, w in zip(found, wanted, strict=True)
            ]
            allowed = [absolute + relative * np.max(np.abs(w), where=np.isfinite(w), initial=0.0) for w in wanted]
            worst = max(error / limit for error, limit in zip(errors, allowed, strict=True))
            self.failures += not worst <= 1.0
            verdict = "ok" if worst <= 1.0 else "FAILED"
            print(f"{name:58} {mode:5}  {max(errors):8.1e}  {worst:7.3f} of allowed  {verdict}", flush=True)


def main(argv):
    """Runs all checks."""
    del argv
    import tensorflow as tf

    from tf_rnnt_kd.training.strategy import make_strategy

    tf.get_logger().setLevel("ERROR")  # every check is traced anew, on purpose
    strategy = make_strategy(_STRATEGY.value, _TPU.value)
    devices = ", ".join(device.name for device in tf.config.list_logical_devices())
    print(f"{type(strategy).__name__} on {devices}; inputs in {_DTYPE.value}\n")
    checks = Checks(strategy)
    check_vectors(checks)
    check_closed_form(checks)
    for seed in range(4):
        check_enumeration(checks, seed)
    check_finite_differences(checks)
    print(f"\n{checks.failures} checks failed" if checks.failures else "\nall checks passed")
    sys.exit(min(checks.failures, 1))


def rounded(values):
    """As the losses will see it: in the dtype under test, handed to the oracle in float64."""
    import tensorflow as tf

    return tf.cast(tf.constant(np.asarray(values), tf.float32), _DTYPE.value)


def transducer_and_gradient(logits, labels, num_frames, num_labels, **options):
    """The loss [B] and its gradient by the logits, float32."""
    import tensorflow as tf

    from tf_rnnt_kd.losses import transducer_loss

    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = transducer_loss(logits, labels, num_frames, num_labels, **options)
    return loss, tf.cast(tape.gradient(loss, logits), tf.float32)


def check_vectors(checks):
    """Published costs and gradients."""
    cases = [_KNOWN]
    if _VECTORS.value:
        try:
            with open(_VECTORS.value, encoding="utf-8") as file:
                cases = json.load(file)["rnnt_loss"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--vectors={_VECTORS.value}: no published loss vectors there ({error})") from None
    for case in (case for case in cases if "logits" in case):
        reference = case["reference_float64"]
        wanted = [np.array(reference.get("cost", reference.get("cost_nll")), np.float64)]
        labels = np.array(case["labels"], np.int32).reshape(len(case["logits"]), -1)
        options = {"blank_id": case["blank"], "fastemit_lambda": case.get("fastemit_lambda", 0.0)}
        by_gradient = "grad_logits" in reference
        wanted += [np.array(reference["grad_logits"], np.float64)] if by_gradient else []

        def run(*arguments, options=options, count=1 + by_gradient):
            return transducer_and_gradient(*arguments, **options)[:count]

        lengths = np.array(case["logit_lengths"], np.int32), np.array(case["label_lengths"], np.int32)
        coarse = {"float32": 1e-5, "bfloat16": 0.02, "float16": 2e-3}[_DTYPE.value]  # the inputs are rounded
        arguments = rounded(case["logits"]), labels, *lengths
        checks.compare(f"published: {case['name']}", run, arguments, wanted, relative=coarse, absolute=coarse)


def check_closed_form(checks):
    """Uniform logits: `(T + U) log V - log C(T + U - 1, U)`."""
    from tf_rnnt_kd.losses import JointInputs, joint_tile_losses

    frames, labels, vocabulary = 300, 60, 512
    paths = math.lgamma(frames + labels) - math.lgamma(labels + 1) - math.lgamma(frames)
    wanted = [np.array([(frames + labels) * math.log(vocabulary) - paths])]
    zeros = [np.zeros(s) for s in ([1, frames, 4], [1, labels + 1, 4], [4, vocabulary], [vocabulary])]
    arguments = *map(rounded, zeros), np.ones([1, labels], np.int32), np.array([frames]), np.array([labels])

    def run(*arguments):
        return joint_tile_losses(JointInputs(*arguments[:4]), None, *arguments[4:])[0]

    checks.compare(f"closed form: T={frames}, U={labels}, V={vocabulary}, in tiles", run, arguments, wanted)


def check_enumeration(checks, seed):
    """Random joint networks and lengths: loss, lattice KL and collapsed KL against every alignment written out."""
    from tests.losses.batches import joint_batch
    from tests.oracles import alignments, divergence, joint
    from tf_rnnt_kd.losses import JointInputs, joint_tile_losses

    blank_id = seed % 5
    batch = joint_batch(seed, frames=4, labels=3, vocabulary=5, blank_id=blank_id)
    student, teacher = (JointInputs(*map(rounded, inputs)) for inputs in batch[:2])
    exact = batch._replace(
        student=JointInputs(*(np.asarray(values, np.float64) for values in student)),
        teacher=JointInputs(*(np.asarray(values, np.float64) for values in teacher)),
    )
    wanted = []
    for b in range(len(batch.labels)):
        ours, theirs = (joint.logits(*exact.utterance(inputs, b)) for inputs in exact[:2])
        labels = exact.labels_of(b)
        collapsed = divergence.collapsed_lattice_kl(theirs, ours, labels, blank_id)
        loss = alignments.transducer_loss(ours, labels, blank_id)
        wanted.append([loss, divergence.lattice_kl(theirs, ours), collapsed])

    def run(*arguments):
        inputs = JointInputs(*arguments[:4]), JointInputs(*arguments[4:8]), *arguments[8:]
        loss, kl = joint_tile_losses(*inputs, blank_id=blank_id)
        return loss, kl, joint_tile_losses(*inputs, blank_id=blank_id, kl="collapsed")[1]

    arguments = *student, *teacher, *batch[2:]
    checks.compare(
        f"enumeration: seed {seed}, blank {blank_id}, NaN in padding", run, arguments, list(np.array(wanted).T)
    )


def check_finite_differences(checks):
    """The gradient through the joint network, float64 differences of the oracle."""
    import tensorflow as tf

    from tests.losses.batches import joint_batch
    from tests.oracles import alignments, divergence, joint
    from tf_rnnt_kd.losses import JointInputs, joint_tile_losses

    batch = joint_batch(9, batch=1, frames=3, labels=2, width=3, vocabulary=4)
    student, teacher = (JointInputs(*map(rounded, inputs)) for inputs in batch[:2])
    inputs = [np.asarray(values, np.float64) for values in (student.encoded[0], student.predicted[0], *student[2:])]
    theirs = [np.asarray(values, np.float64) for values in (teacher.encoded[0], teacher.predicted[0], *teacher[2:])]
    theirs = joint.logits(*theirs)

    def oracle(*inputs):
        ours = joint.logits(*inputs)
        return alignments.transducer_loss(ours, batch.labels[0], 0) + 0.3 * divergence.lattice_kl(theirs, ours)

    def run(*arguments):
        student = JointInputs(*arguments[:4])
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss, kl = joint_tile_losses(student, JointInputs(*arguments[4:8]), *arguments[8:])
            total = loss + 0.3 * kl
        encoded, predicted, kernel, bias = tape.gradient(total, student)
        return [tf.cast(values, tf.float32) for values in (encoded[0], predicted[0], kernel, bias)]

    coarse = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}[_DTYPE.value]  # gradients have the inputs' dtype
    wanted = joint.finite_differences(oracle, inputs)
    checks.compare("finite differences: loss + 0.3 KL", run, (*student, *teacher, *batch[2:]), wanted, relative=coarse)


if __name__ == "__main__":
    run_command(main)
