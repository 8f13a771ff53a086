"""Systems side by side: a table of error rates, the differences between them, and both as JSON."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tf_rnnt_kd import files
from tf_rnnt_kd.evaluation.matched_pairs import holm, matched_pairs
from tf_rnnt_kd.evaluation.normalisers import DEFAULT
from tf_rnnt_kd.evaluation.significance import (
    FEW_UNITS,
    FEWEST_UNITS,
    Estimate,
    Interval,
    paired_difference,
    word_error_rate,
)
from tf_rnnt_kd.evaluation.systems import CommonSet, System, common_sets

_LEVEL = 0.05  # of the p that a star asks for
_LEGEND_WIDTH = 100
_SEEDS = {True: "that of a mean over seeds covers other seeds too", False: "it does not cover other seeds"}


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A system on a test set, over its seeds.

    Attributes:
      wer: mean over seeds, percent.
      interval: see `significance.Estimate`, like the next three.
      unit: what was taken to be independent, speakers or utterances.
      units: how many of them.
      t_interval: given where the units are few.
      seeds: WER of each run, percent.
      words: reference words of the set.
    """

    wer: float
    interval: Interval | None
    unit: str
    units: int
    t_interval: Interval | None
    seeds: tuple[float, ...]
    words: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two systems on a test set.

    Attributes:
      estimate: WER of the first minus that of the second.
      segments: how many the matched-pairs test has found.
      p: two-sided probability by that test.
      p_holm: the same, corrected for all differences of the report.
    """

    estimate: Estimate
    segments: int
    p: float
    p_holm: float

    @property
    def is_clear(self) -> bool:
        """Whether it has a star: intervals that exclude zero, from five units or more, and a corrected p below 5 %."""
        return self.estimate.is_clear and self.p_holm < _LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems, by name, and their differences by test set."""

    first: str
    second: str
    sets: dict[str, Difference]


def pool_seeds(system: System, test: CommonSet) -> Pooled:
    """Mean over the runs of a system on a test set, and the figure of each."""
    errors, words = _errors(system, test.name), int(test.words.sum())
    found = word_error_rate(errors, test.words, test.speakers)
    seeds = tuple(100.0 * float(total) / max(words, 1) for total in errors.sum(-1))
    return Pooled(found.points, found.interval, found.unit, found.units, found.t_interval, seeds, words)


def compare(systems: Sequence[System], pairs: Sequence[tuple[str, str]] | None = None) -> list[Comparison]:
    """Compares systems on every test set that they have in common.

    Args:
      systems: all that the report is about.
      pairs: names of those to compare; None for every two.

    Raises:
      UserError: as `common_sets`.
    """
    tests = common_sets(systems)
    chosen = _pairs(systems, pairs)
    asked = [(first, second, test) for first, second in chosen for test in tests]
    estimates = [
        paired_difference(_errors(first, test.name), _errors(second, test.name), test.words, test.speakers)
        for first, second, test in asked
    ]
    tested = [matched_pairs(_places(first, test.name), _places(second, test.name)) for first, second, test in asked]
    corrected = holm([found.p for found in tested])
    found = (Difference(e, *matched, p) for e, matched, p in zip(estimates, tested, corrected, strict=True))
    return [Comparison(a.name, b.name, {test.name: next(found) for test in tests}) for a, b in chosen]


def _pairs(systems: Sequence[System], names) -> list[tuple[System, System]]:
    if names is None:
        return list(itertools.combinations(systems, 2))
    by_name = {system.name: system for system in systems}
    return [(by_name[first], by_name[second]) for first, second in names]


def _errors(system: System, name: str) -> np.ndarray:
    """[K, N], of each run and utterance."""
    return np.stack([run.scored[name].errors for run in system.runs])


def _places(system: System, name: str) -> list[tuple[np.ndarray, ...]]:
    return [run.scored[name].places for run in system.runs]


def format_table(systems: Sequence[System]) -> str:
    """One row a system: WER in percent with its 95 % interval for each test set, words, steps and minutes of training.

    Below it a row of t-intervals where the units are few, and of the figure of each seed where there are several. A
    legend follows.
    """
    tests = common_sets(systems)
    rows = [["system", *(f"{test.name} WER %" for test in tests), "words", "steps", "minutes"]]
    everything = [[pool_seeds(system, test) for test in tests] for system in systems]
    for system, pooled in zip(systems, everything, strict=True):
        cells = [f"{result.wer:.2f} {_format_interval(result.interval)}" for result in pooled]
        words = "/".join(str(result.words) for result in pooled)
        rows.append([system.name, *cells, words, _mean_of(system, "steps", ".0f"), _mean_of(system, "minutes", ".1f")])
        rows += _t_row(pooled, ["", "", ""])
        if len(system.runs) > 1:
            seeds = [" ".join(f"{wer:.2f}" for wer in result.seeds) for result in pooled]
            rows.append([f"  {len(system.runs)} seeds", *seeds, "", "", ""])
    rows = _drop_unknown(rows)
    legend = [*_explain_intervals(tests, everything[0], systems), *_explain_costs(rows[0]), *_explain_scoring(systems)]
    return "\n".join([_align(rows), "", *map(_wrap, legend)])


def format_differences(systems: Sequence[System], pairs: Sequence[tuple[str, str]] | None = None) -> str:
    """One row a pair of systems (named in `pairs`, or all): WER of the first minus that of the second, in points.

    Beside each with its interval stands the probability by matched pairs, corrected for all of the table, and an
    asterisk where the difference is clear. A legend follows.
    """
    compared = compare(systems, pairs)
    tests = common_sets(systems)
    rows = [["difference", *(cell for test in tests for cell in (f"{test.name} WER points", "p"))]]
    for pair in compared:
        found = [pair.sets[test.name] for test in tests]
        rows.append([f"{pair.first} - {pair.second}", *(cell for one in found for cell in _format_difference(one))])
        t_row = _t_row([difference.estimate for difference in found], [])
        rows += [[row[0], *(cell for interval in row[1:] for cell in (interval, ""))] for row in t_row]
    legend = _explain_differences(len(compared) * len(tests), {len(system.runs) for system in systems})
    return "\n".join([_align(rows), "", *map(_wrap, legend)])


def write_report(path: str, systems: Sequence[System], pairs: Sequence[tuple[str, str]] | None = None) -> None:
    """Writes what the two tables say as JSON, whole or not at all; WER in percent, differences in points.

    Times are left out: runs that differ only in how often they were stopped write the same bytes.
    """
    tests = common_sets(systems)
    rows = {system.name: _describe(system, tests) for system in systems}
    differences = [
        {"first": pair.first, "second": pair.second, "sets": {name: _jsonable(d) for name, d in pair.sets.items()}}
        for pair in compare(systems, pairs)
    ]
    files.write_json(path, {"systems": rows, "differences": differences})


def _describe(system: System, tests: Sequence[CommonSet]) -> dict[str, Any]:
    return {
        "sets": {test.name: dataclasses.asdict(pool_seeds(system, test)) for test in tests},
        "steps": [run.steps for run in system.runs],
    }


def _jsonable(difference: Difference) -> dict[str, Any]:
    tested = {"p": difference.p, "p_holm": difference.p_holm, "segments": difference.segments}
    return {**dataclasses.asdict(difference.estimate), **tested, "is_clear": difference.is_clear}


def _format_interval(interval: Interval | None) -> str:
    return f"[{interval.low:.2f}, {interval.high:.2f}]" if interval else "[one utterance]"


def _format_difference(difference: Difference) -> tuple[str, str]:
    p = f"{difference.p_holm:.3f}" if difference.p_holm >= 0.0005 else "<0.001"
    estimate = difference.estimate
    return f"{estimate.points:+.2f} {_format_interval(estimate.interval)}", p + " *" * difference.is_clear


def _t_row(found: Sequence[Pooled | Estimate], rest: list[str]) -> list[list[str]]:
    """A row of t-intervals, or none where no set needs one."""
    cells = [f"t {_format_interval(one.t_interval)}" if one.t_interval else "" for one in found]
    return [["", *cells, *rest]] if any(cells) else []


def _explain_intervals(tests: Sequence[CommonSet], found: Sequence[Pooled], systems: Sequence[System]) -> list[str]:
    counted = {test.name: f"{one.units} {one.unit}" for test, one in zip(tests, found, strict=True)}
    units = ", ".join(f"{units} of {name}" for name, units in counted.items())
    if len(counted) > 1 and len(set(counted.values())) == 1:
        units = f"{counted[tests[0].name]} of each set"
    lines = [f"[ ]  95 % interval, by bootstrap over the {units}"]
    lines[0] += "; " + _SEEDS[any(len(system.runs) > 1 for system in systems)]
    alone = [test.name for test, one in zip(tests, found, strict=True) if one.unit == "utterances"]
    if alone:
        lines.append(
            f"No two speakers are known in {', '.join(alone)}: the interval says nothing about other speakers."
        )
    few = [test.name for test, one in zip(tests, found, strict=True) if one.units < FEW_UNITS]
    if few:
        lines.append(
            f"Fewer than {FEW_UNITS} speakers or utterances in {', '.join(few)}: this interval may be too narrow to "
            "trust; a t-interval over the same stands below it."
        )
    return lines


def _explain_costs(heading: Sequence[str]) -> list[str]:
    return ["minutes  time of the training, on the machine that ran it"] if "minutes" in heading else []


def _explain_scoring(systems: Sequence[System]) -> list[str]:
    normaliser = systems[0].runs[0].scoring.normaliser
    return [] if normaliser == DEFAULT else [f"Errors were counted after the normaliser {normaliser!r}."]


def _explain_differences(count: int, runs: set[int]) -> list[str]:
    unpaired = ["Where only one of two systems has several seeds, those of the other are not covered."]
    corrected = f", corrected for {count} differences (Holm)" if count > 1 else ""
    return [
        "[ ]  95 % interval of the difference, paired by utterance, over the same units as above",
        f"p  by matched pairs of segments (MPSSWE){corrected}",
        f"*  all intervals of the difference exclude zero, p < {_LEVEL}, and there are {FEWEST_UNITS} units or more",
        *(unpaired if 1 in runs and len(runs) > 1 else []),
    ]


def _wrap(line: str) -> str:
    mark, _, text = line.partition("  ")
    indent = " " * (len(mark) + 2) if text else ""
    return textwrap.fill(line, _LEGEND_WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _mean_of(system: System, field: str, form: str) -> str:
    values = [getattr(run, field) for run in system.runs]
    return "" if None in values else format(np.mean(values), form)


def _drop_unknown(rows: list[list[str]]) -> list[list[str]]:
    """Leaves out the columns of which only the heading is known."""
    known = [any(row[column] for row in rows[1:]) for column in range(len(rows[0]))]
    return [[cell for cell, keep in zip(row, known, strict=True) if keep] for row in rows]


def _align(rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
