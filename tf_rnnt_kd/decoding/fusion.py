"""What a search may add to the transducer's own scores: language models, and a bonus for length.

A hypothesis is worth log P(labels | audio) + Σ weight · log P_scorer(labels) + bonus · num_labels. All that is added
depends on the labels alone, so hypotheses of equal labels still recombine by adding their probabilities.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_rnnt_kd.decoding.streaming import Join, StepPrediction

Scored = tuple[tf.Tensor, tuple]


class LabelScorer(NamedTuple):
    """Scores of every next label, given the labels so far: a language model, or a sum of several.

    Attributes:
      initial: batch size -> (log_probs [B, V] float32, state), state a tuple of [B, ...] tensors, or of such tuples.
      step: (label [B] int32, state) -> (log_probs [B, V] float32, state).

    The blank's column of `log_probs` is not read. One column stands for all labels.
    """

    initial: Callable[[tf.Tensor], Scored]
    step: Callable[[tf.Tensor, tuple], Scored]


def weighted_sum(scorers: Sequence[tuple[LabelScorer, float]], *, length_bonus: float = 0.0) -> LabelScorer:
    """Shallow fusion: Σ weight · log_probs + length_bonus, as one scorer.

    An internal language model is subtracted by a weight below 0. The bonus is added to every label, not divided by the
    length at the end: so it stays a log-linear model, in which hypotheses recombine and are pruned by what is sorted.

    Args:
      scorers: pairs of a scorer and its weight.
      length_bonus: in nats a label.

    References:
      Gülçehre et al. 2015 (1503.03535), shallow fusion; McDermott et al. 2019 (1911.03914) and Variani et al. 2020
      (2003.07705), subtraction.
    """
    used = [(scorer, weight) for scorer, weight in scorers if weight]  # 0 · -inf would be NaN

    def add_up(batch_size: tf.Tensor, scored: Sequence[Scored]) -> Scored:
        total = tf.fill([batch_size, 1], length_bonus)
        for (log_probs, _), (_, weight) in zip(scored, used, strict=True):
            total += weight * log_probs
        return total, tuple(state for _, state in scored)

    def initial(batch_size: tf.Tensor) -> Scored:
        return add_up(batch_size, [scorer.initial(batch_size) for scorer, _ in used])

    def step(label: tf.Tensor, states: tuple) -> Scored:
        scored = [scorer.step(label, state) for (scorer, _), state in zip(used, states, strict=True)]
        return add_up(tf.shape(label)[0], scored)

    return LabelScorer(initial, step)


def internal_language_model(
    join: Join, initial_prediction: Callable[[tf.Tensor], Scored], step_prediction: StepPrediction, *, blank_id: int = 0
) -> LabelScorer:
    """What a transducer knows of its labels without hearing: P(k | labels) of join(0, predicted), blank left out.

    Zero stands for the projected frame, its bias included. Runs the prediction network a second time.

    Args:
      join: as in `beam_search`; blank's logit is left out before the softmax.
      initial_prediction: as in `beam_search`.
      step_prediction: as in `beam_search`.
      blank_id: index of blank.

    References:
      Variani et al. 2020 (2003.07705), section 4; Meng et al. 2020 (2011.01991).
    """

    def score(predicted: tf.Tensor, state: tuple[tf.Tensor, ...]) -> Scored:
        logits = tf.cast(join(tf.zeros_like(predicted)[:, None], predicted[:, None])[:, 0], tf.float32)  # [B, V]
        is_blank = tf.range(tf.shape(logits)[1]) == blank_id
        return logits - tf.reduce_logsumexp(tf.where(is_blank, float("-inf"), logits), 1, keepdims=True), tuple(state)

    return LabelScorer(
        lambda batch_size: score(*initial_prediction(batch_size)),
        lambda label, state: score(*step_prediction(label, state)),
    )


def penalise_blank(join: Join, penalty: float, *, blank_id: int = 0) -> Join:
    """`join` with the logit of blank lowered by `penalty`, in nats: fewer deletions, for any search."""

    def join_penalised(encoded: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        logits = join(encoded, predicted)
        return logits - tf.one_hot(blank_id, tf.shape(logits)[-1], on_value=penalty, dtype=logits.dtype)

    return join_penalised


def with_scorer(
    initial_prediction: Callable[[tf.Tensor], Scored], step_prediction: StepPrediction, scorer: LabelScorer
) -> tuple[Callable[[tf.Tensor], Scored], StepPrediction]:
    """Steps of the prediction network that also move the scorer: state is (network's state, (log_probs, its state))."""

    def initial(batch_size: tf.Tensor) -> Scored:
        predicted, state = initial_prediction(batch_size)
        return predicted, (tuple(state), scorer.initial(batch_size))

    def step(label: tf.Tensor, state: tuple) -> Scored:
        network, (_, scorer_state) = state
        predicted, network = step_prediction(label, network)
        return predicted, (tuple(network), scorer.step(label, scorer_state))

    return initial, step
