"""What an evaluation leaves on disk: `results.json`, and `hypotheses-<set>.tsv` beside it for every test set.

    results.json          {"sets": {name: {utterances, words, substitutions, deletions, insertions, wer, interval}},
                           "scoring": {normaliser, version}, …}
    hypotheses-NAME.tsv   id, reference, hypothesis; one line an utterance, before any normaliser

Neither holds a time or a path: evaluating the same model twice gives the same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.normalisers import DEFAULT, Scoring, scoring
from tf_rnnt_kd.evaluation.significance import Interval, wer_interval
from tf_rnnt_kd.evaluation.wer import ErrorCounts, count_errors, sum_errors
from tf_rnnt_kd.text.normalize import normal_form

RESULTS = "results.json"
_COLUMNS = ("id", "reference", "hypothesis")


class Transcription(NamedTuple):
    """One utterance as a system heard it; `score` is the log-probability of the hypothesis."""

    id: str
    reference: str
    hypothesis: str
    score: float = 0.0


@dataclasses.dataclass(frozen=True)
class SetResult:
    """A system on a test set; `wer` and the ends of its 95 % `interval` are in percent."""

    utterances: int
    words: int
    substitutions: int
    deletions: int
    insertions: int
    wer: float
    interval: Interval


class ScoredSet(NamedTuple):
    """What comparisons need of a test set: `errors` and (reference) `words` are [N] integers, one an utterance.

    References are in their normal form.
    """

    ids: tuple[str, ...]
    references: tuple[str, ...]
    errors: np.ndarray
    words: np.ndarray


def score_set(transcriptions: Iterable[Transcription], normaliser: str = DEFAULT) -> ScoredSet:
    """Counts the errors of each utterance, as `wer.count_errors` does."""
    return _score(list(transcriptions), normaliser)[0]


def summarize(transcriptions: Iterable[Transcription], name: str, normaliser: str = DEFAULT) -> SetResult:
    """Counts the errors of test set `name` and bootstraps its word error rate.

    Raises:
      UserError: if there is no word to compare with.
    """
    scored, counts = _score(list(transcriptions), normaliser)
    if not counts.words:
        raise UserError(
            f"test set {name!r} has no transcripts, or none that the normaliser {normaliser!r} leaves words of, so no "
            "word error rate: evaluate on labelled records"
        )
    interval = wer_interval(scored.errors, scored.words)
    return SetResult(len(scored.ids), **dataclasses.asdict(counts), wer=counts.wer, interval=interval)


def _score(transcriptions: Sequence[Transcription], normaliser: str) -> tuple[ScoredSet, ErrorCounts]:
    counts = [count_errors(item.reference, item.hypothesis, normaliser) for item in transcriptions]
    scored = ScoredSet(
        tuple(item.id for item in transcriptions),
        tuple(normal_form(item.reference) for item in transcriptions),
        np.array([count.errors for count in counts], np.int64),
        np.array([count.words for count in counts], np.int64),
    )
    return scored, sum_errors(counts)


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
    for name, transcriptions in sets.items():
        rows = [_COLUMNS, *((item.id, item.reference, item.hypothesis) for item in transcriptions)]
        text = "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
        write_text(_hypotheses_path(folder, name), text)
    figures = {name: dataclasses.asdict(result) for name, result in results.items()}
    write_json(path, {**(about or {}), "scoring": scored_by, "sets": figures})
    return results


def read_results(path: str) -> dict[str, SetResult]:
    """The figures of `write_results`.

    Raises:
      UserError: if there are none, or the file is damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            sets = json.load(file)["sets"]
        return {name: SetResult(**{**found, "interval": Interval(*found["interval"])}) for name, found in sets.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no results at {path}: evaluate the model first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate the model again") from error


def read_scoring(path: str) -> Scoring:
    """How the figures of `write_results` were counted.

    Raises:
      UserError: as `read_results`, or what counted them is not here, so that hypotheses cannot be counted alike.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = Scoring(**json.load(file).get("scoring", {}))  # none in files of earlier versions
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no results at {path}: evaluate the model first") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate the model again") from error
    try:
        here = scoring(found.normaliser)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if found != here:
        raise UserError(
            f"{path} was counted by version {found.version!r} of the normaliser {found.normaliser!r}, here is version "
            f"{here.version!r}: install that one, or evaluate the model again"
        )
    return found


def read_transcriptions(folder: str, name: str) -> list[Transcription]:
    """The utterances of one test set, without their scores.

    Raises:
      UserError: if there are none, or the file is damaged.
    """
    path = _hypotheses_path(folder, name)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            rows = [tuple(line.rstrip("\n").split("\t")) for line in file]
    except (FileNotFoundError, UnicodeDecodeError):
        raise UserError(f"{path} is missing or damaged: evaluate the model again") from None
    if not rows or rows[0] != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
        raise UserError(f"{path} is damaged: its lines are not id, reference, hypothesis; evaluate the model again")
    return [Transcription(*row) for row in rows[1:]]


def _hypotheses_path(folder: str, name: str) -> str:
    return os.path.join(folder, f"hypotheses-{name}.tsv")


def write_json(path: str, content: dict[str, Any]) -> None:
    """Writes JSON whole or not at all; equal contents give equal bytes."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: str, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
