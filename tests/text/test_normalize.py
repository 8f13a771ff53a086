import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_rnnt_kd.text.normalize import normalize_transcript


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. and Mrs. Bennet", "MISTER AND MISSUS BENNET"),
        ("Dr.Jekyll of St. Paul's", "DOCTOR JEKYLL OF SAINT PAUL'S"),
        ("The mr without a point", "THE MR WITHOUT A POINT"),
        ("first. Best. Next", "FIRST BEST NEXT"),  # ST. inside a word is none
        ("  well-known,\tto\nall…  ", "WELL KNOWN TO ALL"),
        ("’tis the boys’ own ‘quote’", "'TIS THE BOYS' OWN 'QUOTE'"),
        ("' '' alone", "ALONE"),
        ("Élan, naïve, Straße", "ELAN NAIVE STRASSE"),
        ("ham & eggs", "HAM AND EGGS"),
        ("chapter 12", "CHAPTER"),
        ("", ""),
    ],
)
def test_transcripts_become_what_was_said(text, expected):
    assert normalize_transcript(text) == expected


@given(st.text(max_size=40))
def test_any_text_becomes_letters_apostrophes_and_single_spaces(text):
    normalized = normalize_transcript(text)
    assert set(normalized) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
    assert normalized == " ".join(normalized.split())
    assert normalize_transcript(normalized) == normalized
