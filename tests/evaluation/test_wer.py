"""Word errors against hand-made cases."""

import random
import unicodedata

import pytest

from tests.spellings import SPELLINGS
from tf_rnnt_kd.evaluation.wer import ErrorCounts, count_errors, mark_errors, place_errors, sum_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("A B C", "A B C", ErrorCounts(3, 0, 0, 0)),
        ("A B C", "A X C", ErrorCounts(3, 1, 0, 0)),
        ("A B C", "A C", ErrorCounts(3, 0, 1, 0)),
        ("A C", "A B C", ErrorCounts(2, 0, 0, 1)),
        ("A B C D", "X A B D", ErrorCounts(4, 0, 1, 1)),
        ("  A   B ", "A B", ErrorCounts(2, 0, 0, 0)),
        ("DON'T", "DONT", ErrorCounts(1, 1, 0, 0)),
        ("A B", "", ErrorCounts(2, 0, 2, 0)),
        ("A B", "   ", ErrorCounts(2, 0, 2, 0)),
        ("", "A B", ErrorCounts(0, 0, 0, 2)),
        ("", "", ErrorCounts(0, 0, 0, 0)),
    ],
)
def test_counts_equal_those_made_by_hand(reference, hypothesis, expected):
    assert count_errors(reference, hypothesis) == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis", "said", "heard"),
    [
        ("A B C", "A X C", "A= Bs C=", "A= Xs C="),
        ("A B C", "A C", "A= Bd C=", "A= C="),
        ("A C", "A B C", "A= C=", "A= Bi C="),
        (" A  B C D", "X A Y  C", "A= Bs C= Dd", "Xi A= Ys C="),
        ("A B", "", "Ad Bd", ""),
        ("", "A B", "", "Ai Bi"),
        ("", "", "", ""),
    ],
)
def test_errors_are_marked_in_both_texts(reference, hypothesis, said, heard):
    names = {"=": "equal", "s": "substitute", "d": "delete", "i": "insert"}
    expected = tuple([(word[0], names[word[1]]) for word in words.split()] for words in (said, heard))
    assert mark_errors(reference, hypothesis) == expected
    counts, marks = count_errors(reference, hypothesis), [mark for words in expected for _, mark in words]
    assert counts.insertions == marks.count("insert") and counts.deletions == marks.count("delete")


@pytest.mark.parametrize(("typed", "form"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_recogniser_without_a_fault_has_no_errors_however_the_reference_was_typed(typed, form):
    """As in record sets of earlier versions, which hold what was typed."""
    for reference, hypothesis in ((typed, form), (form, typed), (unicodedata.normalize("NFD", form), form)):
        assert count_errors(reference, hypothesis) == ErrorCounts(len(form.split()))
        said, heard = mark_errors(reference, hypothesis)
        assert said == heard == [(word, "equal") for word in form.split()]


def test_a_reference_that_its_normaliser_empties_has_insertions_only():
    assert count_errors("...", "A b", "case_and_punctuation") == ErrorCounts(0, insertions=2)
    assert count_errors("...", "!", "case_and_punctuation") == ErrorCounts()
    assert count_errors("A", "?", "case_and_punctuation") == ErrorCounts(1, deletions=1)
    assert mark_errors("...", "A", "case_and_punctuation") == ([], [("a", "insert")])


def test_corpus_rate_weighs_utterances_by_their_words():
    corpus = sum_errors([count_errors("A", "B"), count_errors("A B C", "A B C")])
    assert corpus == ErrorCounts(4, 1, 0, 0)
    assert corpus.wer == 25.0


def test_rate_without_reference_words():
    assert sum_errors([]).wer == 0.0
    assert count_errors("", "A").wer == float("inf")


def test_rate_may_exceed_one_hundred():
    assert count_errors("A", "B C D").wer == 300.0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("A B C", "A B C", [0, 0, 0, 0, 0, 0, 0]),
        ("A B C", "A X C", [0, 0, 0, 1, 0, 0, 0]),
        ("A B C", "B C", [0, 1, 0, 0, 0, 0, 0]),
        ("A B C", "X Y A B C Z", [2, 0, 0, 0, 0, 0, 1]),
        ("A B C", "A B X C", [0, 0, 0, 0, 1, 0, 0]),
        ("A B", "", [0, 1, 0, 1, 0]),
        ("", "A B", [2]),
        ("", "", [0]),
    ],
)
def test_errors_have_their_places(reference, hypothesis, expected):
    assert place_errors(reference, hypothesis).tolist() == expected


def test_places_hold_all_errors():
    draw = random.Random(0)
    for _ in range(500):
        texts = [" ".join(draw.choices("ABC", k=draw.randint(0, 6))) for _ in range(2)]
        counts, places = count_errors(*texts), place_errors(*texts)
        assert (places.sum(), places[::2].sum()) == (counts.errors, counts.insertions)
        assert len(places) == 2 * counts.words + 1


def test_places_are_those_after_the_normaliser():
    assert place_errors("Don't stop.", "dont", "case_and_punctuation").tolist() == [0, 0, 0, 1, 0]
