import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spellings import SPELLINGS
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text.normalize import clean_text, normal_form, normalize_transcript, spoken_text

# Whatever stands near a letter: accents, joiners, controls, separators, halves of pairs, and letters of many forms.
_NEAR = [c for c in map(chr, range(0x3000)) if unicodedata.category(c)[0] in "MZC"] + list("aİßﬁＡ½…각ำ\ud800\ufffd")


@pytest.mark.parametrize(("typed", "expected"), SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_one_text_have_one_normal_form(typed, expected):
    assert normal_form(typed) == clean_text(typed) == spoken_text(typed) == expected
    assert normal_form(unicodedata.normalize("NFD", typed)) == normal_form(unicodedata.normalize("NFC", typed))


def test_the_normal_form_of_every_character_is_stable():
    forms = [normal_form(chr(code)) for code in range(sys.maxunicode + 1)]
    assert [form for form in forms if normal_form(form) != form] == []


@given(st.one_of(st.text(), st.text(st.sampled_from(_NEAR), max_size=12)))
def test_the_normal_form_of_a_normal_form_is_itself(text):
    form = normal_form(text)
    assert normal_form(form) == form == unicodedata.normalize("NFKC", form) == " ".join(form.split())
    assert normal_form(f" {text}\u200b\n") == form


@pytest.mark.parametrize("character", "\0\x01\x1b\x7f\x80\x9f\ud800\udfff\ufffd\ufffe\uffff\ufdd0\U0010ffff")
def test_what_no_text_has_is_refused_with_its_code(character):
    for function in (clean_text, spoken_text):
        with pytest.raises(UserError) as caught:
            function(f"ONE{character}TWO")
        assert str(caught.value) == (
            f"{f'ONE{character}TWO'!r} has the character U+{ord(character):04X}, which no text has: correct the text, "
            "or the encoding of its file (UTF-8)"
        )


@pytest.mark.parametrize("mark", ["[UNK]", "<unk>", "<UNK>", "＜unk＞", "<s>", "</s>", "\u2581"])
def test_marks_of_tokenizers_are_not_spoken(mark):
    with pytest.raises(
        UserError, match="which tokenizers and language models keep for themselves: write what was said"
    ):
        spoken_text(f"HE SAID {mark} TO THEM")
    assert clean_text(f"HE SAID {mark}") == normal_form(f"HE SAID {mark}")


def test_brackets_that_are_no_marks_are_spoken():
    assert spoken_text("[NOISE] <unk > ## UNK 1<2>3") == "[NOISE] <unk > ## UNK 1<2>3"


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
        ("co\u00adoperate", "COOPERATE"),
        ("ﬁne＇s ＡＢ", "FINE'S AB"),
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
