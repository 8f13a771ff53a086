"""`kill -9` at random moments of a plan of two generations. See `lives.py`."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.nst.lives import WANTED

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing_and_change_nothing(work_dir):
    command = [sys.executable, "-m", "tests.nst.lives", str(work_dir), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    hits, undisturbed = found["hits"], found["undisturbed"]
    assert sum(hits.values()) >= 20 and WANTED <= set(hits), hits
    assert {pathlib.Path(path).suffix for path in undisturbed} == {".npz", ".json", ".tfrecord", ".data", ".tsv"}
    assert any("checkpoints" in path for path in undisturbed) and any("labels" in path for path in undisturbed)
    for killed in found["killed"]:
        assert killed == undisturbed
