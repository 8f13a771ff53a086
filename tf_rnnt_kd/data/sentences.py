"""Text as sentences, and sentences as batches for a language model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import Text, checked
from tf_rnnt_kd.text.normalize import clean_text, normalize_transcript

_JITTER = 0.1  # how far, of their length, sentences stray from the order of their lengths


@checked
def read_sentences(path: Text) -> list[str]:
    """Normalised sentences of a text file, in its order.

    Args:
      path: UTF-8 text with a sentence a line, or `ID<TAB>sentence`. Lines with digits, in any form, are left out.

    Raises:
      UserError: the file cannot be read, or holds what no text has.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [_clean(path, number, line) for number, line in enumerate(file, 1)]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read sentences from {path}: {error}; give a UTF-8 text file") from error
    sentences = (normalize_transcript(line) for line in lines if not any(map(str.isdigit, line)))
    return [sentence for sentence in sentences if sentence]


def _clean(path: str, number: int, line: str) -> str:
    try:
        return clean_text(line.rstrip("\n").rpartition("\t")[2])
    except UserError as error:
        raise UserError(f"{path}, line {number}: {error}") from error


class SentenceBatch(NamedTuple):
    """Sentences of similar length, for a language model.

    Attributes:
      labels: [B, U] int32, zeros after the last.
      num_labels: [B] int32.
      ends: [B] bool, whether the sentence ends with its last label, or goes on in another row.
    """

    labels: np.ndarray
    num_labels: np.ndarray
    ends: np.ndarray


def batch_sentences(
    sentences: Sequence[Sequence[int]], *, batch_labels: int, max_labels: int, seed: int, first: int = 0
) -> Iterator[SentenceBatch]:
    """Batches without end, every sentence once in each pass; batch n is a function of n and the seed.

    Args:
      sentences: label ids.
      batch_labels: B · U of a batch, padding included, or a single row.
      max_labels: longer sentences are cut into rows of so many; only the last row has an end.
      seed: of the order, in which sentences of similar length lie together.
      first: batches to leave out: what an earlier start has read.
    """
    rows = [
        (sentence[start : start + max_labels], start + max_labels >= len(sentence))
        for sentence in sentences
        for start in range(0, max(len(sentence), 1), max_labels)
    ]
    lengths = np.array([len(labels) for labels, _ in rows])
    number = 0
    for epoch in range(1 << 31):
        rng = np.random.default_rng([seed, epoch])
        order = np.argsort(lengths * rng.uniform(1.0 - _JITTER, 1.0 + _JITTER, len(rows)), kind="stable")
        groups = list(_fill(order, lengths, batch_labels))
        for place in rng.permutation(len(groups)):
            if number >= first:
                yield _pad([rows[row] for row in groups[place]])
            number += 1


def _fill(order: np.ndarray, lengths: np.ndarray, batch_labels: int) -> Iterator[list[int]]:
    group: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if group and longest * (len(group) + 1) > batch_labels:
            yield group
            group, longest = [], lengths[row]
        group.append(row)
    yield group


def _pad(rows: Sequence[tuple[Sequence[int], bool]]) -> SentenceBatch:
    num_labels = np.array([len(labels) for labels, _ in rows], np.int32)
    padded = np.zeros([len(rows), max(num_labels)], np.int32)
    for line, (labels, _) in zip(padded, rows, strict=True):
        line[: len(labels)] = labels
    return SentenceBatch(padded, num_labels, np.array([end for _, end in rows]))
