import json
import math
import os
import subprocess
import sys

import pytest

from tests import tiny


@pytest.mark.slow  # XLA, once a bucket
def test_after_one_pass_over_the_buckets_nothing_is_traced_or_compiled(toy_records, toy_targets, work_dir):
    """The real step as XLA compiles it, in a process of its own: the flag that shows programs is read once."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_dump_to={work_dir} --xla_dump_hlo_as_text --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-m", "tests.training.compiled_steps"]
    command += [toy_records.folder, toy_targets["factored"].folder, str(work_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    num_buckets = len(tiny.BUCKETS.seconds)
    assert first["traces"] == second["traces"] == 1
    assert second["programs"] == first["programs"] >= num_buckets
    assert len(first["losses"]) == len(second["losses"]) == num_buckets
    assert all(math.isfinite(loss) for loss in first["losses"] + second["losses"])
