"""The same plan on one device, on two replicas of a process and by two processes, through the command itself.

One of the two processes is told to stop on the way, and both are started again.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.workers import ROOT, input_server, worker_environments
from tf_rnnt_kd.preemption import MARKER
from tf_rnnt_kd.training.checkpoint_files import find_steps, read_header, read_values

pytestmark = pytest.mark.slow  # six processes, which trace for themselves

STEPS = 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three runs, and what the workers printed, before and after the stop; a server feeds the replicas."""
    folder = tmp_path_factory.mktemp("topologies")
    running = []

    def start(name, strategy, environment, *more, module="tf_rnnt_kd.train"):
        command = [
            sys.executable,
            "-m",
            module,
            "--config=tests/toy_topologies.gin",
            "--trust_config",
            f"--strategy={strategy}",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(
            subprocess.Popen([*command, f"--work_dir={folder / name}", *more], cwd=ROOT, env=environment, **pipes)
        )
        return running[-1]

    def start_workers():
        return [start("workers", "multiworker", environment) for environment in worker_environments()]

    def finish(process, before=""):
        out, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        return before + out

    with input_server() as server:
        served = f"--param=loop.Training.input_servers=('{server}',)"
        try:
            chief, other = start_workers()
            alone = start("one_device", "one_device", os.environ)
            replicas = start("replicas", "mirrored", os.environ, served, module="tests.two_replicas")
            begun = ""
            while "train teacher: 1/" not in begun:
                assert (line := chief.stdout.readline()), chief.stderr.read()
                begun += line
            other.send_signal(signal.SIGTERM)  # long before the end: step 4 is evaluated, which takes seconds
            stopped = [finish(chief, begun), finish(other)]
            assert (folder / "workers" / MARKER).exists()
            printed = [finish(process) for process in start_workers()]
            finish(alone)
            finish(replicas)
        finally:
            for process in running:
                process.kill()
    return {name: folder / name for name in ("one_device", "replicas", "workers")}, stopped, printed


def curves(run):
    """Every scalar of TensorBoard by name, in the order of steps."""
    found = {}
    for path in sorted((run / "seed-0" / "teacher" / "tensorboard").iterdir()):  # one a start
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


def test_sigterm_to_one_worker_stops_both_and_they_go_on(runs):
    _, stopped, printed = runs
    words = "stopped by SIGTERM: the same command goes on"
    assert all(out.count(words) == 1 for out in stopped)
    assert not any("results.json" in out for out in stopped)
    assert all(", from step " in out for out in printed)
    assert words not in "".join(printed) and not (runs[0]["workers"] / MARKER).exists()


def test_one_worker_alone_writes_and_reports(runs):
    folders, stopped, printed = runs
    assert len(curves(folders["workers"])["dev_wer"]) == 2
    names = [
        {str(path.relative_to(folders[run])) for path in folders[run].rglob("*") if "events" not in path.name}
        for run in ("one_device", "workers")
    ]
    assert names[0] == names[1]
    assert "\nteacher " in printed[0] and "results.json" in printed[0]
    assert "results" not in printed[1] and "dev_wer" not in stopped[1] + printed[1]
