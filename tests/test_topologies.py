"""The same plan on one device, on two replicas of a process and by two processes, through the command itself."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.workers import ROOT, input_server, worker_environments
from tf_rnnt_kd.training.checkpoint_files import find_steps, read_header, read_values

pytestmark = pytest.mark.slow  # four processes, which trace for themselves

STEPS = 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three runs, and what the workers of the last one printed; an input server feeds the two replicas."""
    folder = tmp_path_factory.mktemp("topologies")

    def start(name, strategy, environment, *more, module="tf_rnnt_kd.train"):
        command = [sys.executable, "-m", module, "--config=tests/toy_topologies.gin", f"--strategy={strategy}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, f"--work_dir={folder / name}", *more], cwd=ROOT, env=environment, **pipes)

    with input_server() as server:
        served = f"--param=loop.Training.input_servers=('{server}',)"
        running = [
            *(start("workers", "multiworker", environment) for environment in worker_environments()),
            start("one_device", "one_device", os.environ),
            start("replicas", "mirrored", os.environ, served, module="tests.two_replicas"),
        ]
        try:
            printed = [process.communicate(timeout=500) for process in running]
        finally:
            for process in running:
                process.kill()
    for process, (_, errors) in zip(running, printed, strict=True):
        assert process.returncode == 0, errors
    return {name: folder / name for name in ("one_device", "replicas", "workers")}, [out for out, _ in printed[:2]]


def curves(run):
    """Every scalar of TensorBoard by name, in the order of steps."""
    (path,) = (run / "seed-0" / "teacher" / "tensorboard").iterdir()
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return found


def checkpointed(run):
    """All variables of the last checkpoint: weights, moments, averages."""
    folder = str(run / "seed-0" / "teacher" / "checkpoints")
    step = find_steps(folder)[-1]
    tensors = read_header(folder, step)["tensors"]
    return {tensor.name: value for tensor, value in zip(tensors, read_values(folder, step, tensors), strict=True)}


@pytest.mark.parametrize("other", ["replicas", "workers"])
def test_losses_and_weights_are_those_of_one_device(runs, other):
    ours, theirs = (curves(runs[0][name]) for name in ("one_device", other))
    # The auxiliary loss alone falls steeply here: 1e-7 in the weights is 1.1e-6 of it at the last step.
    tolerances = {"loss": 1e-6, "loss/transducer": 1e-6, "loss/ctc": 2e-6, "update/gradient_norm": 1e-5}
    for name, tolerance in tolerances.items():
        assert len(ours[name]) == STEPS and len(set(ours[name])) == STEPS
        np.testing.assert_allclose(theirs[name], ours[name], rtol=tolerance, err_msg=name)
    assert ours["update/skipped"] == theirs["update/skipped"] == STEPS * [0.0]
    assert min(ours["update/gradient_norm"]) > 0.5  # so every step was clipped
    ours, theirs = (checkpointed(runs[0][name]) for name in ("one_device", other))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0.0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("other", ["replicas", "workers"])
def test_the_exported_weights_are_averages_and_equal(runs, other):
    ours, theirs = (np.load(runs[0][name] / "seed-0" / "teacher" / "weights.npz") for name in ("one_device", other))
    kept = {value.tobytes() for name, value in checkpointed(runs[0]["one_device"]).items() if "optimizer" in name}
    assert ours.files == theirs.files and len(ours.files) > 40
    for name in ours.files:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=0.0, atol=1e-6, err_msg=name)
        assert ours[name].tobytes() in kept, name


def test_one_worker_alone_writes_and_reports(runs):
    folders, printed = runs
    assert len(curves(folders["workers"])["dev_wer"]) == 2
    names = [
        {str(path.relative_to(folders[run])) for path in folders[run].rglob("*") if "events" not in path.name}
        for run in ("one_device", "workers")
    ]
    assert names[0] == names[1]
    assert "\nteacher " in printed[0] and "results.json" in printed[0]
    assert "results" not in printed[1] and "dev_wer" not in printed[1]
