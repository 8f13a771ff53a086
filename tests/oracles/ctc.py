"""Connectionist temporal classification by listing every path of classes, in float64. For T up to about 4."""

import itertools

import numpy as np

from tests.oracles.alignments import log_softmax


def collapse(path: tuple[int, ...], blank_id: int) -> list[int]:
    """The labels a path stands for: runs become one class, then blanks go."""
    return [k for k, _ in itertools.groupby(path) if k != blank_id]


def ctc_loss(logits: np.ndarray, labels: np.ndarray, blank_id: int) -> float:
    """Negative log-probability of the labels; logits [T, V] of one utterance. inf where no path exists."""
    log_probs = log_softmax(logits)
    frames, vocabulary = log_probs.shape
    total = -np.inf
    for path in itertools.product(range(vocabulary), repeat=frames):
        if collapse(path, blank_id) == list(labels):
            total = np.logaddexp(total, log_probs[np.arange(frames), path].sum())
    return float(-total)
