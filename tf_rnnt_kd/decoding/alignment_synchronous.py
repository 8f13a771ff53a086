"""Alignment-length-synchronous beam search over a transducer lattice, for a whole batch, with static shapes."""

from collections.abc import Callable

import tensorflow as tf

from tf_rnnt_kd.decoding.fusion import LabelScorer
from tf_rnnt_kd.decoding.hypotheses import NBest
from tf_rnnt_kd.decoding.lattice_search import search_lattice
from tf_rnnt_kd.decoding.streaming import Join, StepPrediction


def alignment_synchronous_search(
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
    """`beam_search` with all hypotheses at the same t + u in place of the same t.

    Every turn every hypothesis takes one arc, a blank or a label: at most T + U turns, one for each arc of the longest
    alignment. Hypotheses that have heard all frames wait, and compete with those that have not; in the paper they are
    put aside. A beam of 1 is `greedy_search`. Where hypotheses recombine, `max_symbols_per_frame` counts on along the
    heavier alignment.

    Args and result are those of `beam_search`.

    References:
      Saon, Tüske, Audhkhasi 2020, "Alignment-length synchronous decoding for RNN transducer" (ICASSP).
    """
    return search_lattice(
        encoded,
        num_frames,
        lambda alive, frame: alive,
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
