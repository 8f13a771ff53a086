"""Corpora to record sets, and the tokenizer that all of them share."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tf_rnnt_kd.data.corpora import BadAudio, Utterance
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.data.records import RecordSet, open_records
from tf_rnnt_kd.data.remembered import remembered_in
from tf_rnnt_kd.data.schema import HUMAN_TRANSCRIPT, Record
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import SAMPLE_RATE
from tf_rnnt_kd.features.stored import describe
from tf_rnnt_kd.lineage import begin, find_changes, fingerprint, finish, read_lineage, stale_error
from tf_rnnt_kd.nst.plan import Corpus, Plan
from tf_rnnt_kd.nst.skipping import Skipped
from tf_rnnt_kd.progress import Progress, say
from tf_rnnt_kd.text.normalize import spoken_text
from tf_rnnt_kd.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

LENGTHS = "lengths.json"  # of files of audio, and where they are cut; see `remembered`
_OURS = {"lineage.json", "plan.json", "manifest.json"}  # one of them is in whatever may be removed
_FINISHED = {"tokenizer": "tokenizer.json"}  # the file that is written last

Listed = Mapping[str, Sequence[Utterance]]  # the utterances of each corpus


class Prepared:
    """What preparation leaves in `folder`: `tokenizer/` and one record set a corpus."""

    def __init__(self, folder: str):
        self.folder = folder

    def path(self, name: str) -> str:
        """Of a corpus' record set, or of the "tokenizer"."""
        return os.path.join(self.folder, name)

    def tokenizer(self) -> Tokenizer:
        """The shared tokenizer."""
        return load_tokenizer(self.path("tokenizer"))

    def has(self, name: str) -> bool:
        """Whether a corpus, or the "tokenizer", is there."""
        return os.path.exists(os.path.join(self.path(name), _FINISHED.get(name, "manifest.json")))

    def records(self, corpus: str) -> RecordSet:
        """A corpus, refused if another tokenizer wrote its labels."""
        return open_records(self.path(corpus), tokenizer_hash=self.tokenizer().hash)


def prepare(plan: Plan, folder: str, *, remake: bool = False, skip_bad: int = 0, look: bool = True) -> Prepared:
    """Trains the tokenizer and writes every corpus of the plan that is not there yet.

    Args:
      plan: whose corpora and tokenizer.
      folder: of both.
      remake: make again what was made from something else.
      skip_bad: how many files of audio that can't be read, of all corpora together, may be left out.
      look: list every corpus and compare it with what is there; else what is there is taken as it is.

    Raises:
      UserError: what is there was made from other transcripts, other audio or with other settings; or more files are
        bad than may be.
    """
    prepared = Prepared(folder)
    skipped = Skipped(folder, [corpus.name for corpus in plan.corpora], skip_bad)
    needed = {c.name for c in plan.corpora if look or not prepared.has(c.name)}
    needed |= set() if prepared.has("tokenizer") else {*plan.tokenizer.corpora}
    with remembered_in(os.path.join(folder, LENGTHS)):
        listed = skipped.list_corpora([corpus for corpus in plan.corpora if corpus.name in needed])
    problems = find_problems(plan, prepared, listed)
    if problems and not remake:
        raise stale_error(problems)
    _make_room(problems)
    if not prepared.has("tokenizer"):
        _train_tokenizer(plan, prepared, listed)
        for path in find_problems(plan, prepared, listed):
            shutil.rmtree(path)
    for corpus in plan.corpora:
        if not prepared.has(corpus.name):
            _write(plan, corpus, listed[corpus.name], prepared, skipped)
    return prepared


def _make_room(problems: Mapping[str, Sequence[str]]) -> None:
    """Removes what no longer fits; of what is not ours, nothing."""
    for path in problems:
        if not _OURS & {*os.listdir(path)}:
            raise UserError(f"{path} is no record set, and what is in it stays: choose another folder, or another name")
    for path, changes in problems.items():
        say(f"  {path} is made again: {'; '.join(changes)}")
        shutil.rmtree(path)


def compare(plan: Plan, prepared: Prepared, skip_bad: int = 0) -> dict[str, list[str]]:
    """Lists the corpora where anything is prepared, and compares; as `find_problems`. Nothing is written.

    Raises:
      UserError: a corpus that is not there, or has more bad files than may be.
    """
    names = [corpus.name for corpus in plan.corpora]
    if not any(prepared.has(name) for name in ("tokenizer", *names)):
        return {}
    with remembered_in(os.path.join(prepared.folder, LENGTHS), writes=False):
        listed = Skipped(prepared.folder, names, skip_bad).list_corpora(plan.corpora)
    return find_problems(plan, prepared, listed)


def find_problems(plan: Plan, prepared: Prepared, listed: Listed) -> dict[str, list[str]]:
    """What of the prepared was made from something else than what is listed: path -> what changed."""
    problems = {}
    if {*plan.tokenizer.corpora} <= {*listed}:
        problems[prepared.path("tokenizer")] = _tokenizer_changes(plan, prepared, listed)
    for corpus in (corpus for corpus in plan.corpora if corpus.name in listed):
        path, found = prepared.path(corpus.name), read_lineage(prepared.path(corpus.name))
        if found is not None:
            problems[path] = find_changes(found.inputs, _inputs(plan, corpus, listed[corpus.name], prepared))
        elif os.path.isdir(path) and os.listdir(path):
            problems[path] = ["it has no lineage: another version made it, or it was copied"]
    return {path: changes for path, changes in problems.items() if changes}


def _tokenizer_changes(plan: Plan, prepared: Prepared, listed: Listed) -> list[str]:
    """A tokenizer without lineage is one that somebody put there: it is used as it is."""
    found = read_lineage(prepared.path("tokenizer"))
    return find_changes(found.inputs, _tokenizer_inputs(plan, listed)) if found and prepared.has("tokenizer") else []


def _tokenizer_inputs(plan: Plan, listed: Listed) -> dict[str, Any]:
    spec = plan.tokenizer
    return {
        "kind": spec.kind,
        "vocabulary_size": spec.vocabulary_size,
        "transcripts": {name: fingerprint(u.text or "" for u in listed[name]) for name in spec.corpora},
    }


def _train_tokenizer(plan: Plan, prepared: Prepared, listed: Listed) -> None:
    spec, path = plan.tokenizer, prepared.path("tokenizer")
    texts = [_transcript(u) for name in spec.corpora for u in listed[name]]
    begin(path, "tokenizer", _tokenizer_inputs(plan, listed), {}, anew=True)
    tokenizer = train_tokenizer(texts, path, kind=spec.kind, vocabulary_size=spec.vocabulary_size)
    finish(path, tokenizer.hash)
    # Two alphabets in place of one, or digits, are seen at once.
    letters = "".join(sorted({letter for piece in tokenizer.pieces for letter in piece})).strip()
    letters = letters if len(letters) <= 100 else f"{letters[:100]}… ({len(letters)} in all)"
    say(f"  tokenizer: {tokenizer.vocabulary_size} labels over the characters {letters}")


def _inputs(plan: Plan, corpus: Corpus, utterances: Sequence[Utterance], prepared: Prepared) -> dict[str, Any]:
    """What decides a record set: the tokenizer, the settings, and who says what in which audio."""
    return {
        "tokenizer": prepared.tokenizer().hash if prepared.has("tokenizer") else None,
        "labelled": corpus.labelled,
        "features": plan.stored_features(corpus),
        "records_per_shard": plan.records_per_shard,
        "utterances": len(utterances),
        "ids": fingerprint(part for u in utterances for part in (u.id, u.speaker)),
        "transcripts": fingerprint(u.text or "" for u in utterances) if corpus.labelled else None,
        "audio": fingerprint(u.source for u in utterances),
    }


def transcripts(corpus: Corpus) -> list[str]:
    """What a labelled corpus says; no audio is read."""
    return [_transcript(utterance) for utterance in _utterances(corpus)]


def _utterances(corpus: Corpus) -> list[Utterance]:
    """All of a corpus, also those whose audio is bad: their text is not."""
    try:
        return corpus.utterances()
    except BadAudio as error:
        return list(error.utterances)


def _write(plan: Plan, corpus: Corpus, utterances: Sequence[Utterance], prepared: Prepared, skipped: Skipped) -> None:
    tokenizer, features, path = prepared.tokenizer(), plan.stored_features(corpus), prepared.path(corpus.name)
    begin(path, "record set", _inputs(plan, corpus, utterances, prepared), {"tokenizer": tokenizer.folder})

    def to_records(part: Sequence[Utterance]) -> Iterator[Record]:
        for utterance, samples in skipped.load(corpus.name, part, utterances):
            text = _transcript(utterance) if corpus.labelled else ""
            labels = _encode(tokenizer, utterance.id, text)
            yield Record(utterance.id, utterance.speaker, text, samples, labels, source=HUMAN_TRANSCRIPT)

    with Progress(f"prepare {corpus.name}", len(utterances), "utterances") as progress:
        records = write_records(
            path,
            utterances,
            to_records,
            manifest={
                "tokenizer_hash": tokenizer.hash,
                "sample_rate": SAMPLE_RATE,
                "targets": None,
                "source": {"corpus": corpus.name, "labelled": corpus.labelled},
                **({"features": describe(features)} if features else {}),
            },
            records_per_shard=plan.records_per_shard,
            on_progress=lambda done, _: progress.update(done),
        )
    finish(path, records.hash)
    left_out = skipped.describe(corpus.name)
    say(f"  {corpus.name}: {records.num_utterances} utterances, {records.seconds / 3600:.2f} h{left_out}")


def _transcript(utterance: Utterance) -> str:
    try:
        text = spoken_text(utterance.text or "")
    except UserError as error:
        raise UserError(f"utterance {utterance.id}: {error}") from error
    if not text:
        raise UserError(f"utterance {utterance.id} has no transcript: give it one, or read its corpus as unlabelled")
    return text


def _encode(tokenizer: Tokenizer, name: str, text: str) -> np.ndarray:
    try:
        return np.array(tokenizer.encode(text), np.int32)
    except UserError as error:
        raise UserError(f"utterance {name}: {error}") from error
