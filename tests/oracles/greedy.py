"""Greedy transducer search as a reader would write it: one utterance, one frame, one symbol at a time."""

import numpy as np


def greedy_search(encoded, *, join, predicted, state, step_prediction, blank_id, max_symbols_per_frame, max_labels):
    """One utterance; returns (labels, their emission frames and log-probabilities, log-probability of the path)."""
    labels, frames, label_log_probs, score = [], [], [], 0.0
    for frame, vector in enumerate(encoded):
        num_symbols = 0
        while True:
            logits = np.asarray(join(vector, predicted), np.float64)
            log_probs = logits - np.logaddexp.reduce(logits)
            best = int(np.argmax(logits))
            if num_symbols == max_symbols_per_frame or len(labels) == max_labels:
                best = blank_id
            score += log_probs[best]
            if best == blank_id:
                break
            labels.append(best)
            frames.append(frame)
            label_log_probs.append(log_probs[best])
            predicted, state = step_prediction(best, state)
            num_symbols += 1
    return labels, frames, label_log_probs, score
