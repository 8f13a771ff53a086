"""Labels as a text of words with times and confidences."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple


class Word(NamedTuple):
    """A word as it was heard.

    Attributes:
      text: without spaces.
      start: in seconds, begin of the frame on which its first label was emitted.
      end: in seconds, end of the frame on which its last label was emitted.
      confidence: the product of its labels' probabilities where they were emitted, in (0, 1].
    """

    text: str
    start: float
    end: float
    confidence: float


def group_words(
    labels: Sequence[int],
    frames: Sequence[int],
    log_probs: Sequence[float],
    pieces: Sequence[str],
    *,
    seconds_per_frame: float,
) -> list[Word]:
    """The words of a hypothesis: `"".join(pieces of labels).split()`, each with what its labels say about it.

    Times are those of emission. A transducer emits a label when it is sure of it, a streaming one often later than the
    sound; spaces that are labels of their own belong to no word.

    Args:
      labels: [U] blank-free.
      frames: [U] encoder frame on which each label was emitted.
      log_probs: [U] log-probability of each label where it was emitted.
      pieces: [V] text of each label, with a space where a word begins.
      seconds_per_frame: of an encoder frame.
    """
    words: list[list[tuple[str, int, float]]] = [[]]  # of each word its parts: text, frame, log-probability
    for label, frame, log_prob in zip(labels, frames, log_probs, strict=True):
        first, *others = pieces[label].split(" ")
        words[-1].append((first, frame, log_prob))
        words.extend([(other, frame, log_prob)] for other in others)
    spoken = ([part for part in word if part[0]] for word in words)
    return [_word(parts, seconds_per_frame) for parts in spoken if parts]


def _word(parts: list[tuple[str, int, float]], seconds_per_frame: float) -> Word:
    texts, frames, log_probs = zip(*parts, strict=True)
    start, end = frames[0] * seconds_per_frame, (frames[-1] + 1) * seconds_per_frame
    return Word("".join(texts), start, end, math.exp(sum(log_probs)))


@dataclasses.dataclass
class Transcript:
    """What was heard, from first to last label; in a stream it grows.

    Attributes:
      pieces: [V] text of each label.
      seconds_per_frame: of an encoder frame.
      labels, frames, log_probs: [U], as in `group_words`.
      score: log-probability of the labels, as the search gave it.
    """

    pieces: Sequence[str]
    seconds_per_frame: float
    labels: list[int] = dataclasses.field(default_factory=list)
    frames: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    score: float = 0.0

    def extend(self, labels: Sequence[int], frames: Sequence[int], log_probs: Sequence[float], score: float) -> None:
        """What a further chunk has added."""
        self.labels.extend(labels)
        self.frames.extend(frames)
        self.log_probs.extend(log_probs)
        self.score += score

    @property
    def text(self) -> str:
        return "".join(self.pieces[label] for label in self.labels).strip()

    @property
    def words(self) -> list[Word]:
        """See `group_words`."""
        return group_words(
            self.labels, self.frames, self.log_probs, self.pieces, seconds_per_frame=self.seconds_per_frame
        )
