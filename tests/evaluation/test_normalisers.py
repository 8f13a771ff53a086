"""What each normaliser leaves of a text, and what an error rate becomes by it."""

import builtins
import importlib.metadata
import importlib.util
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spellings import SPELLINGS
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation import normalisers
from tf_rnnt_kd.evaluation.normalisers import NORMALISERS, Scoring, scoring
from tf_rnnt_kd.evaluation.wer import count_errors

_OURS = ["none", "whitespace", "case_and_punctuation"]


def _whisper():
    if importlib.util.find_spec("whisper_normalizer") is None:
        pytest.skip("Whisper's normaliser is an extra")


@pytest.mark.parametrize(
    ("text", "none", "whitespace", "case_and_punctuation"),
    [
        ("  A\t b\u3000c ", "A b c", "A b c", "a b c"),
        ("Don't  stop…", "Don't stop...", "Don't stop...", "dont stop"),
        (
            "well-known and/or e\u2013mail",
            "well-known and/or e\u2013mail",
            "well known and or e mail",
            "well known and or e mail",
        ),
        ("- a _ b -", "- a _ b -", "a b", "a b"),
        ("Don't, Mr. O\u2019Neil!", "Don't, Mr. O\u2019Neil!", "Don't, Mr. O\u2019Neil!", "dont mr oneil"),
        ("Straße", "Straße", "Straße", "strasse"),
        ("3.5 % für 20 €", "3.5 % für 20 €", "3.5 % für 20 €", "3 5 für 20 €"),
        ("¿Qué? «Où» 你好。", "¿Qué? «Où» 你好。", "¿Qué? «Où» 你好。", "qué où 你好"),
        ("می\u200cخواهم", "می\u200cخواهم", "می خواهم", "می\u200cخواهم"),
        ("...", "...", "...", ""),
        ("", "", "", ""),
    ],
)
def test_each_leaves_what_it_says(text, none, whitespace, case_and_punctuation):
    wanted = {"none": none, "whitespace": whitespace, "case_and_punctuation": case_and_punctuation}
    assert {name: NORMALISERS[name](text) for name in _OURS} == wanted


@pytest.mark.parametrize("name", _OURS)
@given(text=st.text(max_size=30))
def test_what_is_left_is_words_with_single_spaces_and_is_left_again(name, text):
    left = NORMALISERS[name](text)
    assert left == " ".join(left.split())
    assert NORMALISERS[name](left) == left


@pytest.mark.parametrize("name", _OURS)
@pytest.mark.parametrize(("typed", "form"), SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_one_text_are_no_errors_for_any(name, typed, form):
    assert NORMALISERS[name](typed) == NORMALISERS[name](form)
    assert count_errors(typed, form, name).errors == 0 < count_errors(typed, form, name).words


@pytest.mark.parametrize(
    ("name", "errors"), [("none", 3), ("whitespace", 1), ("case_and_punctuation", 0), ("whisper_english", 0)]
)
def test_an_error_is_one_by_the_normaliser(name, errors):
    """The comma makes another word of one, with its case; the hyphen makes one word of two."""
    if name == "whisper_english":
        _whisper()
    assert count_errors("Well, it is a well-known fact", "well it is a well known fact", name).errors == errors


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Uh, Mr. Brown can't (laughs)", "mister brown can not"),
        ("TWENTY-TWO grey cats", "22 gray cats"),
        ("I'm gonna pay $20 million", "i am going to pay $20000000"),
        ("ＡＢ ﬁne", "ab fine"),
        ("[noise]", ""),
    ],
)
def test_whisper_writes_english_as_its_authors_do(text, left):
    _whisper()
    assert NORMALISERS["whisper_english"](text) == left


def test_the_version_of_a_scoring_is_that_of_what_does_it():
    assert [scoring(name) for name in _OURS] == [Scoring(name, "1") for name in _OURS]
    _whisper()
    version = f"whisper-normalizer {importlib.metadata.version('whisper-normalizer')}"
    assert scoring("whisper_english") == Scoring("whisper_english", version)


def test_an_unknown_one_is_refused_with_what_is_near():
    message = "normaliser 'white_space' is none of none, whitespace, case_and_punctuation, whisper_english: choose one"
    with pytest.raises(UserError, match=re.escape(message) + ".*; did you mean 'whitespace'"):
        scoring("white_space")
    for value in (7, None, ["none"]):
        with pytest.raises(UserError, match="normaliser .* is none of"):
            scoring(value)


def test_a_package_that_is_missing_is_named(monkeypatch):
    imported = builtins.__import__

    def fail(name, *rest):
        if name.startswith("whisper"):
            raise ImportError(name)
        return imported(name, *rest)

    normalisers._open_whisper.cache_clear()
    monkeypatch.setattr(builtins, "__import__", fail)
    for act in (scoring, lambda name: count_errors("A", "B", name)):
        with pytest.raises(
            UserError, match=r"needs the package whisper-normalizer: pip install 'tf_rnnt_kd\[whisper\]'"
        ):
            act("whisper_english")
