"""What is in the batches of some steps, counted from the sets' indexes alone: nothing is read for it."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tf_rnnt_kd.data.batching import FRAME_FEATURES, Schedule
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.features.log_mel import num_log_mel_frames


class Composition(NamedTuple):
    """What some batches hold together.

    Attributes:
      frame_padding: share of the encoder frames that is padding.
      label_padding: share of the labels' places that is padding.
      utterances: of each record set, by the name of its folder.
    """

    frame_padding: float
    label_padding: float
    utterances: dict[str, int]


class Compositions:
    """Counts the batches of a schedule.

    Args:
      sets: those that the schedule was made from.
      schedule: see `make_schedule`.
    """

    def __init__(self, sets: Sequence[RecordSet], schedule: Schedule):
        self._schedule = schedule
        self._names = [os.path.basename(s.folder) for s in sets]
        self._set = np.repeat(np.arange(len(sets)), [s.num_utterances for s in sets])  # [R]
        self._samples = np.concatenate([s.index.num_samples for s in sets])  # [R]
        self._labels = np.concatenate([s.index.num_labels for s in sets])  # [R]

    def of_steps(self, first: int, stop: int) -> Composition:
        """The batches of steps `first`, …, `stop` - 1, the first of all being 0."""
        schedule, bucket = self._schedule, self._schedule.bucket[first:stop]
        rows = schedule.rows[first:stop]
        rows = rows[rows >= 0]
        sizes = np.array([schedule.buckets.batch_size(k) for k in bucket])
        frames = np.array([schedule.buckets.num_frames(k) for k in bucket])
        counts = np.bincount(self._set[rows], minlength=len(self._names))
        utterances = dict.fromkeys(self._names, 0)
        for name, count in zip(self._names, counts.tolist(), strict=True):
            utterances[name] += count
        return Composition(
            frame_padding=_padding(num_log_mel_frames(self._samples[rows]) // FRAME_FEATURES, sizes @ frames),
            label_padding=_padding(self._labels[rows], sizes @ schedule.num_labels[bucket]),
            utterances=utterances,
        )


def _padding(used: np.ndarray, places: int) -> float:
    return 1.0 - float(used.sum(dtype=np.int64)) / max(float(places), 1.0)
