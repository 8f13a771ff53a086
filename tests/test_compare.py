"""`compare` as a command."""

import json
import subprocess
import sys

import pytest

from tf_rnnt_kd.evaluation.results import Transcription, write_results

pytestmark = pytest.mark.slow


def _compare(*arguments):
    command = [sys.executable, "-m", "tf_rnnt_kd.compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _write(folder, hypotheses, about=None):
    items = [Transcription(str(i), "A B C", hypothesis) for i, hypothesis in enumerate(hypotheses)]
    write_results(str(folder / "results.json"), {"clean": items}, about)
    return folder


def test_systems_are_shown_with_their_difference(tmp_path):
    good, bad = _write(tmp_path / "good", ["A B C"] * 9), _write(tmp_path / "bad", ["A"] * 9)
    finished = _compare(bad, f"best={good}", "--output", tmp_path / "report.json")
    assert finished.returncode == 0, finished.stderr
    assert "bad - best" in finished.stdout and "+66.67 [66.67, 66.67]  0.004 *" in finished.stdout
    assert "9 utterances of clean" in finished.stdout and "MPSSWE" in finished.stdout
    assert json.loads((tmp_path / "report.json").read_text())["systems"]["best"]["sets"]["clean"]["wer"] == 0.0


def test_folders_may_hold_what_separates_arguments(tmp_path):
    slow, fast = (_write(tmp_path / name / "m", ["A B C"] * 9) for name in ("lr=0.001", "lr=0.002,long"))
    finished = _compare(slow, f"fast={fast}", f"both={slow},{fast}")
    assert finished.returncode == 0, finished.stderr
    assert "m - fast" in finished.stdout and "  2 seeds" in finished.stdout


def test_systems_that_heard_other_audio_are_refused(tmp_path):
    first, second = (_write(tmp_path / name, ["A B C"], {"records": {"clean": name * 64}}) for name in "ab")
    refused = _compare(first, second)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "a and b were not evaluated on the same 'clean'" in refused.stderr


def test_what_is_missing_is_named_in_one_line(tmp_path):
    good = _write(tmp_path / "good", ["A B C"])
    for arguments, part in [((good,), "two or more"), ((good, tmp_path / "gone"), "gone"), (("--no", good), "--help")]:
        finished = _compare(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.startswith("error: ") and part in finished.stderr
        assert len(finished.stderr.splitlines()) == 1
