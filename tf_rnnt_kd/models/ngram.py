"""N-grams as a network of histories, in TensorFlow operations of static shape."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.text.ngrams import BOUNDARY, Entry, Ngrams

_ROOT = ()  # the empty history, node 0


class NgramModel:
    """P(label | history) with back-off, as the functions of a `decoding.fusion.LabelScorer`.

    A node is a history, its arcs are the n-grams that go on from it; all labels go on from the root. The scores of a
    node are those of the root, overwritten by the arcs of ever longer histories, each after its back-off weight.
    12 bytes an n-gram and 16 a history; a step costs (order - 1) scatters of as many arcs as the broadest history has.

    The column of blank holds the end of the sentence, as that of `language_model.LanguageModel`.

    Args:
      ngrams: over ids, with a unigram for each.
      vocabulary_size: V, blank included.
    """

    def __init__(self, ngrams: Ngrams, vocabulary_size: int):
        self.vocabulary_size = vocabulary_size
        histories = _histories(ngrams)
        nodes = {history: node for node, history in enumerate(histories)}
        self._depth = len(histories[-1])
        self._start = nodes.get((BOUNDARY,), 0)
        arcs = [[] for _ in histories]  # (label, log_prob, target)
        for gram, entry in ((gram, entry) for table in ngrams for gram, entry in table.items()):
            target = -1 if gram[-1] == BOUNDARY else nodes[_longest_known(gram, nodes)]
            arcs[nodes[gram[:-1]]].append((gram[-1], entry.log_prob, target))
        root, arcs[0] = sorted(arcs[0]), []
        self._root_log_probs = tf.constant([log_prob for _, log_prob, _ in root], tf.float32)  # [V]
        self._root_targets = tf.constant([max(target, 0) for *_, target in root], tf.int32)  # [V]
        counts = np.array([len(of_node) for of_node in arcs], np.int32)
        self._width = max(int(counts.max()), 1)
        beyond = [(vocabulary_size, 0.0, -1)] * self._width  # so that every node may read as many
        labels, log_probs, targets = zip(*(arc for of_node in arcs for arc in of_node), *beyond, strict=True)
        self._labels, self._targets = tf.constant(labels, tf.int32), tf.constant(targets, tf.int32)  # [A]
        self._log_probs = tf.constant(log_probs, tf.float32)  # [A]
        self._counts, self._first = tf.constant(counts), tf.constant(np.cumsum(counts) - counts, tf.int32)  # [S]
        shorter = [nodes[_longest_known(history[1:], nodes)] for history in histories]
        self._shorter = tf.constant(shorter, tf.int32)  # [S]
        weights = [_entry(ngrams, history).backoff for history in histories]
        self._backoff = tf.constant(weights, tf.float32)  # [S]

    def initial(self, batch_size):
        """At the start of a sentence: log_probs [B, V] float32 and the nodes [B]."""
        node = tf.fill([batch_size], self._start)
        return self._scores(node), (node,)

    def step(self, label, state):
        """[B] int32, state -> log_probs [B, V] float32, state."""
        node = self._follow(state[0], label)
        return self._scores(node), (node,)

    def _follow(self, node, label):
        """The longest history that ends in `label`: [B], [B] -> [B]."""
        result = tf.gather(self._root_targets, label)
        for history in self._shortest_first(node):
            places, inside = self._arcs(history)
            is_label = inside & (tf.gather(self._labels, places) == label[:, None])  # [B, W]
            target = tf.reduce_max(tf.where(is_label, tf.gather(self._targets, places), -1), 1)
            result = tf.where(target >= 0, target, result)
        return result

    def _scores(self, node):
        """[B] -> [B, V]."""
        batch_size = tf.shape(node)[0]
        scores = tf.repeat(tf.pad(self._root_log_probs, [[0, 1]])[None], batch_size, 0)  # [B, V+1], the last is waste
        rows = tf.repeat(tf.range(batch_size)[:, None], self._width, 1)  # [B, W]
        for history in self._shortest_first(node):
            places, inside = self._arcs(history)
            columns = tf.where(inside, tf.gather(self._labels, places), self.vocabulary_size)
            scores += tf.gather(self._backoff, history)[:, None]
            where = tf.stack([rows, columns], 2)
            scores = tf.tensor_scatter_nd_update(scores, where, tf.gather(self._log_probs, places))
        return scores[:, :-1]

    def _arcs(self, node):
        """Places of the arcs of each node, [B] -> [B, W], and which of them are its own."""
        count = tf.range(self._width)
        return tf.gather(self._first, node)[:, None] + count, count < tf.gather(self._counts, node)[:, None]

    def _shortest_first(self, node):
        """The histories that a node may back off to, and itself; the root, which has no arcs here, fills up."""
        chain = [node]
        for _ in range(self._depth - 1):
            chain.append(tf.gather(self._shorter, chain[-1]))
        return chain[::-1] if self._depth else []


def _histories(ngrams: Ngrams) -> list[tuple[int, ...]]:
    """Whatever an n-gram goes on from, and whatever has a back-off weight; shorter ones first."""
    found = {_ROOT}
    for table in ngrams:
        for gram, entry in table.items():
            found.update(_prefixes(gram if entry.backoff else gram[:-1]))
    return sorted(found, key=lambda history: (len(history), history))


def _prefixes(history: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return (history[:length] for length in range(1, len(history) + 1))


def _longest_known(history: tuple[int, ...], nodes: dict) -> tuple[int, ...]:
    while history not in nodes:
        history = history[1:]
    return history


def _entry(ngrams: Ngrams, history: tuple[int, ...]) -> Entry:
    return ngrams[len(history) - 1].get(history, Entry(0.0)) if history else Entry(0.0)
