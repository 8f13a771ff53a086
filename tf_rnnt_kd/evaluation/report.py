"""Systems side by side: a table of error rates, the differences between them, and both as JSON."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import Scoring
from tf_rnnt_kd.evaluation.results import (
    RESULTS,
    ScoredSet,
    SetResult,
    read_results,
    read_scoring,
    read_transcriptions,
    score_set,
    write_json,
)
from tf_rnnt_kd.evaluation.significance import Difference, Interval, paired_difference, wer_interval


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One trained and evaluated model.

    Attributes:
      results: its figures by test set.
      scored: its errors by test set and utterance.
      steps: of its training, if known.
      minutes: of its training, if known.
      scoring: how its errors were counted.
    """

    results: dict[str, SetResult]
    scored: dict[str, ScoredSet]
    steps: int | None = None
    minutes: float | None = None
    scoring: Scoring = Scoring()


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One row of a report: the runs of one recipe, which differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A system on a test set, over its seeds.

    Attributes:
      wer: mean over seeds, percent.
      interval: 95 % bootstrap over utterances of that mean; how much seeds differ shows in `seeds`.
      seeds: WER of each run, percent.
      words: reference words of the set.
    """

    wer: float
    interval: Interval
    seeds: tuple[float, ...]
    words: int


def read_run(path: str, *, steps: int | None = None, minutes: float | None = None) -> Run:
    """Reads an evaluation: the figures, and the hypotheses beside them.

    Args:
      path: of the folder that holds `results.json`, or of that file.
      steps: of the training, to be shown.
      minutes: of the training, to be shown.

    Raises:
      UserError: if either is missing or damaged.
    """
    path = os.path.join(path, RESULTS) if os.path.isdir(path) else path
    results = read_results(path)
    scoring, folder = read_scoring(path), os.path.dirname(path)
    scored = {name: score_set(read_transcriptions(folder, name), scoring.normaliser) for name in results}
    return Run(results, scored, steps, minutes, scoring)


def read_systems(arguments: Sequence[str]) -> list[System]:
    """Reads each `FOLDER` or `NAME=FOLDER,FOLDER,…` (runs of one system that differ in their seed).

    Raises:
      UserError: if two systems have one name, or what `read_run` raises.
    """
    systems = []
    for argument in arguments:
        name, _, folders = argument.rpartition("=")
        name = name or os.path.basename(os.path.abspath(folders))
        if name in {system.name for system in systems}:
            raise UserError(f"two systems are called {name!r}: call one otherwise with NAME={folders}")
        systems.append(System(name, tuple(read_run(folder) for folder in folders.split(","))))
    return systems


def pool_seeds(system: System, name: str) -> Pooled:
    """Mean over the runs of a system on test set `name`, and the figure of each."""
    scored = _mean_errors(system, name)
    seeds = tuple(run.results[name].wer for run in system.runs)
    interval = wer_interval(scored.errors, scored.words)
    return Pooled(float(np.mean(seeds)), interval, seeds, int(scored.words.sum()))


def compare(first: System, second: System, name: str) -> Difference:
    """WER of `first` minus that of `second` on test set `name`, with the interval of a paired bootstrap.

    Raises:
      UserError: if the two did not hear the same utterances, or their errors were counted otherwise.
    """
    _check_same_scoring([first, second])
    ours, theirs = _mean_errors(first, name), _mean_errors(second, name)
    _check_same_set(ours, theirs, f"{first.name} and {second.name}", name)
    return paired_difference(ours.errors, theirs.errors, ours.words)


def _check_same_scoring(systems: Sequence[System]) -> None:
    found = [(system.name, run.scoring) for system in systems for run in system.runs]
    for name, scoring in found:
        if scoring != found[0][1]:
            raise UserError(
                f"errors of {found[0][0]} were counted by the normaliser {' '.join(found[0][1])!r}, those of {name} by "
                f"{' '.join(scoring)!r}: evaluate both with the same --normaliser"
            )


def _mean_errors(system: System, name: str) -> ScoredSet:
    first, *others = (run.scored[name] for run in system.runs)
    for other in others:
        _check_same_set(first, other, f"two runs of {system.name}", name)
    return first._replace(errors=np.mean([first.errors, *(other.errors for other in others)], axis=0))


def _check_same_set(first: ScoredSet, second: ScoredSet, who: str, name: str) -> None:
    rows = itertools.zip_longest(
        zip(first.ids, first.references, strict=True), zip(second.ids, second.references, strict=True)
    )
    for ours, theirs in rows:
        if ours != theirs:
            raise UserError(
                f"{who} were not evaluated on the same {name!r}: one has utterance {ours}, the other {theirs}; "
                "evaluate both on the same records"
            )


def common_sets(systems: Sequence[System]) -> list[str]:
    """Names of the test sets that every run has, in the order of the first.

    Raises:
      UserError: if there is none, or the errors of the runs were not counted alike.
    """
    _check_same_scoring(systems)
    runs = [run for system in systems for run in system.runs]
    names = [name for name in runs[0].results if all(name in run.results for run in runs)]
    if not names:
        raise UserError("the systems have no test set in common: evaluate them on the same records")
    return names


def format_table(systems: Sequence[System]) -> str:
    """One row a system: WER in percent with its 95 % interval for each test set, words, steps and minutes of training.

    A system of several runs shows the mean over its seeds, and the figure of each seed in the row below.
    """
    names = common_sets(systems)
    rows = [["system", *(f"{name} WER %" for name in names), "words", "steps", "minutes"]]
    for system in systems:
        pooled = [pool_seeds(system, name) for name in names]
        cells = [f"{result.wer:.2f} {_format_interval(result.interval)}" for result in pooled]
        words = "/".join(str(result.words) for result in pooled)
        rows.append([system.name, *cells, words, _mean_of(system, "steps", ".0f"), _mean_of(system, "minutes", ".1f")])
        if len(system.runs) > 1:
            seeds = [" ".join(f"{wer:.2f}" for wer in result.seeds) for result in pooled]
            rows.append([f"  {len(system.runs)} seeds", *seeds, "", "", ""])
    return _align(_drop_unknown(rows))


def format_differences(systems: Sequence[System], pairs: Sequence[tuple[str, str]] | None = None) -> str:
    """One row a pair of systems (named in `pairs`, or all): WER of the first minus that of the second, in points.

    The interval is that of a paired bootstrap over utterances.

    An asterisk marks the differences whose 95 % interval excludes zero.
    """
    names = common_sets(systems)
    rows = [["difference", *(f"{name} WER points" for name in names)]]
    for first, second in _pairs(systems, pairs):
        found = [compare(first, second, name) for name in names]
        cells = [f"{d.points:+.2f} {_format_interval(d.interval)}{' *' if d.is_clear else ''}" for d in found]
        rows.append([f"{first.name} - {second.name}", *cells])
    return _align(rows)


def write_report(path: str, systems: Sequence[System], pairs: Sequence[tuple[str, str]] | None = None) -> None:
    """Writes what the two tables say as JSON, whole or not at all; WER in percent, differences in points.

    Times are left out: runs that differ only in how often they were stopped write the same bytes.
    """
    names = common_sets(systems)
    rows = {system.name: _describe(system, names) for system in systems}
    differences = [
        {
            "first": first.name,
            "second": second.name,
            "sets": {name: _jsonable(compare(first, second, name)) for name in names},
        }
        for first, second in _pairs(systems, pairs)
    ]
    write_json(path, {"systems": rows, "differences": differences})


def _pairs(systems, names):
    if names is None:
        return list(itertools.combinations(systems, 2))
    by_name = {system.name: system for system in systems}
    return [(by_name[first], by_name[second]) for first, second in names]


def _describe(system: System, names: Sequence[str]) -> dict[str, Any]:
    return {
        "sets": {name: dataclasses.asdict(pool_seeds(system, name)) for name in names},
        "steps": [run.steps for run in system.runs],
    }


def _jsonable(difference: Difference) -> dict[str, Any]:
    return {**difference._asdict(), "is_clear": difference.is_clear}


def _format_interval(interval: Interval) -> str:
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def _mean_of(system: System, field: str, form: str) -> str:
    values = [getattr(run, field) for run in system.runs]
    return "" if None in values else format(np.mean(values), form)


def _drop_unknown(rows: list[list[str]]) -> list[list[str]]:
    """Leaves out the columns of which only the heading is known."""
    known = [any(row[column] for row in rows[1:]) for column in range(len(rows[0]))]
    return [[cell for cell, keep in zip(row, known, strict=True) if keep] for row in rows]


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
