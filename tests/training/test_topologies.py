"""The same global batches on one device, on two replicas of a process, and in two processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.training.topologies import STEPS

pytestmark = pytest.mark.slow  # four processes, which trace for themselves

ROOT = pathlib.Path(__file__).parents[2]
RUNS = ("one_device", "mirrored", "chief", "other")


def free_ports(count):
    """Ports that nobody listens on: a moment ago, at least."""
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_port]
    for server in with_port:
        server.close()
    return ports


def worker_environments(count=2):
    """What tells each worker of the others."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    configs = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}} for i in range(count)]
    return [{**os.environ, "TF_CONFIG": json.dumps(config)} for config in configs]


@pytest.fixture(scope="module")
def found(toy_records, toy_targets, tmp_path_factory):
    """What each process reports, and the folder of all."""
    folder = tmp_path_factory.mktemp("topologies")
    records = [toy_records.folder, toy_targets["factored"].folder]

    def start(name, topology, environment):
        place = folder / ("workers" if topology == "multiworker" else name)
        command = [sys.executable, "-m", "tests.training.topologies", topology, place, *records, folder / f"{name}.npz"]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    environments = dict(zip(("chief", "other"), worker_environments(), strict=True))
    running = [
        start(name, name if name not in environments else "multiworker", environments.get(name, os.environ))
        for name in RUNS
    ]
    try:
        for process in running:
            assert process.communicate(timeout=500)[1] is not None and process.returncode == 0, process.args
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
