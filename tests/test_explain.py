"""The command that says what a thing was made from, on folders of `prepare`, and of nobody."""

import os
import subprocess
import sys

import pytest

from tests.data.test_corpora import add_audio, random_samples
from tests.test_commands import ROOT, run

_CONFIG = """
from __gin__ import dynamic_registration
from tf_rnnt_kd.data import corpora
from tf_rnnt_kd.nst import plan
plan.Plan.name = 'edited'
plan.Plan.corpora = [@plan.Corpus()]
plan.Corpus.name = 'all'
plan.Corpus.utterances = @corpora.read_librispeech
corpora.read_librispeech.folder = '{folder}'
plan.Plan.tokenizer = @plan.TokenizerSpec()
plan.TokenizerSpec.kind = 'characters'
plan.TokenizerSpec.corpora = ('all',)
plan.Plan.development = 'all'
plan.Plan.tests = ('all',)
plan.Plan.generations = []
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of two files, and what `prepare` made of it."""
    folder = tmp_path_factory.mktemp("explain")
    for name in "ab":
        add_audio(folder / "corpus" / f"{name}.flac", random_samples(0.5))
    (folder / "corpus" / "x.trans.txt").write_text("a ONE TWO\nb TWO\n")
    (folder / "plan.gin").write_text(_CONFIG.format(folder=folder / "corpus"))
    done = run("tf_rnnt_kd.prepare", f"--config={folder / 'plan.gin'}", f"--output={folder / 'records'}")
    assert done.returncode == 0, done.stderr
    return folder


def test_what_was_edited_is_named_and_prepared_again_only_on_request(prepared):
    records, corpus = prepared / "records", prepared / "corpus"
    told = run("tf_rnnt_kd.explain", str(records))
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith("everything fits what it was made from\n") and "record set" in told.stdout
    os.utime(corpus / "a.flac", ns=(1, 1))
    (corpus / "x.trans.txt").write_text("a ONE TWO\nb ONE\n")
    told = run("tf_rnnt_kd.explain", str(records / "all")).stdout
    assert f"no longer fits: {records / 'all'}: transcripts was" in told and "audio was" in told
    prepare = ["tf_rnnt_kd.prepare", f"--config={prepared / 'plan.gin'}", f"--output={records}"]
    refused = run(*prepare)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "transcripts was" in refused.stderr
    made = run(*prepare, "--remake")
    assert made.returncode == 0 and "all is made again: transcripts was" in made.stdout
    assert run(*prepare).returncode == 0
    assert run("tf_rnnt_kd.explain", str(records)).stdout.endswith("everything fits what it was made from\n")


def test_what_nobody_made_is_refused(tmp_path):
    for arguments, words in (([], "needs a path"), ([str(tmp_path)], "has no lineage: name a run folder")):
        refused = subprocess.run(
            [sys.executable, "-m", "tf_rnnt_kd.explain", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and words in refused.stderr
