"""The command itself, from audio to SavedModel, as its user runs it: undisturbed, killed, and started once more."""

import os
import pathlib
import random
import re
import subprocess
import sys
import time

import pytest
import soundfile

from tests import browser
from tf_rnnt_kd.data.records import open_records

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / "tests" / "toy_chain.gin")
_EXPORTED = os.path.join("seed-0", "streaming", "savedmodel")


def _command(work_dir, *more):
    return [
        sys.executable,
        "-m",
        "tf_rnnt_kd.train",
        f"--config={CONFIG}",
        f"--work_dir={work_dir}",
        "--jobs=2",
        "--trust_config",
        *more,
    ]


def _run(work_dir, *more):
    return subprocess.run(_command(work_dir, *more), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run and what it printed."""
    work_dir = tmp_path_factory.mktemp("chain") / "run [1] é *?"  # no path is a pattern
    done = _run(work_dir, "--profile=12,14")
    assert done.returncode == 0, done.stderr
    return work_dir, done.stdout


def test_chain_prints_its_table_and_where_things_are(undisturbed):
    work_dir, printed = undisturbed
    assert re.search(r"^teacher +\d+\.\d\d \[", printed, re.MULTILINE)
    assert re.search(r"^soft - teacher +[+-]", printed, re.MULTILINE)
    for row in ("teacher, LSTM", "teacher, 3-grams"):
        assert re.search(rf"^{row} +\d+\.\d\d \[", printed, re.MULTILINE)
    assert re.search(r"^teacher, LSTM - teacher +[+-]", printed, re.MULTILINE)
    assert (work_dir / "language" / "lstm" / "model.json").exists()
    assert (work_dir / "language" / "3-grams" / "ngrams.arpa").exists()
    for path in ("results.json", _EXPORTED, "example.wav"):
        assert str(work_dir / path) in printed
    for name in ("teacher", "soft", "streaming"):
        assert re.search(
            rf"^  train {name}: 20/\d+ steps, \d\d:\d\d left  loss \d.*, \d+ audio-h/h$", printed, re.MULTILINE
        )
        assert len(list((work_dir / "seed-0" / name / "tensorboard").glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert re.search(r"^  train soft: 70/120 .*, KL \d\.\d+ a node, dev WER \d+\.\d\d %, ", printed, re.MULTILINE)


def test_second_start_changes_nothing_and_prints_the_same_table(undisturbed):
    work_dir, printed = undisturbed
    before = {path: path.stat().st_mtime_ns for path in work_dir.rglob("*") if path.name not in ("report.txt", ".lock")}
    again = _run(work_dir)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == printed[printed.index("\nsystem") :].strip()
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = {path.name for path in before if path.is_file() and before[path] != after[path]}
    assert changed <= {"results.json"}


def _saved(work_dir):
    return {(path, path.stat().st_mtime_ns) for path in work_dir.rglob("ckpt-*.json")}


def test_killed_twice_and_stopped_once_it_ends_the_same(undisturbed, tmp_path):
    work_dir, _ = undisturbed
    rng = random.Random(7)
    for _ in range(2):
        process = subprocess.Popen(_command(tmp_path / "run"), cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(8.0, 40.0))  # anywhere from the first import to the last student
        process.kill()
        process.wait()
    before = _saved(tmp_path / "run")
    process = subprocess.Popen(_command(tmp_path / "run"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and _saved(tmp_path / "run") == before:  # its children do not train yet
        time.sleep(0.1)
    process.terminate()
    said = process.communicate()[0]
    assert process.returncode == 0 and said.endswith("stopped by SIGTERM: the same command goes on\n")
    assert (tmp_path / "run" / "resumable").exists()
    done = _run(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("  SIGTERM stopped this run: it goes on from there\n")
    assert not (tmp_path / "run" / "resumable").exists()
    assert (tmp_path / "run" / "results.json").read_bytes() == (work_dir / "results.json").read_bytes()


def test_the_command_evaluates_with_a_language_model_as_the_plan_does(undisturbed, tmp_path):
    work_dir, _ = undisturbed
    command = [sys.executable, "-m", "tf_rnnt_kd.evaluate", f"--checkpoint={work_dir / 'seed-0' / 'teacher'}"]
    command += [f"--records={work_dir / 'records' / 'test'}", f"--output={tmp_path / 'results.json'}", "--beam=3"]
    command += [f"--lm={work_dir / 'language' / '3-grams' / 'ngrams.arpa'}", "--lm_weight=0.3"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in ("results.json", "hypotheses-test.tsv"):
        planned = work_dir / "seed-0" / "teacher" / "decodings" / "3-grams" / name
        assert (tmp_path / name).read_bytes() == planned.read_bytes()


def test_another_configuration_is_refused_by_name(undisturbed):
    refused = _run(undisturbed[0], "--param=STEPS=121")
    assert refused.returncode == 2
    assert "begun with another configuration (STEPS = 120 there, STEPS = 121 now)" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_transcribe_streams_what_evaluation_heard(undisturbed, tmp_path):
    """From files, through the export, in another process: the text of the offline search."""
    work_dir, _ = undisturbed
    rows = (work_dir / "seed-0" / "streaming" / "hypotheses-test.tsv").read_text().splitlines()[1:]
    expected = {name: hypothesis for name, _, hypothesis, *_ in (row.split("\t") for row in rows)}
    files = []
    for record in open_records(str(work_dir / "records" / "test")).read(0, 12):
        files.append(str(tmp_path / f"{record.id}.flac"))
        soundfile.write(files[-1], record.samples, 16_000)
    options = [f"--model={work_dir / _EXPORTED}", "--chunk_ms=170"]
    command = [sys.executable, "-m", "tf_rnnt_kd.transcribe", *options, *files]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heard = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in printed.splitlines())
    assert [heard[path].strip() for path in files] == [expected[pathlib.Path(path).stem] for path in files]
    assert any(heard.values())


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_tensorboard_shows_charts_pictures_sound_tables_and_settings(undisturbed, tmp_path):
    """In a browser, as people see them."""
    port = browser.free_port()
    server = [sys.executable, "-m", "tensorboard.main", f"--logdir={undisturbed[0]}", f"--port={port}"]
    address = f"http://127.0.0.1:{port}"
    runs = {f"seed-0/{name}/tensorboard" for name in ("teacher", "soft", "streaming")}
    with browser.serving(*server, "--load_fast=false"), browser.browsing(str(tmp_path)) as page:
        browser.until(lambda: runs <= set(browser.ask(f"{address}/data/runs")), "the runs")

        def see(tab, words, tag, count, of=""):
            """Waits for a page, of some charts alone, that has these words, and so many elements of a kind."""

            def look():
                text, tags = page.look()
                return text if all(word in text for word in words) and tags.get(tag, 0) >= count else None

            page.open(f"{address}/?tagFilter={of}#{tab}")
            return browser.until(look, f"{words} with {count} {tag} on the page of {tab}")

        # Six cards of alignments, and all groups of charts by their names.
        groups = ("alignment", "lattice", "dev_wer", "features", "input", "loss", "memory", "time", "update")
        see("timeseries", (*runs, *groups, "/tone-2-0000"), "img", 6)
        see("timeseries", ("/tone-2-0000", "/tone-3-0000", "Step 120"), "img", 6, of="lattice")
        see("timeseries", ("/kl_per_node", "dev_wer"), "canvas", 2, of="kl_per_node|dev_wer")
        see("audio", ("audio/tone-3-0000", "AB AB AB"), "audio", 6)
        see("text", ("hypotheses", "utterance", "WER %", "tone-3-0005"), "table", 3)
        settings = ("generation", "objective.kl_weight", "training.steps", "dev_wer")
        see("hparams", (*settings, "Number of matching session groups: 3", "lattice"), "table", 1)
