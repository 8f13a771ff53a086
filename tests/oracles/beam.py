"""Every label sequence and its probability, by walking all alignments of one utterance."""

import numpy as np


def all_hypotheses(encoded, *, join, predicted, state, step_prediction, blank_id, max_symbols_per_frame):
    """{labels: log-probability} over all alignments with a capped number of labels a frame."""
    totals = {}

    def walk(frame, num_symbols, labels, score, predicted, state):
        if frame == len(encoded):
            totals[labels] = np.logaddexp(totals.get(labels, -np.inf), score)
            return
        logits = np.asarray(join(encoded[frame], predicted), np.float64)
        log_probs = logits - np.logaddexp.reduce(logits)
        walk(frame + 1, 0, labels, score + log_probs[blank_id], predicted, state)
        if num_symbols < max_symbols_per_frame:
            for label in range(len(logits)):
                if label != blank_id:
                    after = step_prediction(label, state)
                    walk(frame, num_symbols + 1, (*labels, label), score + log_probs[label], *after)

    walk(0, 0, (), 0.0, predicted, state)
    return totals


def table_score(labels, table, *, start_id):
    """log P(labels) of a bigram model, given as table[label before, label]."""
    return sum(table[before, label] for before, label in zip((start_id, *labels), labels, strict=False))


def internal_score(labels, *, join, predicted, state, step_prediction, blank_id):
    """log P(labels) of what the joint says to a frame of zeros, blank left out."""
    total = 0.0
    for label in labels:
        logits = np.delete(np.asarray(join(np.zeros_like(predicted), predicted), np.float64), blank_id)
        total += logits[label - (label > blank_id)] - np.logaddexp.reduce(logits)
        predicted, state = step_prediction(label, state)
    return total


def label_log_probs(encoded, labels, frames, *, join, predicted, state, step_prediction, blank_id):
    """log-probability of each label at the node of its emission frame."""
    found = []
    for label, frame in zip(labels, frames, strict=True):
        logits = np.asarray(join(encoded[frame], predicted), np.float64)
        found.append(logits[label] - np.logaddexp.reduce(logits))
        predicted, state = step_prediction(label, state)
    return found
