"""The same global batches on one device, on two replicas of a process, and in two processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.training.topologies import STEPS
from tests.workers import ROOT, input_server, worker_environments

pytestmark = pytest.mark.slow  # four processes, which trace for themselves

RUNS = ("one_device", "mirrored", "chief", "other")


@pytest.fixture(scope="module")
def found(toy_records, toy_targets, tmp_path_factory):
    """What each process reports, and the folder of all; the replicas are fed by an input server."""
    folder = tmp_path_factory.mktemp("topologies")
    records = [toy_records.folder, toy_targets["factored"].folder]

    environments = dict(zip(("chief", "other"), worker_environments(), strict=True))

    def start(name, servers):
        topology = "multiworker" if name in environments else name
        place = folder / ("workers" if name in environments else name)
        command = [sys.executable, "-m", "tests.training.topologies", topology, place, *records, folder / f"{name}.npz"]
        environment = environments.get(name, os.environ)
        return subprocess.Popen([*command, *servers], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    with input_server() as server:
        running = [start(name, [server] if name == "mirrored" else []) for name in RUNS]
        try:
            for process in running:
                errors = process.communicate(timeout=500)[1]
                assert process.returncode == 0, errors
        finally:
            for process in running:
                process.kill()
    return {name: dict(np.load(folder / f"{name}.npz")) for name in RUNS}, folder


@pytest.mark.parametrize("other", RUNS[1:])
def test_losses_and_weights_are_those_of_one_device(found, other):
    ours, theirs = found[0]["one_device"], found[0][other]
    for name, tolerance in {"loss": 1e-6, "transducer": 1e-6, "ctc": 1e-6, "kl": 1e-6, "gradient_norm": 1e-5}.items():
        assert len(ours[name]) == STEPS
        np.testing.assert_allclose(theirs[name], ours[name], rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(theirs["weights"], ours["weights"], rtol=0.0, atol=1e-6)
    assert len(np.unique(ours["weights"])) > 1000 and not np.any(ours["skipped_updates"])


def test_the_chief_evaluates_averaged_weights_and_keeps_those_that_it_evaluated_last(found):
    for name in ("one_device", "mirrored", "chief"):
        evaluated = found[0][name]["evaluated"]
        assert len(evaluated) == 2 and np.any(evaluated[0] != evaluated[1])
        np.testing.assert_array_equal(evaluated[1], found[0][name]["weights"])
    assert len(found[0]["other"]["evaluated"]) == 0


def test_one_worker_alone_writes(found):
    workers = found[1] / "workers"
    events = list((workers / "tensorboard").iterdir())
    assert len(events) == 1 and len(list((workers / "checkpoints").glob("*.index"))) == 2
