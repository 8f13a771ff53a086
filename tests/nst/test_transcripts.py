"""A transcript from its corpus to the record, the labels and the word error rate: one text."""

import functools

import numpy as np
import pytest

from tests.spellings import SPELLINGS
from tf_rnnt_kd.data.corpora import Utterance
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.results import Transcription
from tf_rnnt_kd.evaluation.wer import count_errors
from tf_rnnt_kd.nst import run
from tf_rnnt_kd.nst.plan import Corpus, Plan, TokenizerSpec
from tf_rnnt_kd.nst.preparation import prepare, transcripts
from tf_rnnt_kd.text.ngrams import estimate_ngrams


def _utterances(texts):
    silence = functools.partial(np.zeros, [1600], np.int16)
    return [Utterance(f"utterance-{i}", "speaker", text, silence) for i, text in enumerate(texts)]


def _plan(*texts, kind="characters", vocabulary_size=None, **options):
    spec = TokenizerSpec(kind, ("all",), vocabulary_size)
    corpus = Corpus("all", functools.partial(_utterances, texts))
    return Plan("toy", [corpus], spec, generations=[], development="all", tests=("all",), **options)


@pytest.mark.parametrize("kind", ["characters", "wordpiece"])
def test_a_recogniser_without_a_fault_has_no_errors(work_dir, kind):
    typed = [text for text, _ in SPELLINGS.values()]
    plan = _plan(*typed, kind=kind, vocabulary_size=None if kind == "characters" else 300)
    prepared = prepare(plan, str(work_dir))
    tokenizer = prepared.tokenizer()
    for record, (text, form) in zip(prepared.records("all").read(), SPELLINGS.values(), strict=True):
        heard = tokenizer.decode(record.labels.tolist())
        assert record.text == heard == form
        assert count_errors(text, heard).errors == count_errors(record.text, heard).errors == 0
    assert transcripts(plan.corpus("all")) == [form for _, form in SPELLINGS.values()]


def test_a_language_model_reads_the_same_text(work_dir):
    """Composed and decomposed are one sentence twice, not two."""
    plan = _plan("café", "cafe\u0301")
    tokenizer = prepare(plan, str(work_dir)).tokenizer()
    labels = [tokenizer.encode(text) for text in transcripts(plan.corpus("all"))]
    assert labels[0] == labels[1]
    assert len(estimate_ngrams(labels, 3, tokenizer.vocabulary_size)[2]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("HE SAID [UNK] TO THEM", "utterance utterance-1: 'HE SAID [UNK] TO THEM' has '[UNK]', which tokenizers and"),
        ("<unk>", "utterance utterance-1: '<unk>' has '<unk>', which tokenizers and"),
        ("A\0B", "utterance utterance-1: 'A\\x00B' has the character U+0000, which no text has"),
        ("A \ufffd", "has the character U+FFFD, which no text has"),
        ("\u200b\u00ad", "utterance utterance-1 has no transcript: give it one, or read its corpus as unlabelled"),
        (None, "utterance utterance-1 has no transcript"),
    ],
)
@pytest.mark.parametrize("kind", ["characters", "unigram", "bpe", "wordpiece"])
def test_what_labels_cannot_say_is_refused_before_anything_is_written(work_dir, kind, text, message):
    plan = _plan("A B C D E", text, kind=kind, vocabulary_size=None if kind == "characters" else 30)
    with pytest.raises(UserError) as caught:
        prepare(plan, str(work_dir))
    assert message in str(caught.value)
    assert list(work_dir.iterdir()) == []


def test_development_is_counted_by_the_normaliser_of_the_plan(monkeypatch):
    heard = [Transcription("a", "Well, yes", "well yes"), Transcription("b", "No.", "no")]
    monkeypatch.setattr(run, "evaluate_records", lambda *_, **__: iter(heard))
    monkeypatch.setattr(run, "make_decoder", lambda model: None)
    for normaliser, wer in (("none", 200 / 3), ("case_and_punctuation", 0.0)):
        found = run._development_evaluator(None, None, normaliser)("model")
        assert list(found.numbers.values()) == [pytest.approx(wer)]
        marks = [mark for _, mark in found.examples[1].reference]
        assert marks == ["substitute" if normaliser == "none" else "equal"]
