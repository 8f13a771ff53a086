"""A plan carried out by two processes, by the command as its user starts it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.workers import ROOT, worker_environments

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same plan done by one process and by two, and what the two printed."""
    folder = tmp_path_factory.mktemp("workers")

    def start(name, strategy, environment):
        command = [sys.executable, "-m", "tf_rnnt_kd.train", "--config=tests/toy_workers.gin", f"--strategy={strategy}"]
        command.append(f"--work_dir={folder / name}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    running = [start("two", "multiworker", environment) for environment in worker_environments()]
    running.append(start("one", "one_device", {**os.environ}))
    try:
        printed = [process.communicate(timeout=500) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, printed, strict=True):
        assert process.returncode == 0, errors
    return folder / "one", folder / "two", [out for out, _ in printed[:2]]


def test_two_workers_leave_the_model_that_one_process_leaves(runs):
    one, two, _ = runs
    models = [np.load(run / "seed-0" / "teacher" / "weights.npz") for run in (one, two)]
    assert models[0].files == models[1].files and len(models[0].files) > 40
    for name in models[0].files:
        np.testing.assert_allclose(models[1][name], models[0][name], rtol=0.0, atol=1e-6, err_msg=name)
    names = [{str(path.relative_to(run)) for path in run.rglob("*") if "events" not in path.name} for run in (one, two)]
    assert names[0] == names[1]


def test_the_chief_alone_writes_and_reports(runs):
    _, two, printed = runs
    assert len(list((two / "seed-0" / "teacher" / "tensorboard").iterdir())) == 1
    assert "\nteacher " in printed[0] and "results.json" in printed[0]
    assert "results" not in printed[1] and "dev_wer" not in printed[1]
