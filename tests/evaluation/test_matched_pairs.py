"""Matched pairs of segments, and Holm's correction, against examples worked by hand."""

import math
import statistics

import numpy as np
import pytest

from tf_rnnt_kd.evaluation.matched_pairs import holm, matched_pairs
from tf_rnnt_kd.evaluation.wer import place_errors


def _run(*pairs):
    return [place_errors(reference, hypothesis) for reference, hypothesis in pairs]


_SAID = "a b c d e f g h"


@pytest.mark.parametrize(
    ("first", "second", "segments"),
    [
        ("a b c d e f g h", "a b c d e f g h", 0),  # nobody errs
        ("a x c d e f g x", "a b x d e f g h", 2),  # c follows b at once; four good words before h
        ("x b x d e f g h", "a b c d e f g h", 1),  # one good word between does not part them
        ("x b c x e f g h", "a b c d e f g h", 2),  # two do
        ("x b c x e f g h", "a b x d e f g h", 1),  # unless the other has one of them wrong
        ("x b y c d e f g h", "a b c d e f g h", 1),  # one good word, then an insertion
        ("x b y c x e f g h", "a b c d e f g h", 1),  # good words on both sides of an insertion are not in a row
        ("a b c d e f g h x", "y a b c d e f g h", 2),  # at both ends
        ("c d e f g h", "a b c d e f", 2),  # deleted at both ends
        ("", "", 1),
    ],
)
def test_two_words_that_both_have_right_part_segments(first, second, segments):
    assert matched_pairs([_run((_SAID, first))], [_run((_SAID, second))]).segments == segments


def test_utterances_part_segments_too():
    first, second = _run(("a b", "a x"), ("c d", "x d")), _run(("a b", "a b"), ("c d", "c d"))
    assert matched_pairs([first], [second]).segments == 2


def test_p_is_that_of_an_example_worked_by_hand():
    # Segments with 1, 0, 2 and -1 errors more of the first: mean 0.5, variance 5/3, so z = 0.5 / sqrt(5/12) = 0.7746.
    first = _run((_SAID, "a x c d e f g h"), (_SAID, "a x c d e f g h"), (_SAID, "x y c d e f g h"), (_SAID, _SAID))
    second = _run((_SAID, _SAID), (_SAID, "a y c d e f g h"), (_SAID, _SAID), (_SAID, "x b c d e f g h"))
    found = matched_pairs([first], [second])
    assert found.segments == 4
    expected = 2 * (1 - statistics.NormalDist().cdf(0.5 / math.sqrt(5 / 12)))
    assert found.p == pytest.approx(expected) == pytest.approx(0.43858, abs=1e-5)
    assert matched_pairs([second], [first]) == pytest.approx(found)


@pytest.mark.parametrize(("count", "expected"), [(0, 1.0), (1, 1.0), (2, 0.5), (5, 1 / 16), (6, 1 / 32)])
def test_few_segments_that_all_agree_say_no_more_than_as_many_coins(count, expected):
    pairs = [("a b", "a x")] * count
    found = matched_pairs([_run(*pairs)], [_run(*[(said, said) for said, _ in pairs])])
    assert found == (count, expected)


def test_systems_with_equal_errors_do_not_differ():
    errs = _run(*[(_SAID, "a x c d e f g h")] * 9)
    assert matched_pairs([errs], [errs]) == (9, 1.0)


def test_runs_count_by_their_mean():
    right, wrong = _run((_SAID, _SAID)) * 8, _run((_SAID, "a x c d x f g h")) * 8
    assert matched_pairs([right, wrong], [wrong, right]) == (16, 1.0)
    assert matched_pairs([right, wrong], [right]) == (16, pytest.approx(2.0**-15))


def test_false_alarms_are_five_of_a_hundred():
    generator = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        first, second = ([np.r_[0, row] for row in generator.random([120, 2]) < 0.2] for _ in range(2))
        alarms.append(matched_pairs([first], [second]).p < 0.05)
    assert 0.03 <= np.mean(alarms) <= 0.075


def test_holm_raises_step_by_step():
    # Holm 1979 by hand: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []
