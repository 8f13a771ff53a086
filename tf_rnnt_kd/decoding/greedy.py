"""Greedy transducer search over whole utterances."""

from collections.abc import Callable

import tensorflow as tf

from tf_rnnt_kd.decoding.hypotheses import Hypotheses
from tf_rnnt_kd.decoding.streaming import Join, SearchState, StepPrediction, search_chunk


def greedy_search(
    encoded: tf.Tensor,
    num_frames: tf.Tensor,
    *,
    join: Join,
    initial_prediction: Callable[[tf.Tensor], tuple[tf.Tensor, tuple[tf.Tensor, ...]]],
    step_prediction: StepPrediction,
    blank_id: int = 0,
    max_symbols_per_frame: int = 4,
    max_labels: int | None = None,
) -> Hypotheses:
    """Follows the most probable arc of each lattice node: `search_chunk` over one chunk that is the whole.

    Args:
      encoded: [B, T, D] floating, encoder frames as they enter the joint; T may be 0.
      num_frames: [B] integer; what lies beyond may hold anything.
      join: (encoded [B, N, D], predicted [B, 1, D]) -> logits [B, N, V].
      initial_prediction: batch size -> (predicted [B, D], state), state a flat tuple of [B, ...] tensors.
      step_prediction: (label [B] int32, state) -> (predicted [B, D], state).
      blank_id: index of blank.
      max_symbols_per_frame: labels a frame may emit; then only blank may follow.
      max_labels: L of the result; None for T * max_symbols_per_frame.

    Returns:
      `Hypotheses` with labels [B, L]; the score is the log-probability of the path that was followed.

    References:
      Graves 2012 (1211.3711), section 2.4.
    """
    predicted, state = initial_prediction(tf.shape(encoded)[0])
    hypotheses, _ = search_chunk(
        encoded,
        num_frames,
        SearchState(predicted, tuple(state)),
        join=join,
        step_prediction=step_prediction,
        blank_id=blank_id,
        max_symbols_per_frame=max_symbols_per_frame,
        max_labels=max_labels,
    )
    return hypotheses
