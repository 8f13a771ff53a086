"""Systems are found by the names of their folders, whatever these hold, and refused where they can't be compared."""

import json
import os

import pytest

from tests.evaluation.written import write
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.report import format_differences, format_table, write_report
from tf_rnnt_kd.evaluation.results import Transcription, write_results
from tf_rnnt_kd.evaluation.systems import common_sets, read_run, read_systems, split_folders


def _names(*arguments):
    return [(system.name, len(system.runs)) for system in read_systems([str(argument) for argument in arguments])]


def _refused(match, *folders, **names):
    systems = read_systems([*map(str, folders), *(f"{name}={','.join(runs)}" for name, runs in names.items())])
    for use in (format_table, format_differences, lambda them: write_report("never.json", them)):
        with pytest.raises(UserError, match=match):
            use(systems)
    assert not os.path.exists("never.json")


# -- arguments --


def test_arguments_name_systems_and_their_seeds(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / name, 0.1)
    assert _names(tmp_path / "a", f"two={tmp_path / 'b'},{tmp_path / 'c' / 'results.json'}") == [("a", 1), ("two", 2)]
    with pytest.raises(UserError, match="called 'a'"):
        _names(tmp_path / "a", tmp_path / "a")


@pytest.mark.parametrize("folder", ["lr=0.001", "a,b", "a=1,b=2", "=", ",", "x=", "a,,b", "é [1]*"])
def test_a_folder_that_exists_is_a_folder(tmp_path, folder):
    path = tmp_path / folder / "m"
    write(path, 0.1)
    write(tmp_path / "other", 0.1)
    assert _names(path) == [("m", 1)]
    assert _names(path / "results.json") == [("results.json", 1)]
    assert _names(f"one={path}") == [("one", 1)]
    assert _names(f"two={path},{tmp_path / 'other'}") == [("two", 2)]
    assert _names(f"two={tmp_path / 'other'},{path}") == [("two", 2)]


def test_two_folders_of_one_last_name_can_be_told_apart(tmp_path):
    paths = [tmp_path / f"lr={rate}" / "m" for rate in (0.001, 0.002)]
    for path in paths:
        write(path, 0.1)
    assert _names(paths[0], f"slow={paths[1]}") == [("m", 1), ("slow", 1)]
    with pytest.raises(UserError, match=r"called 'm'.*NAME=.*lr=0\.002"):
        _names(*paths)


def test_what_exists_wins_over_what_its_commas_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a,b", "c"):
        write(tmp_path / name, 0.1)
    assert split_folders("a,b") == ["a,b"]
    assert split_folders("c,a,b") == ["c", "a,b"]
    assert split_folders("b,a") == ["b", "a"]
    assert split_folders("gone,a,b,lost") == ["gone", "a,b", "lost"]
    assert split_folders("c,c") == ["c", "c"]


def test_arguments_that_name_nothing_are_shown_whole(tmp_path):
    with pytest.raises(UserError, match=r"no results at .*gone: evaluate the model first"):
        _names(tmp_path / "gone")
    with pytest.raises(UserError, match=r"there is no run=1/gone, and for a system called 'run' no 1/gone"):
        _names("run=1/gone")
    here = write(tmp_path / "here", 0.1)
    with pytest.raises(UserError, match=r"for a system called 'x' no lost"):
        _names(f"x={here},lost")


def test_the_report_of_a_plan_is_no_system(tmp_path):
    write_report(str(tmp_path / "results.json"), read_systems([write(tmp_path / "seed-0" / "a", 0.1)]))
    with pytest.raises(UserError, match=r"is the report of a plan: name the folder of a generation"):
        _names(tmp_path)


# -- what can be compared --


def test_only_common_sets_are_compared(tmp_path):
    write(tmp_path / "a", 0.1)
    write(tmp_path / "b", 0.1, sets=("noisy",))
    write(tmp_path / "c", 0.1, sets=("other",))
    assert [found.name for found in common_sets(read_systems([str(tmp_path / "a"), str(tmp_path / "b")]))] == ["noisy"]
    _refused("no test set in common", tmp_path / "a", tmp_path / "c")


def test_other_audio_under_the_same_ids_is_refused(tmp_path):
    write(tmp_path / "a", 0.1)
    write(tmp_path / "b", 0.1, audio="other")
    _refused(
        "a and b were not evaluated on the same 'clean'.*different audio as utterance 'clean-0'",
        tmp_path / "a",
        tmp_path / "b",
    )


def test_other_audio_of_one_utterance_in_one_seed_is_refused(tmp_path):
    items = [Transcription(f"{i}", "A B", "A", audio=f"{i}") for i in range(9)]
    for name, last in (("a", items[-1]), ("b", items[-1]._replace(audio="x"))):
        write_results(str(tmp_path / name / "results.json"), {"test": [*items[:-1], last]})
    _refused(
        "two runs of both were not evaluated on the same 'test'.*utterance '8'",
        both=[str(tmp_path / "a"), str(tmp_path / "b")],
    )


@pytest.mark.parametrize("theirs", [{"clean": "f" * 64}, {}])
def test_other_records_are_refused_where_the_audio_is_unknown(tmp_path, theirs):
    write(tmp_path / "a", 0.1, sets=("clean",), audio="", about={"records": {"clean": "0" * 64}})
    write(tmp_path / "b", 0.2, sets=("clean",), audio="", about={"records": theirs})
    _refused("the records behind their results are different ones", tmp_path / "a", tmp_path / "b")


def test_equal_audio_in_records_of_another_tokenizer_is_compared(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, 0.1, about={"records": {"clean": name * 64, "noisy": name * 64}})
    assert "a - b" in format_differences(read_systems([str(tmp_path / "a"), str(tmp_path / "b")]))


def test_different_utterances_under_one_name_are_refused(tmp_path):
    write(tmp_path / "a", 0.1)
    write(tmp_path / "b", 0.1, num_utterances=59)
    _refused(
        "a and b were not evaluated on the same 'clean': only one has utterance 'clean-59'",
        tmp_path / "a",
        tmp_path / "b",
    )
    _refused("two runs of both", both=[str(tmp_path / "a"), str(tmp_path / "b")])


def test_other_references_are_refused(tmp_path):
    for name, said in (("a", "ONE"), ("b", "TWO")):
        write_results(str(tmp_path / name / "results.json"), {"test": [Transcription("u", said, "ONE")]})
    _refused("one has utterance u 'ONE', the other u 'TWO'", tmp_path / "a", tmp_path / "b")


def test_errors_counted_otherwise_are_refused(tmp_path):
    write(tmp_path / "a", 0.1)
    write(tmp_path / "b", 0.1, normaliser="case_and_punctuation")
    _refused(
        "errors of a and b were counted after 'none 1' and 'case_and_punctuation 1'", tmp_path / "a", tmp_path / "b"
    )


def test_one_model_is_not_two_seeds(tmp_path):
    for name, model in (("a", "1"), ("b", "1"), ("c", "2")):
        write(tmp_path / name, 0.1, about={"model": model})
    a, b, c = (str(tmp_path / name) for name in "abc")
    _refused("two runs of both are the same model", both=[a, b])
    _refused("two runs of both are the same model", both=[a, a])
    assert "2 seeds" in format_table(read_systems([f"both={a},{c}"]))


# -- results of before --


def _of_before(folder):
    """As 16c491a wrote them: no speakers, no audio, no hashes, no normaliser."""
    folder.mkdir()
    figures = {"utterances": 6, "words": 12, "substitutions": 0, "deletions": 6, "insertions": 0}
    content = {
        "model": "m",
        "records": {"clean": "r"},
        "sets": {"clean": {**figures, "wer": 50.0, "interval": [50, 50]}},
    }
    (folder / "results.json").write_text(json.dumps(content))
    lines = ["id\treference\thypothesis", *(f"{i}\tA B\tA" for i in range(6))]
    (folder / "hypotheses-clean.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_results_of_before_are_read_with_unknown_speakers_and_the_table_says_so(tmp_path):
    found = read_run(_of_before(tmp_path / "before"))
    assert found.scored["clean"].speakers == [""] * 6 and found.results["clean"].wer == 50.0
    table = format_table(read_systems([str(tmp_path / "before")]))
    assert "6 utterances of clean" in table and "No two speakers are known in clean" in table


def test_lines_that_are_lost_in_hypotheses_of_before_are_told(tmp_path):
    path = tmp_path / "before" / "hypotheses-clean.tsv"
    _of_before(tmp_path / "before")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"hypotheses-clean\.tsv is damaged: it has 5 of 6 utterances"):
        read_run(str(tmp_path / "before"))


def test_speakers_come_from_whichever_system_knows_them(tmp_path):
    items = [Transcription(f"{i}", "A B", "A B", speaker=f"s{i // 2}") for i in range(6)]
    write_results(str(tmp_path / "now" / "results.json"), {"clean": items}, {"records": {"clean": "r"}})
    systems = read_systems([_of_before(tmp_path / "before"), str(tmp_path / "now")])
    assert common_sets(systems)[0].speakers == ["s0", "s0", "s1", "s1", "s2", "s2"]
    assert "3 speakers of clean" in format_table(systems)
