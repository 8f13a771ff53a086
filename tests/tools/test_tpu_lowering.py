import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.pipeline import Augmentation, read_batches
from tf_rnnt_kd.nst.plan import Generation
from tf_rnnt_kd.training.objective import Objective
from tools import tpu_lowering
from tools.tpu_fit import ENVIRONMENT


def generation(codec="factored", dtype="float32"):
    return Generation(
        name="student",
        model=tiny.transducer,
        objective=Objective(kl_weight=0.01 if codec else 0.0),
        training=tiny.training(5),
        labelled=("toy",),
        codec=codec,
        targets_dtype=dtype,
    )


def run_compiler(folder, program, topology):
    if not (ENVIRONMENT / "bin" / "python").exists():
        pytest.skip(f"{ENVIRONMENT.name} is missing: tools/tpu_compile.py installs the TPU compiler there")
    (folder / "program").write_bytes(program)
    command = [ENVIRONMENT / "bin" / "python", tpu_lowering.__file__.replace("lowering", "compiler")]
    command += [folder / "program", topology]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def product(size):
    return tpu_lowering.lower(lambda a: tf.tanh(a @ a) @ a, [tf.TensorSpec([size, size])])


@pytest.mark.parametrize(("codec", "dtype"), [("factored", "float32"), ("lattice", "float16"), (None, "float32")])
def test_a_step_is_lowered_for_what_the_pipeline_reads(codec, dtype, toy_records, toy_targets):
    pseudo = toy_targets[codec] if codec else toy_records
    schedule = make_schedule([pseudo], [], tiny.BUCKETS, num_steps=1, labelled_fraction=1.0, seed=0)
    batches = read_batches(
        [pseudo], schedule, first_step=0, augmentation=Augmentation(), seed=0, with_teacher=bool(codec)
    )
    (batch,) = batches
    (size, frames), labels = batch.teacher.weight.shape + [batch.features.shape[1] // 4], batch.labels.shape[1]
    specs = tpu_lowering.batch_specs(tiny.transducer(), generation(codec, dtype), size, frames, labels)
    found = tf.nest.map_structure(lambda values: (values.dtype, values.shape), batch)
    assert tf.nest.map_structure(lambda spec: (spec.dtype, spec.shape), specs) == found


def test_without_weights_a_model_is_the_same_but_for_their_values():
    real = tiny.transducer()
    with tpu_lowering.weightless():
        hollow = tiny.transducer()
    assert [(v.shape, v.dtype) for v in hollow.weights] == [(v.shape, v.dtype) for v in real.weights]
    assert all(not np.any(v) for v in hollow.trainable_variables)
    assert any(np.any(v) for v in tiny.transducer().trainable_variables)  # and only within


@pytest.mark.slow  # a whole step in the TPU compiler
def test_a_step_updates_weights_and_moments_in_place(work_dir):
    with tpu_lowering.weightless():
        model = tiny.transducer()
        step = tpu_lowering.train_step(model, generation())
    specs = tpu_lowering.batch_specs(model, generation(), 2, 8, 3)
    found = run_compiler(work_dir, tpu_lowering.lower(step, (specs,)), "v4:2x2x1")
    state = sum(4 * int(np.prod(v.shape)) for v in model.trainable_variables) * 3  # weights and two moments each
    assert found["arguments"] >= state and found["aliased"] >= state
    assert found["outputs"] - found["aliased"] < 0.1 * state


def test_the_tpu_compiler_says_what_a_program_takes(work_dir):
    found = run_compiler(work_dir, product(2048), "v5e:2x2")
    assert found["kind"] == "TPU v5 lite" and found["cores"] == 4
    assert found["arguments"] == found["outputs"] == 4 * 2048**2
    assert found["flops"] >= 2 * 2 * 2048**3 and found["seconds"] > 0.0


def test_the_tpu_compiler_refuses_what_does_not_fit(work_dir):
    found = run_compiler(work_dir, product(100_000), "v5e:2x2")
    assert (
        found["refused"].startswith("Ran out of memory on HBM") and "exceeds available HBM (15.75G)" in found["refused"]
    )


def test_a_topology_that_there_is_not_is_no_refusal(work_dir):
    found = run_compiler(work_dir, product(16), "v9:2x2")
    assert "refused" not in found and "TPU v9" in found["failed"]
