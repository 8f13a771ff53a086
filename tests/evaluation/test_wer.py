"""Word errors against hand-made cases."""

import pytest

from tf_rnnt_kd.evaluation.wer import ErrorCounts, count_errors, sum_errors


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


def test_corpus_rate_weighs_utterances_by_their_words():
    corpus = sum_errors([count_errors("A", "B"), count_errors("A B C", "A B C")])
    assert corpus == ErrorCounts(4, 1, 0, 0)
    assert corpus.wer == 25.0


def test_rate_without_reference_words():
    assert sum_errors([]).wer == 0.0
    assert count_errors("", "A").wer == float("inf")


def test_rate_may_exceed_one_hundred():
    assert count_errors("A", "B C D").wer == 300.0
