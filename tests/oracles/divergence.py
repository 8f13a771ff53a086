"""KL divergences over a lattice, node after node, in float64. One utterance, logits [T, U+1, V] without padding."""

import numpy as np

from tests.oracles.alignments import log_softmax


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """`sum_k p(k) log(p(k) / q(k))` of two vectors of probabilities; a class with p = 0 adds nothing."""
    return float(sum(p * np.log(p / q) if q > 0 else np.inf for p, q in zip(teacher, student, strict=True) if p > 0))


def lattice_kl(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> float:
    """Over all classes of each node."""
    teacher, student = (np.exp(log_softmax(np.asarray(x, np.float64) / temperature)) for x in (teacher, student))
    return sum(kl(teacher[t, u], student[t, u]) for t, u in np.ndindex(teacher.shape[:2]))


def lattice_kl_gradient(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """By the student's logits: P - P~ at each node."""
    teacher, student = (np.exp(log_softmax(np.asarray(x, np.float64) / temperature)) for x in (teacher, student))
    return (student - teacher) / temperature


def collapsed_lattice_kl(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, blank_id: int, temperature: float = 1.0
) -> float:
    """Over blank, next label and rest of each node; the last column has no next label."""
    teacher, student = (np.exp(log_softmax(np.asarray(x, np.float64) / temperature)) for x in (teacher, student))
    total = 0.0
    for t, u in np.ndindex(teacher.shape[:2]):
        kept = [blank_id, *labels[u : u + 1]]
        total += kl(*([*p[t, u, kept], np.delete(p[t, u], kept).sum()] for p in (teacher, student)))
    return total
