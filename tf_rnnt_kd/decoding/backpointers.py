"""Where each label of a beam search came from: histories are read once, at the end, instead of copied every turn."""

from typing import NamedTuple

import tensorflow as tf

NO_LABEL = -1  # the node before the first label


class Backpointers(NamedTuple):
    """A node for each place of the beam at each of N turns; a hypothesis that emitted there is one.

    Attributes:
      parent: [N, B, K] int32, node of the label before, turn * K + place; NO_LABEL for none.
      label: [N, B, K] int32.
      frame: [N, B, K] int32, where it was emitted.
      label_log_prob: [N, B, K] float32.
    """

    parent: tf.Tensor
    label: tf.Tensor
    frame: tf.Tensor
    label_log_prob: tf.Tensor


def no_backpointers(num_turns: tf.Tensor, batch_size: tf.Tensor, beam: int) -> Backpointers:
    """Room for `num_turns`."""
    empty = tf.zeros([num_turns, batch_size, beam], tf.int32)
    return Backpointers(empty, empty, empty, tf.zeros([num_turns, batch_size, beam]))


def write_turn(pointers: Backpointers, turn: tf.Tensor, nodes: Backpointers) -> Backpointers:
    """`pointers` with `nodes`, fields [B, K], at `turn`."""
    pairs = zip(pointers, nodes, strict=True)
    return Backpointers(*(tf.tensor_scatter_nd_update(old, turn[None, None], new[None]) for old, new in pairs))


def trace(pointers: Backpointers, node: tf.Tensor, num_labels: tf.Tensor, capacity: tf.Tensor) -> Backpointers:
    """The nodes that lead to `node` [B, K], first label first: fields [B, K, L], zero beyond `num_labels` [B, K]."""
    batch_size, beam = tf.unstack(tf.shape(node))
    by_utterance = [tf.reshape(tf.transpose(values, [1, 0, 2]), [batch_size, -1]) for values in pointers]  # [B, N K]

    def unfinished(_: tf.Tensor, node: tf.Tensor, *__: object) -> tf.Tensor:
        return tf.reduce_any(node != NO_LABEL)

    def step_back(count: tf.Tensor, node: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        path = tf.tensor_scatter_nd_update(path, count[None, None], tf.maximum(node, 0)[None])
        parent = tf.gather(by_utterance[0], tf.maximum(node, 0), batch_dims=1)
        return count + 1, tf.where(node == NO_LABEL, NO_LABEL, parent), path

    start = tf.constant(0), node, tf.zeros([capacity, batch_size, beam], tf.int32)
    _, _, path = tf.while_loop(unfinished, step_back, start)  # last label first
    path = tf.reshape(tf.transpose(path, [1, 2, 0]), [batch_size * beam, capacity])
    path = tf.reverse_sequence(path, tf.reshape(num_labels, [-1]), seq_axis=1)
    path = tf.reshape(path, [batch_size, beam * capacity])
    beyond = tf.range(capacity) >= num_labels[:, :, None]  # [B, K, L]

    def follow(values: tf.Tensor) -> tf.Tensor:
        values = tf.reshape(tf.gather(values, path, batch_dims=1), [batch_size, beam, capacity])
        return tf.where(beyond, tf.zeros([], values.dtype), values)

    return Backpointers(*map(follow, by_utterance))
