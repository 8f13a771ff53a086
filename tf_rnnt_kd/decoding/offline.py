"""Whole utterances, from waveform to hypotheses: the one way that evaluation, labelling and exports share."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.decoding.alignment_synchronous import alignment_synchronous_search
from tf_rnnt_kd.decoding.beam import beam_search
from tf_rnnt_kd.decoding.fusion import LabelScorer, penalise_blank
from tf_rnnt_kd.decoding.greedy import greedy_search
from tf_rnnt_kd.decoding.hypotheses import Hypotheses, NBest
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP, log_mel, num_log_mel_frames

_REDUCTION = 4  # feature frames in an encoder frame
_LEAST_SAMPLES = FRAME_LENGTH + (_REDUCTION - 1) * FRAME_STEP  # what one encoder frame needs

BEAM_SEARCHES = {"frames": beam_search, "alignments": alignment_synchronous_search}  # by what is synchronous


class Recognizer(Protocol):
    """What of a network the search over whole utterances calls; see `models.transducer.Transducer`."""

    blank_id: int

    def encode(self, features, num_features):
        """[B, 4T, F], [B] -> [B, T, D], [B]."""

    def join(self, encoded, predicted):
        """[..., D], [..., D] -> [..., V]."""

    def initial_prediction(self, batch_size):
        """The state before any label."""

    def step_prediction(self, label, state):
        """[B], state -> [B, D], state."""


class Recognized(NamedTuple):
    """A batch of utterances as a network hears them.

    Attributes:
      encoded: [B, T, D] floating, as it enters the joint's tanh.
      num_frames: [B] int32.
      nbest: the hypotheses of each; one of greedy search.
    """

    encoded: tf.Tensor
    num_frames: tf.Tensor
    nbest: NBest

    @property
    def hypotheses(self) -> Hypotheses:
        """The best of each."""
        return self.nbest.best


def recognize(
    model: Recognizer,
    samples: tf.Tensor,
    num_samples: tf.Tensor,
    *,
    beam: int = 1,
    synchrony: str = "frames",
    blank_penalty: float = 0.0,
    label_scorer: LabelScorer | None = None,
) -> Recognized:
    """Features, encoder and search, in a graph; audio shorter than one encoder frame gives no label.

    Args:
      model: the network.
      samples: [B, S] float32 in [-1, 1], 16 kHz.
      num_samples: [B] int32.
      beam: hypotheses that the search keeps; 1 for greedy search, where there is no `label_scorer`.
      synchrony: which of `BEAM_SEARCHES`.
      blank_penalty: taken from the logit of blank, in nats.
      label_scorer: as in `beam_search`.
    """
    missing = tf.maximum(_LEAST_SAMPLES - tf.shape(samples)[1], 0)
    features = log_mel(tf.pad(samples, [[0, 0], [0, missing]]))  # [B, N, F]
    features = features[:, : tf.shape(features)[1] // _REDUCTION * _REDUCTION]  # [B, 4T, F]
    encoded, num_frames = model.encode(features, num_log_mel_frames(num_samples))
    network = {
        "join": penalise_blank(model.join, blank_penalty, blank_id=model.blank_id) if blank_penalty else model.join,
        "initial_prediction": model.initial_prediction,
        "step_prediction": model.step_prediction,
        "blank_id": model.blank_id,
    }
    if beam == 1 and label_scorer is None:
        nbest = NBest(*(values[:, None] for values in greedy_search(encoded, num_frames, **network)))
    else:
        search = BEAM_SEARCHES[synchrony]
        nbest = search(encoded, num_frames, beam=beam, label_scorer=label_scorer, **network)
    return Recognized(encoded, num_frames, nbest)


def pad_audio(audio: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Int16 arrays of any lengths -> samples [B, S] float32 in [-1, 1] and num_samples [B] int32."""
    num_samples = np.array([len(samples) for samples in audio], np.int32)
    padded = np.zeros([len(audio), max(num_samples, default=0)], np.float32)
    for row, samples in zip(padded, audio, strict=True):
        row[: len(samples)] = samples / 32768.0
    return padded, num_samples


def similar_lengths(num_samples: Sequence[int], samples_per_batch: int) -> Iterator[list[int]]:
    """Positions in batches of little padding, longest first: what needs the most memory fails at once or never."""
    batch: list[int] = []
    for position in sorted(range(len(num_samples)), key=lambda i: -num_samples[i]):
        if batch and (len(batch) + 1) * num_samples[batch[0]] > samples_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
