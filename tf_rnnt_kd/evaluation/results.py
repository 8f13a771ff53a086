"""What an evaluation leaves on disk: `results.json`, and `hypotheses-<set>.tsv` beside it for every test set.

    results.json          {"sets": {name: {utterances, words, substitutions, deletions, insertions, wer, interval, …}},
                           "scoring": {normaliser, version}, "hypotheses": {name: sha256 of the file},
                           "sha256": of all the rest, …}
    hypotheses-NAME.tsv   id, reference, hypothesis, speaker, audio; one line an utterance, before any normaliser

Neither holds a time or a path: evaluating the same model twice gives the same bytes. What was changed since, even one
bit, is refused. Files of before have no sha256 and neither speakers nor audio; they are read, and both are unknown.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic

from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import DEFAULT, Scoring, scoring
from tf_rnnt_kd.evaluation.significance import Interval, word_error_rate
from tf_rnnt_kd.evaluation.wer import ErrorCounts, count_errors, place_errors, sum_errors

RESULTS = "results.json"
_COLUMNS = ("id", "reference", "hypothesis", "speaker", "audio")
_COLUMNS_OF_BEFORE = _COLUMNS[:3]
_AGAIN = "evaluate the model again"
_MOST_HYPOTHESES = 1 << 30  # bytes of one file


class Transcription(NamedTuple):
    """One utterance as a system heard it.

    Attributes:
      id: unique in its test set.
      reference: what was said.
      hypothesis: what the system heard.
      score: log-probability of the hypothesis.
      speaker: who said it; empty where unknown.
      audio: hash of the samples; empty where unknown.
    """

    id: str
    reference: str
    hypothesis: str
    score: float = 0.0
    speaker: str = ""
    audio: str = ""


@dataclasses.dataclass(frozen=True)
class SetResult:
    """A system on a test set; `wer` and the ends of its 95 % intervals are in percent.

    Attributes:
      utterances: how many the set has.
      words: how many its references have.
      substitutions: words that were replaced.
      deletions: words that are missing.
      insertions: words that were added.
      wer: 100 (S + D + I) / words.
      interval: see `significance.Estimate`, like the next three.
      unit: what was taken to be independent, speakers or utterances.
      units: how many of them; 0 in results of before, which had an interval over utterances.
      t_interval: given where the units are few.
    """

    utterances: files.Count
    words: files.Positive
    substitutions: files.Count
    deletions: files.Count
    insertions: files.Count
    wer: files.Amount
    interval: Interval | None
    unit: str = "utterances"
    units: files.Count = 0
    t_interval: Interval | None = None


class ScoredSet(NamedTuple):
    """What comparisons need of a test set, of N utterances.

    Attributes:
      transcriptions: one per utterance.
      places: where the errors of each are, from `wer.place_errors`.
      errors: [N] int64, how many they are.
      words: [N] int64, how many words each reference has.
    """

    transcriptions: tuple[Transcription, ...]
    places: tuple[np.ndarray, ...]
    errors: np.ndarray
    words: np.ndarray

    @property
    def speakers(self) -> list[str]:
        """Who speaks each utterance, empty where unknown."""
        return [item.speaker for item in self.transcriptions]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What `write_results` wrote, read again.

    Attributes:
      sets: the figures of each test set.
      transcriptions: its utterances, without their scores.
      records: hash of the record set that each test set was read from, where it was told.
      model: hash of the model, if it was told.
      scoring: how errors were counted, which is how they can be counted here.
    """

    sets: dict[str, SetResult]
    transcriptions: dict[str, list[Transcription]]
    records: dict[str, str]
    model: str | None
    scoring: Scoring


def score_set(transcriptions: Iterable[Transcription], normaliser: str = DEFAULT) -> ScoredSet:
    """Counts the errors of each utterance, as `wer.count_errors` does."""
    items = tuple(transcriptions)
    places = tuple(place_errors(item.reference, item.hypothesis, normaliser) for item in items)
    errors = np.array([found.sum() for found in places], np.int64)
    return ScoredSet(items, places, errors, np.array([len(found) // 2 for found in places], np.int64))


def summarize(transcriptions: Iterable[Transcription], name: str, normaliser: str = DEFAULT) -> SetResult:
    """Counts the errors of test set `name` and finds the interval of its word error rate.

    Raises:
      UserError: if there is no word to compare with.
    """
    items = list(transcriptions)
    counts = [count_errors(item.reference, item.hypothesis, normaliser) for item in items]
    total = sum_errors(counts)
    if not total.words:
        raise UserError(
            f"test set {name!r} has no transcripts, or none that the normaliser {normaliser!r} leaves words of, so no "
            "word error rate: evaluate on labelled records"
        )
    return _with_interval(counts, total, [item.speaker for item in items])


def _with_interval(counts: Sequence[ErrorCounts], total: ErrorCounts, speakers: Sequence[str]) -> SetResult:
    found = word_error_rate([count.errors for count in counts], [count.words for count in counts], speakers)
    interval = {"interval": found.interval, "t_interval": found.t_interval, "unit": found.unit, "units": found.units}
    return SetResult(len(counts), **dataclasses.asdict(total), wer=total.wer, **interval)


def write_results(
    path: str,
    sets: dict[str, Sequence[Transcription]],
    about: dict[str, Any] | None = None,
    normaliser: str = DEFAULT,
) -> dict[str, SetResult]:
    """Writes the hypotheses of every set, then, last, the figures.

    Args:
      path: of the JSON file; `hypotheses-<set>.tsv` go beside it.
      sets: transcriptions of each test set by name.
      about: what else belongs into the file, such as the hash of the model.
      normaliser: as in `wer.count_errors`; the file names it.
    """
    scored_by = scoring(normaliser)._asdict()
    results = {name: summarize(transcriptions, name, normaliser) for name, transcriptions in sets.items()}
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    hashes = {}
    for name, transcriptions in sets.items():
        content = _dump_hypotheses(transcriptions)
        hashes[name] = files.sha256_of(content)
        files.write_atomically(_hypotheses_path(folder, name), content)
    figures = {name: dataclasses.asdict(result) for name, result in results.items()}
    content = {**(about or {}), "scoring": scored_by, "sets": figures, "hypotheses": hashes}
    files.write_atomically(path, files.dump_signed(content))
    return results


def _dump_hypotheses(transcriptions: Iterable[Transcription]) -> bytes:
    rows = [_COLUMNS, *([getattr(item, column) for column in _COLUMNS] for item in transcriptions)]
    return "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows).encode()


_Name = Annotated[str, pydantic.Field(pattern=r"^[^/\x00]+$")]  # of a test set: a part of a file's name


class _Report(pydantic.BaseModel):
    model_config = files.OPEN

    systems: pydantic.JsonValue = None
    sets: pydantic.JsonValue = None


class _Document(pydantic.BaseModel):
    model_config = files.OPEN

    sets: dict[_Name, SetResult]
    hypotheses: dict[str, files.Sha256] | None = None
    sha256: files.Sha256 | None = None
    records: dict[str, str] = {}
    model: str | None = None
    scoring: Scoring = Scoring()


def read_evaluation(path: str) -> Evaluation:
    """The figures and hypotheses of `write_results`.

    Raises:
      UserError: if either is missing or damaged, they are not of one evaluation, or errors can't be counted here as
        they were there.
    """
    document = _read_document(path)
    folder, hashes = os.path.dirname(path), document.hypotheses
    transcriptions = {}
    for name, figures in document.sets.items():
        sha256 = None if hashes is None else hashes.get(name, "")
        transcriptions[name] = read_transcriptions(folder, name, sha256=sha256)
        if len(transcriptions[name]) != figures.utterances:
            found = f"it has {len(transcriptions[name])} of {figures.utterances} utterances"
            raise files.Damaged(_hypotheses_path(folder, name), found, _AGAIN)
    _check_scoring(path, document.scoring)
    return Evaluation(document.sets, transcriptions, document.records, document.model, document.scoring)


def _check_scoring(path: str, found: Scoring) -> None:
    try:
        here = scoring(found.normaliser)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if found != here:
        raise UserError(
            f"{path} was counted by version {found.version!r} of the normaliser {found.normaliser!r}, here is version "
            f"{here.version!r}: install that one, or evaluate the model again"
        )


def read_results(path: str) -> dict[str, SetResult]:
    """The figures of `write_results` alone.

    Raises:
      UserError: if there are none, or the file is damaged.
    """
    return _read_document(path).sets


def _read_document(path: str) -> _Document:
    remedy = _AGAIN if os.path.exists(path) else "evaluate the model first"
    kind = files.read_json(path, _Report, remedy=remedy)
    if kind.systems is not None and kind.sets is None:
        raise UserError(f"{path} is the report of a plan: name the folder of a generation, such as seed-0/NAME")
    document = files.read_json(path, _Document, remedy=remedy)
    # Only files of before have neither, so that a change in one of the names does not take the signature away.
    if document.hypotheses is not None or document.sha256 is not None:
        document = files.read_signed(path, _Document, remedy=remedy)
    return document


def read_transcriptions(folder: str, name: str, *, sha256: str | None = None) -> list[Transcription]:
    """The utterances of one test set, without their scores.

    Args:
      folder: where `results.json` is.
      name: of the test set.
      sha256: that the file should have; None where nobody knows.

    Raises:
      UserError: if there are none, or the file is damaged or of another evaluation.
    """
    path = _hypotheses_path(folder, name)
    content = files.read_bytes(path, _MOST_HYPOTHESES, remedy=_AGAIN)
    if sha256 is not None and files.sha256_of(content) != sha256:
        raise files.Damaged(path, "it was changed, or written by another evaluation into this folder", _AGAIN)
    try:
        columns, *rows = (line.split("\t") for line in content.decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError:
        raise files.Damaged(path, "it is not UTF-8 text", _AGAIN) from None
    if tuple(columns) not in (_COLUMNS, _COLUMNS_OF_BEFORE) or any(len(row) != len(columns) for row in rows):
        raise files.Damaged(path, f"its lines are not {', '.join(_COLUMNS)}", _AGAIN)
    return [Transcription(**dict(zip(columns, row, strict=True))) for row in rows]


def _hypotheses_path(folder: str, name: str) -> str:
    return os.path.join(folder, f"hypotheses-{name}.tsv")
