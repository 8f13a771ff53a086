"""N-grams of labels: probabilities with back-off, and their estimation from sentences.

Id 0, which no label has, stands at both ends of a sentence: it is the start at the head of an n-gram and the end at its
tail. Its one unigram so holds the probability of the end and the back-off weight of the start.
"""

import collections
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from tf_rnnt_kd.errors import UserError

BOUNDARY = 0  # the start and the end of a sentence
_ROUNDING = 0.02  # of a log-probability and a back-off weight that were written with few digits, in nats


class Entry(NamedTuple):
    """An n-gram's log-probability of its last label after the others, and its back-off weight as a history: in nats."""

    log_prob: float
    backoff: float = 0.0


Ngrams = list[dict[tuple[int, ...], Entry]]  # by order, unigrams first


def estimate_ngrams(sentences: Iterable[Sequence[int]], order: int, vocabulary_size: int) -> Ngrams:
    """Interpolated Witten-Bell estimates of all n-grams in `sentences`.

        P(w | h) = (c(h w) + T(h) P(w | h without its first)) / (c(h) + T(h))

    with counts c and T(h) different successors of h; below the unigrams all is equally probable. Unlike the discounts
    of Kneser and Ney it needs no n-grams of count one, which a few characters do not have. Keeps a dictionary entry
    of some 200 bytes for every different n-gram.

    Args:
      sentences: label ids, without boundaries.
      order: labels of the longest n-gram.
      vocabulary_size: V, blank included: so many outcomes are possible, the labels and the end.

    References:
      Chen and Goodman 1998 (TR-10-98), section 2.5.
    """
    if order < 1:
        raise UserError(f"an n-gram of order {order} has no label: give an order of 1 or more")
    counts = _count(sentences, order)
    if not counts[0]:
        raise UserError("no sentence to estimate n-grams from: check the text")
    totals, kinds = _successors(counts)
    uniform = 1.0 / vocabulary_size
    probs = [{(label,): uniform for label in range(vocabulary_size)}]
    probs[0] = {gram: _interpolate(counts[0][gram], totals[()], kinds[()], uniform) for gram in probs[0]}
    for longer in counts[1:]:
        lower = probs[-1]
        probs.append(
            {
                gram: _interpolate(count, totals[gram[:-1]], kinds[gram[:-1]], lower[gram[1:]])
                for gram, count in longer.items()
            }
        )

    def backoff(gram: tuple[int, ...]) -> float:
        return math.log(kinds[gram] / (totals[gram] + kinds[gram])) if gram in totals else 0.0

    return [{gram: Entry(math.log(prob), backoff(gram)) for gram, prob in table.items()} for table in probs]


def _count(sentences, order):
    counts = [collections.Counter() for _ in range(order)]
    for sentence in sentences:
        padded = (BOUNDARY, *(int(label) for label in sentence), BOUNDARY)
        for end in range(1, len(padded)):  # the start is never predicted
            for length in range(1, min(order, end + 1) + 1):
                counts[length - 1][padded[end + 1 - length : end + 1]] += 1
    return counts


def _successors(counts):
    """c(h) and T(h) of every history."""
    totals, kinds = collections.Counter(), collections.Counter()
    for table in counts:
        for gram, count in table.items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += 1
    return totals, kinds


def _interpolate(count, total, num_kinds, lower):
    return (count + num_kinds * lower) / (total + num_kinds)


def log_prob(ngrams: Ngrams, sentence: Sequence[int]) -> float:
    """Log P of a sentence with its end, in nats."""
    padded = (BOUNDARY, *(int(label) for label in sentence), BOUNDARY)
    return sum(_look_up(ngrams, padded[max(0, end + 1 - len(ngrams)) : end + 1]) for end in range(1, len(padded)))


def _look_up(ngrams, gram):
    total = 0.0
    while (found := ngrams[len(gram) - 1].get(gram)) is None:
        total += _backoff(ngrams, gram[:-1])
        gram = gram[1:]
    return total + found.log_prob


def raised_above_one(ngrams: Ngrams, histories: Collection[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Those of `histories` whose back-off weight raises the probability of a label above one, shorter ones first.

    Args:
      ngrams: with a unigram for each label, and no probability above one.
      histories: all that have a back-off weight above one, which alone can do so.
    """
    if not histories:
        return
    highest: dict[tuple[int, ...], float] = {}  # of what is listed after a history
    for gram, entry in ((gram, entry) for table in ngrams for gram, entry in table.items()):
        highest[gram[:-1]] = max(entry.log_prob, highest.get(gram[:-1], -math.inf))

    def bound(history: tuple[int, ...]) -> float:
        """No label is likelier after `history`."""
        found = highest[()]
        for suffix in (history[start:] for start in reversed(range(len(history)))):
            found = max(highest.get(suffix, -math.inf), _backoff(ngrams, suffix) + found)
        return found

    for history in sorted(histories, key=lambda history: (len(history), history)):
        weight = _backoff(ngrams, history)
        # Few come as far as this: most labels that follow a history often are listed after it.
        if weight + bound(history[1:]) > _ROUNDING and any(
            weight + _look_up(ngrams, (*history[1:], *label)) > _ROUNDING
            for label in ngrams[0]
            if (*history, *label) not in ngrams[len(history)]
        ):
            yield history


def _backoff(ngrams: Ngrams, history: tuple[int, ...]) -> float:
    return ngrams[len(history) - 1].get(history, Entry(0.0)).backoff
