"""The transducer lattice by listing every alignment, in float64. For T, U up to about 5."""

from collections.abc import Iterator

import numpy as np

Arc = tuple[str, int, int]  # ("blank" or "label", t, u)


def all_alignments(num_frames: int, num_labels: int) -> Iterator[list[Arc]]:
    """Every path of arcs from (0, 0) to the blank that leaves (T-1, U)."""

    def walk(t: int, u: int) -> Iterator[list[Arc]]:
        if t == num_frames:
            if u == num_labels:
                yield []
            return
        for rest in walk(t + 1, u):
            yield [("blank", t, u), *rest]
        if u < num_labels:
            for rest in walk(t, u + 1):
                yield [("label", t, u), *rest]

    yield from walk(0, 0)


def path_scores(log_blank: np.ndarray, log_label: np.ndarray) -> tuple[list[list[Arc]], np.ndarray]:
    """All alignments of one lattice (log_blank [T, U+1], log_label [T, U]) and the log weight of each."""
    arcs = {"blank": np.asarray(log_blank, np.float64), "label": np.asarray(log_label, np.float64)}
    paths = list(all_alignments(*log_label.shape))
    return paths, np.array([sum(arcs[kind][t, u] for kind, t, u in path) for path in paths])


def log_likelihood(log_blank: np.ndarray, log_label: np.ndarray) -> float:
    """Log of the sum over all alignments."""
    with np.errstate(divide="ignore"):
        return float(np.logaddexp.reduce(path_scores(log_blank, log_label)[1]))


def arc_posteriors(log_blank: np.ndarray, log_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blank [T, U+1], label [T, U]): the share of the alignments, by weight, that take each arc."""
    paths, scores = path_scores(log_blank, log_label)
    posteriors = {"blank": np.zeros(np.shape(log_blank)), "label": np.zeros(np.shape(log_label))}
    if np.max(scores) > -np.inf:
        weights = np.exp(scores - np.logaddexp.reduce(scores))
        for path, weight in zip(paths, weights, strict=True):
            for kind, t, u in path:
                posteriors[kind][t, u] += weight
    return posteriors["blank"], posteriors["label"]


def occupancies(log_blank: np.ndarray, log_label: np.ndarray) -> np.ndarray:
    """The share of the alignments, by weight, that visit each node [T, U+1]."""
    blank, label = arc_posteriors(log_blank, log_label)
    return blank + np.pad(label, [(0, 0), (0, 1)])


def expected_cost(
    log_blank: np.ndarray, log_label: np.ndarray, blank_cost: np.ndarray, label_cost: np.ndarray
) -> float:
    """The mean over the alignments, by weight, of the costs of their arcs; 0 if no alignment has a weight."""
    paths, scores = path_scores(log_blank, log_label)
    if np.max(scores) == -np.inf:
        return 0.0
    costs = {"blank": blank_cost, "label": label_cost}
    shares = np.exp(scores - np.logaddexp.reduce(scores))
    return float(
        sum(
            share * sum(costs[kind][t, u] for kind, t, u in path)
            for path, share in zip(paths, shares, strict=True)
            if share > 0
        )
    )


def path_probabilities(log_blank: np.ndarray, log_label: np.ndarray) -> np.ndarray:
    """The weight of each alignment divided by the sum of all."""
    scores = path_scores(log_blank, log_label)[1]
    return np.exp(scores - np.logaddexp.reduce(scores))


def alignment_entropy(log_blank: np.ndarray, log_label: np.ndarray) -> float:
    """`-sum p log p` over the alignments."""
    return float(-sum(p * np.log(p) for p in path_probabilities(log_blank, log_label) if p > 0))


def sequence_kl(teacher: tuple[np.ndarray, np.ndarray], student: tuple[np.ndarray, np.ndarray]) -> float:
    """`sum p log(p / q)` over the alignments; arcs are (log_blank, log_label)."""
    pairs = zip(path_probabilities(*teacher), path_probabilities(*student), strict=True)
    return float(sum(p * np.log(p / q) if q > 0 else np.inf for p, q in pairs if p > 0))


def full_sum_distance(teacher: tuple[np.ndarray, np.ndarray], student: tuple[np.ndarray, np.ndarray]) -> float:
    """`|log P_teacher - log P_student|`."""
    return abs(log_likelihood(*teacher) - log_likelihood(*student))


def best_path_nodes(log_blank: np.ndarray, log_label: np.ndarray) -> np.ndarray:
    """1 on the nodes [T, U+1] that the heaviest alignment visits, else 0."""
    paths, scores = path_scores(log_blank, log_label)
    nodes = np.zeros(np.shape(log_blank))
    for _, t, u in paths[int(np.argmax(scores))]:
        nodes[t, u] = 1.0
    return nodes


def band_starts(occupancy: np.ndarray, columns: int) -> list[int]:
    """First column of the band in each frame; occupancy [T, U+1] of one utterance, without padding."""
    frames, max_columns = occupancy.shape
    last = max(max_columns - columns, 0)
    starts = [int(np.argmax([occupancy[t, s : s + columns].sum() for s in range(last + 1)])) for t in range(frames)]
    starts[-1] = last
    for t in reversed(range(frames - 1)):
        starts[t] = min(starts[t], starts[t + 1])
    for t in reversed(range(frames - 1)):
        starts[t] = max(starts[t], starts[t + 1] - (columns - 1))
    return [min(start, (columns - 1) * t) for t, start in enumerate(starts)]


def in_band(starts: list[int], columns: int, max_columns: int) -> np.ndarray:
    """[T, U+1] bool."""
    offset = np.arange(max_columns) - np.asarray(starts)[:, None]
    return (offset >= 0) & (offset < columns)


def best_path(log_blank: np.ndarray, log_label: np.ndarray) -> tuple[list[int], float]:
    """(frame of each label, score) of the heaviest alignment."""
    paths, scores = path_scores(log_blank, log_label)
    best = int(np.argmax(scores))
    return [t for kind, t, _ in paths[best] if kind == "label"], float(scores[best])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def arcs_of(logits: np.ndarray, labels: np.ndarray, blank_id: int) -> tuple[np.ndarray, np.ndarray]:
    """log_blank [T, U+1] and log_label [T, U] of logits [T, U+1, V]."""
    log_probs = log_softmax(logits)
    columns = np.arange(len(labels))
    return log_probs[:, :, blank_id], log_probs[:, columns, np.asarray(labels, np.int64)]


def transducer_loss(logits: np.ndarray, labels: np.ndarray, blank_id: int) -> float:
    """Negative log-probability of the labels; logits [T, U+1, V] of one utterance, without padding."""
    return -log_likelihood(*arcs_of(logits, labels, blank_id))


def transducer_gradient(
    logits: np.ndarray, labels: np.ndarray, blank_id: int, fastemit_lambda: float = 0.0
) -> np.ndarray:
    """Gradient of `transducer_loss` by the logits [T, U+1, V], each label arc's share times 1 + lambda."""
    blank, label = arc_posteriors(*arcs_of(logits, labels, blank_id))
    by_log_prob = np.zeros(np.shape(logits))
    by_log_prob[:, :, blank_id] = -blank
    for u, k in enumerate(labels):
        by_log_prob[:, u, k] = -(1.0 + fastemit_lambda) * label[:, u]
    return by_log_prob - np.exp(log_softmax(logits)) * by_log_prob.sum(axis=-1, keepdims=True)


def log_likelihood_by_loops(log_blank: np.ndarray, log_label: np.ndarray) -> float:
    """The same sum node by node, for lattices too large to list."""
    frames, columns = log_blank.shape
    log_alpha = np.full((frames, columns), -np.inf)
    for t in range(frames):
        for u in range(columns):
            before = [0.0] if t == u == 0 else []
            if t > 0:
                before.append(log_alpha[t - 1, u] + float(log_blank[t - 1, u]))
            if u > 0:
                before.append(log_alpha[t, u - 1] + float(log_label[t, u - 1]))
            log_alpha[t, u] = np.logaddexp.reduce(before)
    return float(log_alpha[-1, -1] + log_blank[-1, -1])
