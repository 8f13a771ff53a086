"""What an evaluation writes can be read again, is the same each time, and is whole or absent."""

import json

import pytest

from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import Scoring
from tf_rnnt_kd.evaluation.results import (
    Transcription,
    read_evaluation,
    read_results,
    read_transcriptions,
    score_set,
    summarize,
    write_results,
)

_CLEAN = [Transcription("a", "ONE TWO", "ONE TOO", -1.5, "anna", "f00d"), Transcription("b", "THREE", "", -0.5, "ben")]
_NOISY = [Transcription("c", "FOUR", "FOUR FOUR", -2.0)]


def test_results_and_hypotheses_survive_the_disk(tmp_path):
    written = write_results(str(tmp_path / "results.json"), {"clean": _CLEAN, "noisy": _NOISY}, {"model": "abc"})
    assert read_results(str(tmp_path / "results.json")) == written
    assert read_transcriptions(str(tmp_path), "clean") == [item._replace(score=0.0) for item in _CLEAN]
    assert json.loads((tmp_path / "results.json").read_text())["model"] == "abc"
    found = read_evaluation(str(tmp_path / "results.json"))
    assert (found.sets, found.model, found.records) == (written, "abc", {})
    assert found.transcriptions["noisy"] == [_NOISY[0]._replace(score=0.0)]


def test_results_hold_the_agreed_figures(tmp_path):
    write_results(str(tmp_path / "results.json"), {"clean": _CLEAN})
    figures = json.loads((tmp_path / "results.json").read_text())["sets"]["clean"]
    (low, high), (t_low, t_high) = figures.pop("interval"), figures.pop("t_interval")
    assert figures.pop("wer") == pytest.approx(200 / 3)
    assert low == t_low == 0.0 and 200 / 3 < t_high <= high
    counts = {"utterances": 2, "words": 3, "substitutions": 1, "deletions": 1, "insertions": 0}
    assert figures == {**counts, "unit": "speakers", "units": 2}


def test_equal_evaluations_give_equal_bytes(tmp_path):
    for name in ("first", "second"):
        write_results(str(tmp_path / name / "results.json"), {"clean": _CLEAN})
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [path.name for path in first] == ["hypotheses-clean.tsv", "results.json"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_white_space_in_a_text_does_not_break_its_line(tmp_path):
    write_results(str(tmp_path / "results.json"), {"x": [Transcription("a", "ONE\tTWO\nTHREE", "ONE")]})
    assert read_transcriptions(str(tmp_path), "x") == [Transcription("a", "ONE TWO THREE", "ONE")]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(str(path), {"clean": _CLEAN})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_results(str(path), {"clean": _NOISY})
    assert path.read_bytes() == before


_SPOKEN = [Transcription("a", "Well, YES!", "well yes"), Transcription("b", "...", "oh")]


def test_figures_are_those_of_the_normaliser_that_the_file_names(tmp_path):
    path = str(tmp_path / "results.json")
    for name, errors in (("none", 4), ("case_and_punctuation", 1)):
        found = write_results(path, {"x": _SPOKEN}, normaliser=name)["x"]
        assert (found.substitutions, found.insertions) == ((3, 0) if name == "none" else (0, 1))
        assert found.words == (3 if name == "none" else 2)
        assert json.loads((tmp_path / "results.json").read_text())["scoring"] == {"normaliser": name, "version": "1"}
        assert read_evaluation(path).scoring == Scoring(name, "1")
        assert read_transcriptions(str(tmp_path), "x") == _SPOKEN
        assert score_set(read_transcriptions(str(tmp_path), "x"), name).errors.sum() == errors - (name == "none")


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        (3, "is damaged: scoring"),
        ({"normaliser": "none", "more": 1}, "is damaged: scoring"),
        ({"normaliser": ["none"]}, "is damaged: scoring"),
        ({"normaliser": "mine"}, "results.json: normaliser 'mine' is none of"),
        ({"normaliser": "none", "version": "0"}, "by version '0' of the normaliser 'none', here is vers"),
    ],
)
def test_a_scoring_that_is_not_here_is_refused(tmp_path, scoring, message):
    path = tmp_path / "results.json"
    write_results(str(path), {"x": _SPOKEN})
    document = {**json.loads(path.read_text()), "scoring": scoring}
    del document["sha256"]
    path.write_bytes(files.dump_signed(document))
    with pytest.raises(UserError, match=message):
        read_evaluation(str(path))


def test_references_are_compared_in_their_normal_form():
    scored = score_set([Transcription("a", "cafe\u0301  ﬁne", "café fine")])
    assert scored.errors.sum() == 0 and scored.words.sum() == 2


def test_set_without_transcripts_is_refused():
    with pytest.raises(UserError, match="'untold' has no transcripts"):
        summarize([Transcription("a", "", "ONE")], "untold")
    with pytest.raises(UserError, match="none that the normaliser 'case_and_punctuation' leaves words of"):
        summarize([Transcription("a", "...", "ONE")], "untold", "case_and_punctuation")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"sets": {"clean": {"wer": 1}}}',
        '{"sets": {"clean": 3}}',
        '{"sets": {}, "hypotheses": {}}',
        "[" * 100_000,
        "[]",
        '{"sets": NaN}',
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    for read in (read_results, read_evaluation):
        with pytest.raises(UserError, match=r"results\.json is damaged.*evaluate the model again"):
            read(str(tmp_path / "results.json"))


def test_missing_results_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="evaluate the model first"):
        read_results(str(tmp_path / "results.json"))


@pytest.mark.parametrize(
    "content",
    [b"", b"id\treference\n", b"id\treference\thypothesis\na\tONE\n", b"\xff", b"id\treference\thypothesis\n\n"],
)
def test_damaged_hypotheses_are_refused_by_name(tmp_path, content):
    (tmp_path / "hypotheses-x.tsv").write_bytes(content)
    with pytest.raises(UserError, match=r"hypotheses-x\.tsv is"):
        read_transcriptions(str(tmp_path), "x")


@pytest.mark.parametrize("name", ["results.json", "hypotheses-clean.tsv"])
def test_every_bit_of_an_evaluation_counts(tmp_path, name):
    path = tmp_path / "results.json"
    write_results(str(path), {"clean": _CLEAN}, {"model": "abc", "records": {"clean": "r"}})
    whole = (tmp_path / name).read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(UserError, match=r"is damaged"):
            read_evaluation(str(path))
    (tmp_path / name).write_bytes(whole)
    assert read_evaluation(str(path)).sets


def test_hypotheses_of_another_evaluation_in_the_same_folder_are_refused(tmp_path):
    write_results(str(tmp_path / "one.json"), {"clean": _CLEAN})
    write_results(str(tmp_path / "two.json"), {"clean": [_CLEAN[0], _CLEAN[1]._replace(hypothesis="THREE")]})
    assert read_evaluation(str(tmp_path / "two.json")).sets["clean"].deletions == 0
    with pytest.raises(UserError, match=r"hypotheses-clean\.tsv is damaged: .*written by another evaluation"):
        read_evaluation(str(tmp_path / "one.json"))


def test_errors_that_cannot_be_counted_alike_are_refused(tmp_path):
    path = tmp_path / "results.json"
    write_results(str(path), {"clean": _CLEAN})
    for changed, match in [
        ({"normaliser": "gone", "version": "1"}, "'gone' is none of"),
        ({"version": "0"}, "version '0'"),
    ]:
        content = json.loads(path.read_text())
        content["scoring"] |= changed
        del content["sha256"]
        (tmp_path / "other.json").write_bytes(files.dump_signed(content))
        with pytest.raises(UserError, match=match):
            read_evaluation(str(tmp_path / "other.json"))
