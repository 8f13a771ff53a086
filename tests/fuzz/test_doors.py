"""Whatever is damaged: a clear line or the right outcome. The fixed part of the fuzzers."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.fuzz.core import FAULTS
from tests.fuzz.doors import DOORS
from tests.fuzz.running import Result, format_table, list_faults

ROOT = pathlib.Path(__file__).parents[2]
# Doors of formats without redundancy: samples of PCM, frames of MP3 and AAC, plain text, and files that may be missing.
_EXCUSED = {"audio", "corpora", "arpa", "sentences", "runs"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What came of all cases. In another process: this one may have used TensorFlow, which must not be forked then."""
    path = tmp_path_factory.mktemp("fuzz") / "results.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--json", str(path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert path.exists(), ended.stderr[-4_000:]
    return [Result(**result) for result in json.loads(path.read_text())]


def test_five_thousand_cases_run(results, record_property):
    record_property("fuzz", format_table(results))
    assert len(results) >= 5_000
    assert collections.Counter(result.door for result in results) == {door.name: door.cases for door in DOORS}


@pytest.mark.parametrize("door", [door.name for door in DOORS])
def test_nothing_is_silent_and_nothing_ends_by_a_traceback(results, door):
    faults = [result for result in results if result.door == door and result.verdict in FAULTS]
    assert not faults, list_faults(faults)


@pytest.mark.parametrize("door", [door.name for door in DOORS])
def test_a_door_refuses_damage_and_lets_the_rest_through(results, door):
    found = collections.Counter(result.verdict for result in results if result.door == door)
    assert found["correct"] and (found["clear"] or door == "stdin")  # where whatever comes is sound
    assert not found["excused"] or door in _EXCUSED
