"""KL divergences over a lattice, node after node, in float64. One utterance, logits [T, U+1, V] without padding."""

import numpy as np

from tests.oracles.alignments import log_softmax


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """`sum_k p(k) log(p(k) / q(k))` of two vectors of probabilities; a class with p = 0 adds nothing."""
    return float(sum(p * np.log(p / q) if q > 0 else np.inf for p, q in zip(teacher, student, strict=True) if p > 0))


def node_kl(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Over all classes of each node: [T, U+1]."""
    teacher, student = (np.exp(log_softmax(np.asarray(x, np.float64) / temperature)) for x in (teacher, student))
    nodes = [kl(teacher[t, u], student[t, u]) for t, u in np.ndindex(teacher.shape[:2])]
    return np.reshape(nodes, teacher.shape[:2])


def lattice_kl(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> float:
    """The sum over the nodes."""
    return float(node_kl(teacher, student, temperature).sum())


def lattice_kl_gradient(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """By the student's logits: P - P~ at each node."""
    teacher, student = (np.exp(log_softmax(np.asarray(x, np.float64) / temperature)) for x in (teacher, student))
    return (student - teacher) / temperature


def collapsed_node_kl(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, blank_id: int, temperature: float = 1.0
) -> np.ndarray:
    """Over blank, next label and rest of each node, the last column has no next label: [T, U+1]."""
    teacher, student = (np.exp(log_softmax(np.asarray(x, np.float64) / temperature)) for x in (teacher, student))
    nodes = np.zeros(teacher.shape[:2])
    for t, u in np.ndindex(nodes.shape):
        kept = [blank_id, *labels[u : u + 1]]
        nodes[t, u] = kl(*([*p[t, u, kept], np.delete(p[t, u], kept).sum()] for p in (teacher, student)))
    return nodes


def collapsed_lattice_kl(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, blank_id: int, temperature: float = 1.0
) -> float:
    """The sum over the nodes."""
    return float(collapsed_node_kl(teacher, student, labels, blank_id, temperature).sum())
