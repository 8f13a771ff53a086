"""The training step and the search of a plan as StableHLO, with static shapes, in little memory.

`tools/tpu_compile.py` starts a process for each program. What is lowered is what `training.loop.make_step` and
`decoding.offline.recognize` give, at the plan's own model, objective, precision and optimizer; only the values of
weights and moments are not real: all share one buffer of zeros, since a program depends on their shapes alone.
"""

import contextlib
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from tf_rnnt_kd import config
from tf_rnnt_kd.batch import Batch, TeacherTargets
from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP
from tf_rnnt_kd.models.transducer import NUM_FEATURE_BINS, Transducer
from tf_rnnt_kd.nst.outline import vocabulary_of
from tf_rnnt_kd.nst.plan import Generation
from tf_rnnt_kd.training.loop import make_optimizer, make_step
from tf_rnnt_kd.training.objective import TeacherJoint
from tools.tpu_fit import TRAIN


@dataclasses.dataclass(frozen=True)
class Program:
    """What is lowered: one generation's step or search at one shape.

    Attributes:
      config: gin file of the plan.
      params: overrides.
      generation: its name.
      part: `TRAIN`, or the beam of a search.
      batch: B on one core.
      frames: T, of 40 ms.
      labels: U; of a search unused.
    """

    config: str
    params: tuple[str, ...]
    generation: str
    part: str
    batch: int
    frames: int
    labels: int


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Within, Keras initializes variables by views of one buffer of zeros, which assignment shares."""
    zeros = tf.zeros([1 << 26])

    def view(self, shape, dtype=None, **_):
        size = tf.TensorShape(shape).num_elements()
        usable = size <= zeros.shape[0] and dtype in (None, "float32", tf.float32)
        return tf.reshape(zeros[:size], shape) if usable else tf.zeros(shape, dtype or "float32")

    names = ("GlorotUniform", "Orthogonal", "Zeros", "Ones", "RandomUniform", "RandomNormal")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(getattr(keras.initializers, name), "__call__", view))
        yield


def build(generation: Generation, vocabulary_size: int) -> Transducer:
    """The student, in the precision of its training."""
    keras.config.set_dtype_policy(generation.training.precision)
    return generation.model(vocabulary_size)


def batch_specs(model: Transducer, generation: Generation, batch: int, frames: int, labels: int) -> Batch:
    """The shapes and dtypes that `data.pipeline` gives a training step."""

    def numbers(*shape, dtype="float32"):
        return tf.TensorSpec([batch, *shape], dtype)

    stored, width = generation.targets_dtype, model.joint_width
    factored, lattice = generation.codec == "factored", generation.codec == "lattice"
    empty = numbers(0, 0)
    teacher = TeacherTargets(
        numbers(frames, width, dtype=stored) if factored else empty,
        numbers(labels + 1, width, dtype=stored) if factored else empty,
        numbers(frames, labels + 1, model.vocabulary_size, dtype=stored) if lattice else numbers(0, 0, 0),
        numbers(),
    )
    counts = numbers(dtype="int32")
    features = numbers(4 * frames, NUM_FEATURE_BINS)
    return Batch(features, counts, numbers(labels, dtype="int32"), counts, teacher, counts)


def train_step(model: Transducer, generation: Generation) -> Callable[[Batch], dict[str, tf.Tensor]]:
    """The update that `training.loop` runs, on one replica, compiled as on a TPU."""
    training = dataclasses.replace(generation.training, jit_compile=True)
    optimizer = make_optimizer(training, model)
    optimizer.build(model.trainable_variables)
    joint = None
    if generation.codec == "factored":
        joint = TeacherJoint(tf.zeros([model.joint_width, model.vocabulary_size]), tf.zeros([model.vocabulary_size]))
    step = make_step(model, optimizer, generation.objective, training, joint, seed=0)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return lambda batch: step(strategy, batch)


def search(model: Transducer, beam: int, batch: int, frames: int) -> tuple[Callable, Sequence[tf.TensorSpec]]:
    """What a labeller does with audio until it has hypotheses, and the shapes of that audio."""
    samples = (4 * frames - 1) * FRAME_STEP + FRAME_LENGTH
    specs = tf.TensorSpec([batch, samples]), tf.TensorSpec([batch], tf.int32)
    return lambda samples, num_samples: recognize(model, samples, num_samples, beam=beam).nbest, specs


def lower(function: Callable, specs: Sequence) -> bytes:
    """StableHLO, serialized, of a function of structures of tensors; variables are arguments, updated in place."""
    flat = tf.nest.flatten(specs)
    compiled = tf.function(
        lambda *values: function(*tf.nest.pack_sequence_as(specs, values)), jit_compile=True, autograph=False
    )
    return compiled.experimental_get_compiler_ir(*flat)(stage="stablehlo_serialized")


def lower_program(program: Program) -> bytes:
    """StableHLO of a program."""
    plan, _ = config.load_plan(program.config, program.params)
    generation = next(g for g in plan.generations if g.name == program.generation)
    with weightless():
        model = build(generation, vocabulary_of(plan))
        if program.part == TRAIN:
            function = train_step(model, generation)
            specs = (batch_specs(model, generation, program.batch, program.frames, program.labels),)
        else:
            function, specs = search(model, int(program.part), program.batch, program.frames)
    return lower(function, specs)


def main(argv: list[str]) -> None:
    """Lowers the program of a JSON text to a file and prints seconds and peak memory as JSON."""
    start = time.monotonic()
    fields = json.loads(argv[1])
    lowered = lower_program(Program(**{**fields, "params": tuple(fields["params"])}))
    with open(argv[2] + ".tmp", "wb") as file:
        file.write(lowered)
    os.replace(argv[2] + ".tmp", argv[2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.monotonic() - start, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv)
