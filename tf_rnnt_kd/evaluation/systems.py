"""Evaluated systems read from disk, and whether they can be compared: each heard the same audio, scored alike."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import Scoring
from tf_rnnt_kd.evaluation.results import RESULTS, ScoredSet, SetResult, read_evaluation, score_set
from tf_rnnt_kd.text.normalize import normal_form


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One trained and evaluated model.

    Attributes:
      results: its figures by test set.
      scored: its errors by test set and utterance.
      records: hash of the records behind each test set, where it is known.
      model: its hash, if known.
      scoring: how its errors were counted.
      steps: of its training, if known.
      minutes: of its training, if known.
    """

    results: dict[str, SetResult]
    scored: dict[str, ScoredSet]
    records: dict[str, str]
    model: str | None = None
    scoring: Scoring = Scoring()
    steps: int | None = None
    minutes: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One row of a report: the runs of one recipe, which differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]


class CommonSet(NamedTuple):
    """What all systems were asked: [N] reference words, and who speaks each utterance (empty where unknown)."""

    name: str
    words: np.ndarray
    speakers: list[str]


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
    if not os.path.exists(path):
        raise UserError(f"no results at {path}: evaluate the model first")
    found = read_evaluation(path)
    scored = {name: score_set(items, found.scoring.normaliser) for name, items in found.transcriptions.items()}
    return Run(found.sets, scored, found.records, found.model, found.scoring, steps, minutes)


def read_systems(arguments: Sequence[str]) -> list[System]:
    """Reads each `FOLDER` or `NAME=FOLDER,FOLDER,…` (runs of one system that differ in their seed).

    What exists is a folder, whatever `=` and `,` its name holds.

    Raises:
      UserError: if two systems have one name, or what `read_run` raises.
    """
    systems = []
    for argument in arguments:
        name, folders = _split_argument(argument)
        if name in {system.name for system in systems}:
            raise UserError(f"two systems are called {name!r}: call one otherwise with NAME={','.join(folders)}")
        systems.append(System(name, tuple(read_run(folder) for folder in folders)))
    return systems


def _split_argument(argument: str) -> tuple[str, list[str]]:
    folders = split_folders(argument)
    if not all(map(os.path.exists, folders)) and "=" in argument:
        name, _, rest = argument.partition("=")
        folders = split_folders(rest)
        missing = next((folder for folder in folders if not os.path.exists(folder)), None)
        if name and missing is None:
            return name, folders
        raise UserError(
            f"there is no {argument}, and for a system called {name!r} no {missing}: name folders with results"
        )
    return os.path.basename(os.path.abspath(folders[0])), folders


def split_folders(text: str) -> list[str]:
    """Paths separated by commas; what exists is one path, whatever commas it holds, the longest first."""
    pieces, found = text.split(","), []
    while pieces:
        joined = [",".join(pieces[:count]) for count in range(len(pieces), 0, -1)]
        found.append(next(filter(os.path.exists, joined), pieces[0]))
        pieces = pieces[found[-1].count(",") + 1 :]
    return found


def common_sets(systems: Sequence[System]) -> list[CommonSet]:
    """The test sets that every run has, in the order of the first.

    Raises:
      UserError: if there is none, or systems heard different utterances or audio under one name, or were scored
        differently, or two runs of a system are one model.
    """
    for system in systems:
        _check_runs(system)
    (first_name, first), *others = _runs(systems)
    names = [name for name in first.results if all(name in run.results for _, run in others)]
    if not names:
        raise UserError("the systems have no test set in common: evaluate them on the same records")
    for who, run in others:
        both = f"{first_name} and {who}" if who != first_name else f"two runs of {who}"
        _check_scoring(first, run, both)
        for name in names:
            _check_audio(first, run, both, name)
    return [_describe(name, [first, *(run for _, run in others)]) for name in names]


def _runs(systems: Sequence[System]) -> Iterator[tuple[str, Run]]:
    return ((system.name, run) for system in systems for run in system.runs)


def _check_runs(system: System) -> None:
    models = [run.model for run in system.runs if run.model is not None]
    if len(set(models)) < len(models):
        raise UserError(f"two runs of {system.name} are the same model: name each seed once")


def _describe(name: str, runs: Sequence[Run]) -> CommonSet:
    # Results of before know no speakers; others on the same set do.
    speakers = [run.scored[name].speakers for run in runs]
    return CommonSet(name, runs[0].scored[name].words, next(filter(any, speakers), speakers[0]))


def _check_scoring(first: Run, other: Run, both: str) -> None:
    if first.scoring != other.scoring:
        names = " and ".join(repr(" ".join(run.scoring)) for run in (first, other))
        raise UserError(f"errors of {both} were counted after {names}: evaluate both with the same --normaliser")


def _check_audio(first: Run, other: Run, both: str, name: str) -> None:
    said = f"{both} were not evaluated on the same {name!r}"
    ours, theirs = (run.scored[name].transcriptions for run in (first, other))
    for one, another in zip(ours, theirs, strict=False):
        if one.id != another.id or normal_form(one.reference) != normal_form(another.reference):
            found = " the other ".join(f"{item.id} {item.reference!r}," for item in (one, another))[:-1]
            raise UserError(f"{said}: one has utterance {found}; {_REMEDY}")
        if one.audio and another.audio and one.audio != another.audio:
            raise UserError(f"{said}: they heard different audio as utterance {one.id!r}; {_REMEDY}")
    if len(ours) != len(theirs):
        more = max(ours, theirs, key=len)[min(len(ours), len(theirs))]
        raise UserError(f"{said}: only one has utterance {more.id!r}; {_REMEDY}")
    # The audio itself decides where it is known: records of another tokenizer hold the same.
    known = all(item.audio for item in (*ours, *theirs))
    if not known and first.records.get(name) != other.records.get(name):
        raise UserError(f"{said}: the records behind their results are different ones; {_REMEDY}")


_REMEDY = "evaluate both on the same records"
