"""Time-synchronous beam search over a transducer lattice, for a whole batch, with static shapes."""

from collections.abc import Callable

import tensorflow as tf

from tf_rnnt_kd.decoding.fusion import LabelScorer
from tf_rnnt_kd.decoding.hypotheses import NBest
from tf_rnnt_kd.decoding.lattice_search import search_lattice
from tf_rnnt_kd.decoding.streaming import Join, StepPrediction


def beam_search(
    encoded: tf.Tensor,
    num_frames: tf.Tensor,
    *,
    join: Join,
    initial_prediction: Callable[[tf.Tensor], tuple[tf.Tensor, tuple[tf.Tensor, ...]]],
    step_prediction: StepPrediction,
    beam: int = 8,
    blank_id: int = 0,
    max_symbols_per_frame: int = 4,
    max_labels: int | None = None,
    max_gap: float = 8.0,
    label_scorer: LabelScorer | None = None,
) -> NBest:
    """The label sequences whose alignments weigh most, among those that a beam of K sees.

    Time-synchronous: all hypotheses of an utterance leave a frame together. Within a frame each may emit labels; its
    extensions, and those that have left the frame by a blank, compete for the same K places, so a beam of 1 is
    `greedy_search`. Hypotheses of equal labels are recombined: their scores are added as probabilities, the emission
    frames are those of the heavier. Utterances do not wait for each other's frames. Costs K joint nodes a turn, one to
    `max_symbols_per_frame` + 1 turns a frame, and a step of the prediction network for each new label sequence.

    Args:
      encoded: [B, T, D] floating, encoder frames as they enter the joint; T may be 0.
      num_frames: [B] integer; what lies beyond may hold anything.
      join: (encoded [B, N, D], predicted [B, N or 1, D]) -> logits [B, N, V], V static.
      initial_prediction: batch size -> (predicted [B, D], state), state a flat tuple of [B, ...] tensors.
      step_prediction: (label [B] int32, state) -> (predicted [B, D], state).
      beam: K.
      blank_id: index of blank.
      max_symbols_per_frame: labels a frame may emit; then only blank may follow.
      max_labels: L of the result; None for T * max_symbols_per_frame.
      max_gap: in nats; hypotheses that are so far behind the best are given up.
      label_scorer: what is added to the score of each label, e.g. `fusion.weighted_sum` of language models.

    Returns:
      `NBest`, best first.

    References:
      Graves 2012 (1211.3711), section 2.5; recombination and the cap on symbols as in later time-synchronous searches.
    """
    return search_lattice(
        encoded,
        num_frames,
        _those_behind,
        join=join,
        initial_prediction=initial_prediction,
        step_prediction=step_prediction,
        beam=beam,
        blank_id=blank_id,
        max_symbols_per_frame=max_symbols_per_frame,
        max_labels=max_labels,
        max_gap=max_gap,
        label_scorer=label_scorer,
    )


def _those_behind(alive: tf.Tensor, frame: tf.Tensor) -> tf.Tensor:
    """The hypotheses on the first frame that any of their utterance is on."""
    first = tf.reduce_min(tf.where(alive, frame, frame.dtype.max), axis=1, keepdims=True)
    return alive & (frame == first)
