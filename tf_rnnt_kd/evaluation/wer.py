"""Word errors, counted."""

import dataclasses
from collections.abc import Iterable

import jiwer
import numpy as np

from tf_rnnt_kd.evaluation.normalisers import DEFAULT, NORMALISERS


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


def count_errors(reference: str, hypothesis: str, normaliser: str = DEFAULT) -> ErrorCounts:
    """Counts the word errors of a minimum-edit-distance alignment.

    Args:
      reference: any text; may be empty, or become so by the normaliser: then all that was heard is inserted.
      hypothesis: likewise.
      normaliser: what both pass through first, of `normalisers.NORMALISERS`; each brings texts to their normal form.
    """
    said, heard = _words(reference, normaliser), _words(hypothesis, normaliser)
    if not said or not heard:
        return ErrorCounts(len(said), 0, deletions=len(said), insertions=len(heard))
    aligned = jiwer.process_words(" ".join(said), " ".join(heard))
    return ErrorCounts(len(said), aligned.substitutions, aligned.deletions, aligned.insertions)


def mark_errors(
    reference: str, hypothesis: str, normaliser: str = DEFAULT
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The words of both, each with what the alignment of `count_errors` says of it.

    Args:
      reference: any text; may be empty.
      hypothesis: likewise.
      normaliser: as in `count_errors`; the words are those that it leaves.

    Returns:
      (word, mark) of each word of the reference, "equal", "substitute" or "delete", and of the hypothesis, "equal",
      "substitute" or "insert".
    """
    said, heard = _words(reference, normaliser), _words(hypothesis, normaliser)
    if not said or not heard:
        return [(word, "delete") for word in said], [(word, "insert") for word in heard]
    marked: tuple[list, list] = [], []
    for part in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        marked[0].extend((word, part.type) for word in said[part.ref_start_idx : part.ref_end_idx])
        marked[1].extend((word, part.type) for word in heard[part.hyp_start_idx : part.hyp_end_idx])
    return marked


def place_errors(reference: str, hypothesis: str, normaliser: str = DEFAULT) -> np.ndarray:
    """Where the errors of the alignment of `count_errors` are.

    Args:
      reference: any text, of U words after the normaliser; may be empty.
      hypothesis: likewise.
      normaliser: as in `count_errors`.

    Returns:
      [2U + 1] int64: words inserted before word u of the reference at 2u (and after the last at 2U), and at 2u + 1
      whether word u is replaced or missing. The sum is the number of errors.
    """
    said, heard = _words(reference, normaliser), _words(hypothesis, normaliser)
    places = np.zeros([2 * len(said) + 1], np.int64)
    if not said or not heard:
        places[1::2] = 1
        places[-1] += len(heard)
        return places
    for part in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        if part.type == "insert":
            places[2 * part.ref_start_idx] += part.hyp_end_idx - part.hyp_start_idx
        elif part.type != "equal":
            places[2 * part.ref_start_idx + 1 : 2 * part.ref_end_idx : 2] = 1
    return places


def _words(text: str, normaliser: str) -> list[str]:
    return NORMALISERS[normaliser](text).split()


def sum_errors(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The counts of a corpus."""
    return sum(counts, ErrorCounts())
