"""Word errors, counted."""

import dataclasses
from collections.abc import Iterable

import jiwer


@dataclasses.dataclass(frozen=True)
class ErrorCounts:
    """What it takes to turn a reference into a hypothesis; sums of counts are the counts of a corpus.

    Attributes:
      words: words of the reference.
      substitutions: words that were replaced.
      deletions: words that are missing.
      insertions: words that were added.
    """

    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word error rate in percent, 100 (S + D + I) / words; 0 where there is nothing to say and nothing was said."""
        if self.words:
            return 100.0 * self.errors / self.words
        return float("inf") if self.errors else 0.0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Counts the word errors of a minimum-edit-distance alignment.

    Args:
      reference: words separated by white space; may be empty.
      hypothesis: likewise.
    """
    num_reference, num_hypothesis = len(reference.split()), len(hypothesis.split())
    if not num_reference or not num_hypothesis:
        return ErrorCounts(num_reference, 0, deletions=num_reference, insertions=num_hypothesis)
    aligned = jiwer.process_words(" ".join(reference.split()), " ".join(hypothesis.split()))
    return ErrorCounts(num_reference, aligned.substitutions, aligned.deletions, aligned.insertions)


def sum_errors(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The counts of a corpus."""
    return sum(counts, ErrorCounts())
