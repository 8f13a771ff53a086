"""Corpora to record sets, and the tokenizer that all of them share."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from tf_rnnt_kd.data.corpora import BadAudio, Utterance
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.data.records import RecordSet, open_records
from tf_rnnt_kd.data.schema import HUMAN_TRANSCRIPT, Record
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import SAMPLE_RATE
from tf_rnnt_kd.features.stored import describe
from tf_rnnt_kd.nst.plan import Corpus, Plan
from tf_rnnt_kd.nst.skipping import Skipped
from tf_rnnt_kd.progress import Progress, say
from tf_rnnt_kd.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

_FINISHED = {"tokenizer": "tokenizer.json"}  # the file that is written last


class Prepared:
    """What preparation leaves in `folder`: `tokenizer/` and one record set a corpus."""

    def __init__(self, folder: str):
        self.folder = folder

    def tokenizer(self) -> Tokenizer:
        """The shared tokenizer."""
        return load_tokenizer(os.path.join(self.folder, "tokenizer"))

    def has(self, name: str) -> bool:
        """Whether a corpus, or the "tokenizer", is there."""
        return os.path.exists(os.path.join(self.folder, name, _FINISHED.get(name, "manifest.json")))

    def records(self, corpus: str) -> RecordSet:
        """A corpus, refused if another tokenizer wrote its labels."""
        return open_records(os.path.join(self.folder, corpus), tokenizer_hash=self.tokenizer().hash)


def prepare(plan: Plan, folder: str, *, skip_bad: int = 0) -> Prepared:
    """Trains the tokenizer and writes every corpus of the plan that is not there yet.

    Args:
      plan: what to prepare.
      folder: where.
      skip_bad: how many files of audio that can't be read, of all corpora together, may be left out.
    """
    prepared = Prepared(folder)
    missing = [corpus for corpus in plan.corpora if not prepared.has(corpus.name)]
    if not missing:
        return prepared
    skipped = Skipped(folder, [corpus.name for corpus in plan.corpora], skip_bad)
    listed = skipped.list_corpora(missing)
    if not prepared.has("tokenizer"):
        spec = plan.tokenizer
        utterances = [u for name in spec.corpora for u in listed.get(name) or _utterances(plan.corpus(name))]
        tokenizer = train_tokenizer(
            [_transcript(u) for u in utterances],
            os.path.join(folder, "tokenizer"),
            kind=spec.kind,
            vocabulary_size=spec.vocabulary_size,
        )
        # Two alphabets in place of one, or digits, are seen at once.
        letters = "".join(sorted({letter for piece in tokenizer.pieces for letter in piece})).strip()
        letters = letters if len(letters) <= 100 else f"{letters[:100]}… ({len(letters)} in all)"
        say(f"  tokenizer: {tokenizer.vocabulary_size} labels over the characters {letters}")
    for corpus in missing:
        _write(corpus, listed[corpus.name], prepared, plan.records_per_shard, plan.stored_features(corpus), skipped)
    return prepared


def transcripts(corpus: Corpus) -> list[str]:
    """What a labelled corpus says; no audio is read."""
    return [_transcript(utterance) for utterance in _utterances(corpus)]


def _utterances(corpus: Corpus) -> list[Utterance]:
    """All of a corpus, also those whose audio is bad: their text is not."""
    try:
        return corpus.utterances()
    except BadAudio as error:
        return list(error.utterances)


def _write(
    corpus: Corpus,
    utterances: Sequence[Utterance],
    prepared: Prepared,
    records_per_shard: int,
    features: str | None,
    skipped: Skipped,
) -> None:
    tokenizer = prepared.tokenizer()

    def to_records(part: Sequence[Utterance]) -> Iterator[Record]:
        for utterance, samples in skipped.load(corpus.name, part, utterances):
            text = _transcript(utterance) if corpus.labelled else ""
            labels = _encode(tokenizer, utterance.id, text)
            yield Record(utterance.id, utterance.speaker, text, samples, labels, source=HUMAN_TRANSCRIPT)

    with Progress(f"prepare {corpus.name}", len(utterances), "utterances") as progress:
        records = write_records(
            os.path.join(prepared.folder, corpus.name),
            utterances,
            to_records,
            manifest={
                "tokenizer_hash": tokenizer.hash,
                "sample_rate": SAMPLE_RATE,
                "targets": None,
                "source": {"corpus": corpus.name, "labelled": corpus.labelled},
                **({"features": describe(features)} if features else {}),
            },
            records_per_shard=records_per_shard,
            on_progress=lambda done, _: progress.update(done),
        )
    left_out = skipped.describe(corpus.name)
    say(f"  {corpus.name}: {records.num_utterances} utterances, {records.seconds / 3600:.2f} h{left_out}")


def _transcript(utterance: Utterance) -> str:
    if not utterance.text:
        raise UserError(f"utterance {utterance.id} has no transcript: give it one, or read its corpus as unlabelled")
    return utterance.text


def _encode(tokenizer: Tokenizer, name: str, text: str) -> np.ndarray:
    try:
        return np.array(tokenizer.encode(text), np.int32)
    except UserError as error:
        raise UserError(f"utterance {name}: {error}") from error
