"""Tables and comparisons of systems with known errors."""

import json

import numpy as np
import pytest

from tests.evaluation.written import write
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation import report
from tf_rnnt_kd.evaluation.results import Transcription, write_results
from tf_rnnt_kd.evaluation.significance import Estimate, Interval, paired_difference, word_error_rate
from tf_rnnt_kd.evaluation.systems import System, common_sets, read_run, read_systems


def _systems(folder, speakers=20, **options):
    for name, rate, seed in [("teacher", 0.5, 0), ("soft-0", 0.1, 1), ("soft-1", 0.11, 2), ("soft-2", 0.12, 3)]:
        write(folder / name, rate, seed=seed, speakers=speakers, **options)
    teacher = System("teacher", (read_run(str(folder / "teacher"), steps=1000, minutes=2.0),))
    runs = [read_run(str(folder / f"soft-{i}"), steps=1400, minutes=minutes) for i, minutes in enumerate([3, 4, 3.5])]
    return [teacher, System("soft", tuple(runs))]


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    return _systems(tmp_path_factory.mktemp("systems"))


def _tests(systems):
    return {test.name: test for test in common_sets(systems)}


def _table(text):
    return text.split("\n\n")[0].splitlines()


def _legend(text):
    return " ".join(text.split("\n\n")[1].split())


def test_table_has_a_row_a_system_and_a_row_for_its_seeds(systems):
    lines = _table(report.format_table(systems))
    assert lines[0].split("  ")[0] == "system" and "clean WER %" in lines[0] and "noisy WER %" in lines[0]
    teacher = systems[0].runs[0].results["clean"]
    assert f"{teacher.wer:.2f} [{teacher.interval.low:.2f}, {teacher.interval.high:.2f}]" in lines[2]
    assert lines[2].split()[-3:] == ["240/240", "1000", "2.0"]
    assert lines[3].split()[-3:] == ["240/240", "1400", "3.5"]
    assert lines[4].startswith("  3 seeds ")
    assert all(f"{run.results['noisy'].wer:.2f}" in lines[4] for run in systems[1].runs)
    assert len(lines) == 5


def test_table_leaves_out_what_is_unknown(tmp_path):
    write(tmp_path / "teacher", 0.5)
    table = report.format_table(read_systems([str(tmp_path / "teacher")]))
    assert "steps" not in table and "minutes" not in table and "words" in table


def test_legend_says_what_the_intervals_are_over(systems, tmp_path):
    legend = _legend(report.format_table(systems))
    assert (
        "20 speakers of each set" in legend
        and "a mean over seeds covers other seeds too" in legend
        and "minutes time of" in legend
    )
    assert "trust" not in legend and "normaliser" not in legend
    write(tmp_path / "alone", 0.5, speakers=1, normaliser="whitespace")
    legend = _legend(report.format_table(read_systems([str(tmp_path / "alone")])))
    assert "60 utterances of each set" in legend and "does not cover other seeds" in legend
    assert "No two speakers are known in clean, noisy" in legend and "after the normaliser 'whitespace'" in legend


def test_few_speakers_are_said_to_be_too_few_with_a_t_interval_below(tmp_path):
    few = _systems(tmp_path, speakers=6)
    text = report.format_table(few)
    assert "Fewer than 10 speakers" in _legend(text) and "too narrow to trust" in _legend(text)
    by_t = few[0].runs[0].results["clean"].t_interval
    assert f"t [{by_t.low:.2f}, {by_t.high:.2f}]" in _table(text)[3]
    lines = _table(report.format_differences(few))
    estimate = report.compare(few)[0].sets["noisy"].estimate
    assert f"t [{estimate.t_interval.low:.2f}, {estimate.t_interval.high:.2f}]" in lines[3]


def test_tables_are_narrow_enough_to_read(tmp_path):
    few = _systems(tmp_path, speakers=6)
    for text in (report.format_table(few), report.format_differences(few)):
        assert max(map(len, text.splitlines())) <= 100


def test_seeds_are_pooled_by_their_mean(systems):
    pooled = report.pool_seeds(systems[1], _tests(systems)["clean"])
    assert pooled.wer == pytest.approx(np.mean(pooled.seeds))
    assert pooled.seeds == pytest.approx([run.results["clean"].wer for run in systems[1].runs])
    assert pooled.interval.low < pooled.wer < pooled.interval.high
    alone = System("soft", systems[1].runs[:1])
    one = report.pool_seeds(alone, _tests(systems)["clean"])
    assert pooled.interval.high - pooled.interval.low > one.interval.high - one.interval.low  # seeds scatter too


def test_one_seed_pools_to_its_own_figures(systems):
    pooled = report.pool_seeds(systems[0], _tests(systems)["noisy"])
    result = systems[0].runs[0].results["noisy"]
    assert pooled.wer == pytest.approx(result.wer) and pooled.interval == pytest.approx(result.interval)
    assert (pooled.unit, pooled.units) == (result.unit, result.units) == ("speakers", 20)


def test_difference_is_that_of_the_mean_rates_and_is_marked_when_clear(systems):
    (pair,) = report.compare(systems)
    assert (pair.first, pair.second, list(pair.sets)) == ("teacher", "soft", ["clean", "noisy"])
    test = _tests(systems)["clean"]
    expected = report.pool_seeds(systems[0], test).wer - report.pool_seeds(systems[1], test).wer
    assert pair.sets["clean"].estimate.points == pytest.approx(expected) and pair.sets["clean"].is_clear
    text = report.format_differences(systems)
    lines = _table(text)
    assert lines[2].startswith("teacher - soft") and f"{expected:+.2f}" in lines[2] and "<0.001 *" in lines[2]
    assert "(MPSSWE), corrected for 2 differences (Holm)" in text
    assert "Where only one of two systems has several seeds" in text
    assert "seeds" not in report.format_differences([systems[0], System("again", systems[0].runs)])


def test_system_does_not_differ_from_itself(systems):
    table = "\n".join(_table(report.format_differences([systems[0], System("again", systems[0].runs)])))
    assert "*" not in table and "1.000" in table


def test_a_star_needs_the_intervals_the_corrected_p_and_five_units():
    clear = Estimate(2.0, Interval(1.0, 3.0), "speakers", 20)
    for estimate, p, p_holm, expected in [
        (clear, 0.01, 0.03, True),
        (clear, 0.04, 0.08, False),
        (Estimate(2.0, Interval(-1.0, 3.0), "speakers", 20), 0.001, 0.002, False),
        (Estimate(2.0, Interval(1.0, 3.0), "speakers", 4, Interval(1.0, 3.0)), 0.001, 0.002, False),
    ]:
        assert report.Difference(estimate, 50, p, p_holm).is_clear is expected


def test_one_utterance_with_one_error_fewer_has_no_star(tmp_path):
    for name, heard in (("a", "A B C D"), ("b", "A B C")):
        write_results(str(tmp_path / name / "results.json"), {"test": [Transcription("u", "A B C D", heard)]})
    systems = read_systems([str(tmp_path / "a"), str(tmp_path / "b")])
    assert report.compare(systems)[0].sets["test"].p == 1.0
    table = _table(report.format_differences(systems))
    assert "-25.00 [one utterance]" in table[2] and "*" not in table[2]
    assert "0.00 [one utterance]" in report.format_table(systems)
    report.write_report(str(tmp_path / "report.json"), systems)
    assert json.loads((tmp_path / "report.json").read_text())["differences"][0]["sets"]["test"]["interval"] is None


def test_differences_of_a_report_are_corrected_together(systems):
    three = [*systems, System("third", systems[1].runs[:1])]
    found = [one for pair in report.compare(three) for one in pair.sets.values()]
    assert len(found) == 6
    ranked = sorted(found, key=lambda one: one.p)
    assert ranked[0].p_holm == pytest.approx(min(1.0, 6 * ranked[0].p))
    assert all(one.p <= one.p_holm <= 1.0 for one in found)
    (alone,) = report.compare(three, [("teacher", "third")])
    assert alone.sets["clean"].p_holm == pytest.approx(
        min(1.0, 2 * min(one.p for one in alone.sets.values())), abs=1e-9
    )


def test_speakers_decide_the_interval_of_a_difference(systems):
    (pair,) = report.compare(systems)
    first, second = ([run.scored["clean"].errors for run in system.runs] for system in systems)
    test = _tests(systems)["clean"]
    assert pair.sets["clean"].estimate == paired_difference(first, second, test.words, test.speakers)
    assert report.pool_seeds(systems[0], test).interval == word_error_rate(first, test.words, test.speakers).interval


def test_report_on_disk_says_what_the_tables_say(systems, tmp_path):
    path = tmp_path / "report.json"
    report.write_report(str(path), systems)
    first = path.read_bytes()
    report.write_report(str(path), systems)
    assert path.read_bytes() == first
    content = json.loads(first)
    assert content["systems"]["soft"]["steps"] == [1400, 1400, 1400]
    assert "minutes" not in content["systems"]["soft"]  # times differ from run to run
    pooled = report.pool_seeds(systems[1], _tests(systems)["clean"])
    found = content["systems"]["soft"]["sets"]["clean"]
    assert (found["wer"], found["unit"], found["units"], found["t_interval"]) == (pooled.wer, "speakers", 20, None)
    (pair,) = content["differences"]
    assert (pair["first"], pair["second"]) == ("teacher", "soft")
    difference = report.compare(systems)[0].sets["noisy"]
    found = pair["sets"]["noisy"]
    assert (found["points"], found["units"]) == (difference.estimate.points, 20)
    assert (found["p"], found["p_holm"], found["segments"]) == (difference.p, difference.p_holm, difference.segments)
    assert found["is_clear"] is difference.is_clear is True


def test_only_the_named_pairs_are_compared(systems):
    named = [*systems, System("other", systems[0].runs)]
    assert len(_table(report.format_differences(named))) == 2 + 3
    lines = _table(report.format_differences(named, [("soft", "other")]))
    assert len(lines) == 3 and lines[2].startswith("soft - other")


def _write_shouted(folder, normaliser):
    items = [Transcription(str(i), "A b", "a b") for i in range(6)]
    write_results(str(folder / "results.json"), {"clean": items}, normaliser=normaliser)
    return read_run(str(folder))


def test_a_run_is_counted_as_its_results_say(tmp_path):
    for name, errors in (("none", 6), ("case_and_punctuation", 0)):
        run = _write_shouted(tmp_path / name, name)
        assert run.scored["clean"].errors.sum() == errors == run.results["clean"].substitutions
        assert run.scoring.normaliser == name


def test_errors_that_were_not_counted_alike_are_not_compared(tmp_path):
    names = ("none", "case_and_punctuation")
    first, second = (System(name, (_write_shouted(tmp_path / name, name),)) for name in names)
    mixed = System("mixed", (*first.runs, *second.runs))
    message = "errors of {} were counted after 'none 1' and 'case_and_punctuation 1': evaluate both with the same"
    for act in (report.format_table, report.format_differences, common_sets):
        with pytest.raises(UserError, match=message.format("none and case_and_punctuation")):
            act([first, second])
        with pytest.raises(UserError, match=message.format(".*mixed.*")):
            act([mixed])
