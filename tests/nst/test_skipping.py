"""Bad audio in corpora: all of it in one report, or left out and listed."""

import dataclasses
import json
import os
import pathlib
import re

import pytest

from tests.data.sounds import add_audio, random_samples
from tests.nst.test_plan import generation, make_plan
from tf_rnnt_kd.data.corpora import read_librispeech
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.plan import Corpus
from tf_rnnt_kd.nst.preparation import prepare, transcripts

_BAD = ("b", "d", "e")


@pytest.fixture
def make(work_dir):
    """Plans of one corpus of eight files, three of them bad; limits have them looked through when listed."""
    folder = work_dir / "corpus"
    lines = []
    for name in "abcdefgh":
        add_audio(folder / f"{name}.flac", random_samples(1.0))
        lines.append(f"{name} ONE\n")
    (folder / "x.trans.txt").write_text("".join(lines))
    (folder / "b.flac").write_bytes(b"no audio")
    os.truncate(folder / "d.flac", (folder / "d.flac").stat().st_size // 2)
    content = bytearray((folder / "e.flac").read_bytes())
    content[5000:5100] = bytes(100)  # only decoding finds it
    (folder / "e.flac").write_bytes(content)

    def plan(**limits):
        corpora = [
            Corpus("train", lambda: read_librispeech(str(folder), **limits)),
            *(Corpus(name, lambda: read_librispeech(str(folder))[:1]) for name in ("dev", "test")),
        ]
        plan = make_plan(generation("teacher"), corpora=corpora)
        return dataclasses.replace(plan, records_per_shard=3)

    return plan


def reasons(folder):
    header, *rows = [line.split("\t") for line in (folder / "train" / "skipped.tsv").read_text().splitlines()]
    assert header == ["file", "reason"]
    return {os.path.basename(path): reason for path, reason in rows}


@pytest.mark.parametrize(("limits", "expected"), [({"max_seconds": 9.0}, "bd"), ({}, "bde")])
def test_all_bad_files_are_in_one_report(make, work_dir, limits, expected):
    with pytest.raises(UserError) as caught:
        prepare(make(**limits), str(work_dir / "records"))
    named = re.findall(r"cannot read audio from \S*/(\w).flac", caught.value.message)
    assert "".join(named) == expected
    assert "(--skip_bad N leaves out up to N such files, now 0)" in caught.value.message
    assert "\n" not in caught.value.message
    assert not os.path.exists(work_dir / "records" / "train" / "manifest.json")


@pytest.mark.parametrize("limits", [{"max_seconds": 9.0}, {}])
def test_bad_files_are_left_out_and_listed_where_that_is_allowed(make, work_dir, limits):
    folder = work_dir / "records"
    prepared = prepare(make(**limits), str(folder), skip_bad=3)
    assert [record.id for record in prepared.records("train").read(0, 8)] == list("acfgh")
    assert json.loads((folder / "train" / "manifest.json").read_text())["skipped"] == 3
    found = reasons(folder)
    assert sorted(found) == [f"{name}.flac" for name in _BAD]
    assert found["b.flac"] == "it is no audio of a known format"
    assert "last frame ends at" in found["d.flac"]


def test_more_than_is_allowed_is_refused_with_all(make, work_dir):
    with pytest.raises(UserError, match=r"/e.flac.*now 2\)"):
        prepare(make(), str(work_dir / "records"), skip_bad=2)


def test_a_preparation_goes_on_with_what_it_has_left_out(make, work_dir, monkeypatch):
    folder = work_dir / "records"
    plan = make()
    with pytest.raises(UserError, match="now 1"):
        prepare(plan, str(folder), skip_bad=1)
    assert sorted(reasons(folder)) == ["b.flac"]  # of the first shard, which is finished
    prepare(plan, str(folder), skip_bad=3)
    assert sorted(reasons(folder)) == [f"{name}.flac" for name in _BAD]


def test_too_many_for_a_line_are_in_a_file(work_dir):
    for i in range(30):
        add_audio(work_dir / "corpus" / f"{i:02d}.flac")
        (work_dir / "corpus" / f"{i:02d}.flac").write_bytes(b"no audio")
    corpus = Corpus("train", lambda: read_librispeech(str(work_dir / "corpus"), labelled=False))
    others = [Corpus(name, list) for name in ("dev", "test")]
    plan = make_plan(generation("teacher"), corpora=[corpus, *others])
    with pytest.raises(UserError, match=r"30 problems.*; and 20 more; all of them are in (\S*)") as caught:
        prepare(plan, str(work_dir / "records"))
    path = re.search(r"all of them are in (\S*)", caught.value.message)[1]
    assert len(pathlib.Path(path).read_text().splitlines()) == 30


def test_transcripts_of_bad_audio_are_text(make):
    assert transcripts(make(max_seconds=9.0).corpora[0]) == ["ONE"] * 8
