r"""Matched pairs of segments: whether two systems differ in word errors, as NIST's sctk asks (MPSSWE).

Errors that touch each other are not independent, those on both sides of words that everybody heard right nearly are. So
utterances are cut wherever both systems have two or more words in a row right; what is left are \(n\) segments that
hold all errors of both. With \(d_i\) errors of the first system minus those of the second in segment \(i\),

\[ z = \frac{\bar d}{\sigma_d / \sqrt n}, \qquad p = 2\,(1 - \Phi(|z|)). \]

The test knows neither speakers nor seeds: it speaks of these runs on speech like this, and stands beside the interval
over speakers.

References:
  Gillick and Cox 1989, Some statistical issues in the comparison of speech recognition algorithms.
  Pallett, Fisher and Fiscus 1990, Tools for the analysis of benchmark speech recognition tests.
  Holm 1979, A simple sequentially rejective multiple test procedure.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_GOOD_WORDS = 2  # right in both systems, in a row, end a segment


class MatchedPairs(NamedTuple):
    """The outcome of the test: how many segments, and the two-sided probability of such a difference by chance."""

    segments: int
    p: float


def matched_pairs(first: Sequence[Sequence[np.ndarray]], second: Sequence[Sequence[np.ndarray]]) -> MatchedPairs:
    """Tests two systems on the same utterances.

    Several runs of a system count by their mean; words are right if every run has them right.

    Args:
      first: for each run of the first system, and in it for each utterance, `wer.place_errors`.
      second: those of the second system.
    """
    utterances = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    parts = [_segment_differences(np.stack(ours), np.stack(theirs)) for ours, theirs in utterances]
    return _test(np.concatenate([*parts, np.zeros([0])]))


def _test(differences: np.ndarray) -> MatchedPairs:
    count = len(differences)
    if count < 2 or not np.any(differences):
        return MatchedPairs(count, 1.0)
    spread = float(np.std(differences, ddof=1)) / math.sqrt(count)
    p = math.erfc(abs(float(np.mean(differences))) / spread / math.sqrt(2)) if spread else 0.0
    # Where signs are drawn by lot, all of them are equal so often: few segments cannot say more.
    return MatchedPairs(count, max(p, 2.0 ** (1 - count)))


def _segment_differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Errors of the first system minus those of the second, [n] float64; from [K, P] and [L, P] of one utterance."""
    surplus = ours.mean(0) - theirs.mean(0)  # [P]
    wrong = np.any(ours, 0) | np.any(theirs, 0)
    segment, right, found = -1, _GOOD_WORDS, []
    for place in range(len(wrong)):
        if wrong[place]:
            segment, right = segment + (right >= _GOOD_WORDS), 0
            found.append(segment)
        else:
            right += place % 2  # odd places are words, even ones the gaps between them
    return np.bincount(found, weights=surplus[wrong]) if found else np.zeros([0])


def holm(p_values: Sequence[float]) -> list[float]:
    """The probabilities, each raised for how many were asked at once, so that any is below 5 % in 5 % of reports only.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is smaller than the one before it.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty([len(order)])
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return adjusted.tolist()
