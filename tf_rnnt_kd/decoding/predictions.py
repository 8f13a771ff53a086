"""Rows of prediction-network states: which go on, from where, and by which label."""

from typing import TypeVar

import tensorflow as tf

from tf_rnnt_kd.decoding.streaming import SearchState, StepPrediction, where_rows, with_shape_of

# Few hypotheses of a beam emit a new label sequence at once. A step takes an eighth of the rows, and is repeated until
# none is left: a turn without a new sequence costs nothing.
_SHARE_OF_ROWS = 8

Structure = TypeVar("Structure")


def take_rows(source: tf.Tensor, rows: Structure) -> Structure:
    """[R] indices, structure of [B, ...] -> the same structure of [R, ...]."""
    return tf.nest.map_structure(lambda values: tf.gather(values, source), rows)


def step_rows(steps: tf.Tensor, label: tf.Tensor, search: SearchState, step_prediction: StepPrediction) -> SearchState:
    """The prediction network moved on by `label` [R] in the rows that step [R]; the others are not computed."""
    num_rows = tf.shape(steps)[0]
    at_once = -(-num_rows // _SHARE_OF_ROWS)

    def unfinished(waiting: tf.Tensor, _: SearchState) -> tf.Tensor:
        return tf.reduce_any(waiting)

    def step(waiting: tf.Tensor, search: SearchState) -> tuple[tf.Tensor, SearchState]:
        waits, rows = tf.math.top_k(tf.cast(waiting, tf.int32), at_once)  # the waiting ones first
        before = take_rows(rows, search)
        predicted, state = step_prediction(tf.gather(label, rows), before.state)
        after = where_rows(waits > 0, SearchState(predicted, state), before)

        def write(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            return with_shape_of(tf.tensor_scatter_nd_update(old, rows[:, None], new), old)

        waiting = tf.tensor_scatter_nd_update(waiting, rows[:, None], tf.zeros_like(rows, tf.bool))
        return with_shape_of(waiting, steps), tf.nest.map_structure(write, search, after)

    return tf.while_loop(unfinished, step, (steps, search))[1]
