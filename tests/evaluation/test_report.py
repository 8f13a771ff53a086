"""Tables and comparisons of systems with known errors."""

import json

import numpy as np
import pytest

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation import report
from tf_rnnt_kd.evaluation.report import System
from tf_rnnt_kd.evaluation.results import Transcription, write_results


def _write(folder, error_rate, *, sets=("clean", "noisy"), num_utterances=60, seed=0):
    generator = np.random.default_rng(seed)
    transcriptions = {}
    for name in sets:
        wrong = generator.random([num_utterances, 4]) < error_rate
        texts = [" ".join("X" if flag else word for word, flag in zip("ABCD", row, strict=True)) for row in wrong]
        transcriptions[name] = [Transcription(f"{name}-{i}", "A B C D", text) for i, text in enumerate(texts)]
    return write_results(str(folder / "results.json"), transcriptions)


@pytest.fixture
def systems(tmp_path):
    for name, rate, seed in [("teacher", 0.5, 0), ("soft-0", 0.1, 1), ("soft-1", 0.2, 2)]:
        _write(tmp_path / name, rate, seed=seed)
    teacher = System("teacher", (report.read_run(str(tmp_path / "teacher"), steps=1000, minutes=2.0),))
    runs = [
        report.read_run(str(tmp_path / f"soft-{i}"), steps=1400, minutes=minutes) for i, minutes in [(0, 3), (1, 4)]
    ]
    return [teacher, System("soft", tuple(runs))]


def test_table_has_a_row_a_system_and_a_row_for_its_seeds(systems):
    lines = report.format_table(systems).splitlines()
    assert lines[0].split("  ")[0] == "system" and "clean WER %" in lines[0] and "noisy WER %" in lines[0]
    teacher = systems[0].runs[0].results["clean"]
    assert f"{teacher.wer:.2f} [{teacher.interval.low:.2f}, {teacher.interval.high:.2f}]" in lines[2]
    assert lines[2].split()[-3:] == ["240/240", "1000", "2.0"]
    assert lines[3].split()[-3:] == ["240/240", "1400", "3.5"]
    assert all(f"{run.results['noisy'].wer:.2f}" in lines[4] for run in systems[1].runs)
    assert len(lines) == 5


def test_table_leaves_out_what_is_unknown(tmp_path):
    _write(tmp_path / "teacher", 0.5)
    table = report.format_table(report.read_systems([str(tmp_path / "teacher")]))
    assert "steps" not in table and "minutes" not in table and "words" in table


def test_seeds_are_pooled_by_their_mean(systems):
    pooled = report.pool_seeds(systems[1], "clean")
    assert pooled.wer == pytest.approx(np.mean(pooled.seeds))
    assert pooled.seeds == tuple(run.results["clean"].wer for run in systems[1].runs)
    assert pooled.interval.low < pooled.wer < pooled.interval.high


def test_one_seed_pools_to_its_own_figures(systems):
    pooled = report.pool_seeds(systems[0], "noisy")
    result = systems[0].runs[0].results["noisy"]
    assert (pooled.wer, pooled.interval) == (result.wer, result.interval)


def test_difference_is_that_of_the_mean_rates_and_is_marked_when_clear(systems):
    difference = report.compare(*systems, "clean")
    expected = report.pool_seeds(systems[0], "clean").wer - report.pool_seeds(systems[1], "clean").wer
    assert difference.points == pytest.approx(expected)
    lines = report.format_differences(systems).splitlines()
    assert lines[2].startswith("teacher - soft") and f"{expected:+.2f}" in lines[2] and "*" in lines[2]


def test_system_does_not_differ_from_itself(systems):
    assert "*" not in report.format_differences([systems[0], System("again", systems[0].runs)])


def test_report_on_disk_says_what_the_tables_say(systems, tmp_path):
    path = tmp_path / "report.json"
    report.write_report(str(path), systems)
    first = path.read_bytes()
    report.write_report(str(path), systems)
    assert path.read_bytes() == first
    content = json.loads(first)
    assert content["systems"]["soft"]["steps"] == [1400, 1400]
    assert "minutes" not in content["systems"]["soft"]  # times differ from run to run
    assert content["systems"]["soft"]["sets"]["clean"]["wer"] == report.pool_seeds(systems[1], "clean").wer
    (pair,) = content["differences"]
    assert (pair["first"], pair["second"]) == ("teacher", "soft")
    assert pair["sets"]["noisy"]["points"] == report.compare(*systems, "noisy").points


def test_arguments_name_systems_and_their_seeds(tmp_path):
    for name in ("a", "b", "c"):
        _write(tmp_path / name, 0.1)
    found = report.read_systems([str(tmp_path / "a"), f"two={tmp_path / 'b'},{tmp_path / 'c' / 'results.json'}"])
    assert [(system.name, len(system.runs)) for system in found] == [("a", 1), ("two", 2)]
    with pytest.raises(UserError, match="called 'a'"):
        report.read_systems([str(tmp_path / "a"), str(tmp_path / "a")])


def test_only_common_sets_are_compared(tmp_path):
    _write(tmp_path / "a", 0.1)
    _write(tmp_path / "b", 0.1, sets=("noisy",))
    _write(tmp_path / "c", 0.1, sets=("other",))
    assert report.common_sets(report.read_systems([str(tmp_path / "a"), str(tmp_path / "b")])) == ["noisy"]
    with pytest.raises(UserError, match="no test set in common"):
        report.format_table(report.read_systems([str(tmp_path / "a"), str(tmp_path / "c")]))


def test_different_utterances_under_one_name_are_refused(tmp_path):
    _write(tmp_path / "a", 0.1)
    _write(tmp_path / "b", 0.1, num_utterances=59)
    with pytest.raises(UserError, match="a and b were not evaluated on the same 'clean'.*clean-59"):
        report.format_differences(report.read_systems([str(tmp_path / "a"), str(tmp_path / "b")]))


def test_seeds_on_different_utterances_are_refused(tmp_path):
    _write(tmp_path / "a", 0.1)
    _write(tmp_path / "b", 0.1, num_utterances=59)
    (system,) = report.read_systems([f"both={tmp_path / 'a'},{tmp_path / 'b'}"])
    with pytest.raises(UserError, match="two runs of both"):
        report.pool_seeds(system, "clean")


def test_only_the_named_pairs_are_compared(systems):
    named = [*systems, System("other", systems[0].runs)]
    assert len(report.format_differences(named).splitlines()) == 2 + 3
    lines = report.format_differences(named, [("soft", "other")]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("soft - other")


def _write_shouted(folder, normaliser):
    items = [Transcription(str(i), "A b", "a b") for i in range(6)]
    write_results(str(folder / "results.json"), {"clean": items}, normaliser=normaliser)
    return report.read_run(str(folder))


def test_a_run_is_counted_as_its_results_say(tmp_path):
    for name, errors in (("none", 6), ("case_and_punctuation", 0)):
        run = _write_shouted(tmp_path / name, name)
        assert run.scored["clean"].errors.sum() == errors == run.results["clean"].substitutions
        assert run.scoring.normaliser == name


def test_errors_that_were_not_counted_alike_are_not_compared(tmp_path):
    names = ("none", "case_and_punctuation")
    first, second = (System(name, (_write_shouted(tmp_path / name, name),)) for name in names)
    mixed = System("mixed", (*first.runs, *second.runs))
    message = "counted by the normaliser 'none 1', those of {} by 'case_and_punctuation 1': evaluate both with the same"
    for act in (report.format_table, report.format_differences, report.common_sets):
        with pytest.raises(UserError, match=message.format("case_and_punctuation")):
            act([first, second])
        with pytest.raises(UserError, match=message.format("mixed")):
            act([mixed])
    with pytest.raises(UserError, match=message.format("case_and_punctuation")):
        report.compare(first, second, "clean")
