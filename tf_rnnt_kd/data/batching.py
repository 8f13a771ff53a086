"""Which utterances make up which batch: a schedule that is a pure function of its seed.

It is made before training, from the sets' indexes alone. So the position of the input is the step number, a restart
needs no iterator state, and the order does not depend on threads. Where there is pseudo-labelled speech, the batches of
each bucket have exactly the wanted share of labelled speech, to a row over any stretch of them; a bucket that cannot
have it is refused.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP, num_log_mel_frames
from tf_rnnt_kd.options import Ascending, Count, NotEmpty, Positive, checked

FRAME_FEATURES = 4  # feature frames in an encoder frame


@checked
@dataclasses.dataclass(frozen=True)
class Buckets:
    """The few static shapes that batches come in.

    Attributes:
      seconds: longest utterance of each bucket, each longer than the one before; utterances beyond the last are left
        out, and counted.
      batch_seconds: audio in a batch, padding included: a bucket of length s has `batch_seconds // s` rows.
      batch_multiple: the number of rows is a multiple of this (of the number of replicas, say).
    """

    seconds: Annotated[tuple[Positive, ...], NotEmpty, Ascending]
    batch_seconds: Positive
    batch_multiple: Count = 1

    def num_frames(self, bucket: int) -> int:
        """T of a bucket, in encoder frames of 40 ms."""
        return int(np.ceil(self.seconds[bucket] * 25))

    def num_samples(self, bucket: int) -> int:
        """S of a bucket: just enough for 4T feature frames."""
        return (FRAME_FEATURES * self.num_frames(bucket) - 1) * FRAME_STEP + FRAME_LENGTH

    def batch_size(self, bucket: int) -> int:
        """B of a bucket."""
        multiples = int(self.batch_seconds / self.seconds[bucket]) // self.batch_multiple
        return max(1, multiples) * self.batch_multiple


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Who is in which batch.

    Attributes:
      buckets: the shapes.
      num_labels: [K] labels that each bucket has room for.
      bucket: [N] bucket of each step.
      rows: [N, B_max] utterances of each step as positions in the concatenated sets; -1 beyond the bucket's B.
      skipped: why utterances of the sets are never used, with their number.
    """

    buckets: Buckets
    num_labels: np.ndarray
    bucket: np.ndarray
    rows: np.ndarray
    skipped: dict[str, int]


def check_divisible(buckets: Buckets, num_replicas: int, accumulation: int) -> None:
    """Raises UserError where the rows of some bucket can't be shared out evenly.

    Args:
      buckets: the shapes.
      num_replicas: among which a batch is divided.
      accumulation: micro-batches that each replica makes of its part.
    """
    parts = num_replicas * accumulation
    for k, seconds in enumerate(buckets.seconds):
        size = buckets.batch_size(k)
        if size % parts:
            raise UserError(
                f"a batch of {seconds:g} s has {size} utterances, which {num_replicas} replicas x {accumulation} "
                f"micro-batches can't share evenly: set Buckets.batch_multiple = {parts}, or another batch_seconds"
            )


def make_schedule(
    labelled: Sequence[RecordSet],
    pseudo_labelled: Sequence[RecordSet],
    buckets: Buckets,
    *,
    num_steps: int,
    labelled_fraction: float,
    seed: int,
) -> Schedule:
    """Plans `num_steps` batches.

    Each set is shuffled anew in every epoch. Pseudo-labelled speech, when there is any, sets the order; every batch is
    completed with labelled utterances of its bucket, or of the nearest shorter one that has any: `labelled_fraction` of
    its rows, exact to a row in each bucket.

    Raises:
      UserError: if no utterance fits a bucket, the share leaves no room for pseudo-labelled speech, or a bucket of that
        has no labelled speech to take.
    """
    if pseudo_labelled and not 0.0 <= labelled_fraction < 1.0:
        raise UserError(
            f"labelled_fraction is {labelled_fraction:g}: give 0 to below 1, to leave room for pseudo-labelled speech"
        )
    sets = [*labelled, *pseudo_labelled]
    samples = np.concatenate([s.index.num_samples for s in sets])  # [R]
    num_labels = np.concatenate([s.index.num_labels for s in sets])
    bucket_of, skipped = _assign_buckets(samples, num_labels, buckets)
    num_human = sum(s.num_utterances for s in labelled)
    human, pseudo = np.split(bucket_of, [num_human])
    rng = np.random.default_rng([seed, 0])
    if pseudo_labelled:
        _check_usable("pseudo-labelled", pseudo, skipped)
        if labelled_fraction > 0.0:
            _check_share(human, pseudo, buckets, skipped, labelled_fraction)
        leading = _epochs(len(human) + np.flatnonzero(pseudo >= 0), rng)
        filling = _fillers(human, len(buckets.seconds), rng)
    else:
        _check_usable("labelled", human, skipped)
        leading, filling, labelled_fraction = _epochs(np.flatnonzero(human >= 0), rng), {}, 0.0
    steps = _batches(leading, filling, bucket_of, buckets, labelled_fraction)
    rows = np.full([num_steps, max(buckets.batch_size(k) for k in range(len(buckets.seconds)))], -1, np.int32)
    bucket = np.zeros([num_steps], np.int32)
    for step in range(num_steps):
        bucket[step], members = next(steps)
        rows[step, : len(members)] = members
    room = np.array([max(num_labels[bucket_of == k], default=0) for k in range(len(buckets.seconds))])
    return Schedule(buckets, np.maximum.accumulate(np.maximum(room, 1)), bucket, rows, skipped)


def utterance_ids(sets: Sequence[RecordSet], schedule: Schedule, step: int) -> list[str]:
    """Who is in the batch of `step`, the first being 0; looked up here, as batches hold no strings."""
    rows = schedule.rows[step, : schedule.buckets.batch_size(schedule.bucket[step])]
    first = np.cumsum([0] + [s.num_utterances for s in sets])
    owners = np.searchsorted(first, rows, side="right") - 1
    return [sets[k].ids[row - first[k]] for k, row in zip(owners, rows, strict=True)]


def _assign_buckets(num_samples, num_labels, buckets):
    """[R] bucket of each utterance, -1 where it can't be used, and a count for each reason."""
    num_frames = num_log_mel_frames(num_samples) // FRAME_FEATURES
    limits = np.array([buckets.num_samples(k) for k in range(len(buckets.seconds))])
    bucket_of = np.searchsorted(limits, num_samples)
    reasons = {
        f"longer than {buckets.seconds[-1]:g} s": bucket_of == len(limits),
        "more labels than frames": num_frames < num_labels,
        "no labels": num_labels == 0,
    }
    skipped = {}
    for reason, where in reasons.items():
        where = where & (bucket_of >= 0)
        bucket_of = np.where(where, -1, bucket_of)
        skipped.update({reason: int(where.sum())} if where.any() else {})
    return bucket_of, skipped


def _check_usable(what: str, bucket_of: np.ndarray, skipped: dict[str, int]) -> None:
    if not np.any(bucket_of >= 0):
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "there are none"
        raise UserError(
            f"no {what} utterance can be trained on ({reasons}, in all sets): "
            "check the buckets, the transcripts, or the teacher's word error rate (one that says nothing has to be "
            "trained longer, in another --work_dir)"
        )


def _check_share(human, pseudo, buckets, skipped, labelled_fraction):
    """Refuses buckets of pseudo-labelled speech that no labelled utterance fits."""
    counts = [int(np.sum(human == k)) for k in range(len(buckets.seconds))]
    wanting = [k for k in range(len(counts)) if not sum(counts[: k + 1]) and np.any(pseudo == k)]
    if not wanting:
        return
    where = f"labelled_fraction is {labelled_fraction:g}"
    if not sum(counts):
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise UserError(
            f"{where}, but of {len(human)} labelled utterances none can be trained on"
            f"{f' ({reasons}, in all sets)' if reasons else ''}: set it to 0, or mend the labelled sets or the buckets"
        )
    names = ", ".join(f"{buckets.seconds[k]:g} s ({int(np.sum(pseudo == k))})" for k in wanting)
    shortest = next(k for k, count in enumerate(counts) if count)
    raise UserError(
        f"{where}, but no labelled utterance is short enough for these buckets (with so many pseudo-labelled "
        f"utterances): {names}; the shortest that has any is that of {buckets.seconds[shortest]:g} s, with "
        f"{counts[shortest]} of {sum(counts)}: take the shorter ones out of Buckets.seconds, whose utterances then go "
        "there, or set labelled_fraction = 0"
    )


def _epochs(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """The rows, shuffled, again and again."""
    while True:
        yield from rng.permutation(rows)


def _fillers(bucket_of, num_buckets, rng):
    """An endless stream of labelled rows for each bucket from the first that has any: its own, or the nearest below."""
    fillers, fallback = {}, None
    for k in range(num_buckets):
        rows = np.flatnonzero(bucket_of == k)
        fallback = rows if len(rows) else fallback
        if fallback is not None:
            fillers[k] = _epochs(fallback, rng)
    return fillers


def _batches(leading, filling, bucket_of, buckets, labelled_fraction):
    """Endless (bucket, rows): a bucket is emitted as soon as the leading stream has filled its part of it."""
    num_buckets = len(buckets.seconds)
    waiting = [[] for _ in range(num_buckets)]
    emitted = [0] * num_buckets

    def num_filling(k):
        share = labelled_fraction * buckets.batch_size(k) if k in filling else 0.0
        return int((emitted[k] + 1) * share + 1e-6) - int(emitted[k] * share + 1e-6)

    for row in leading:
        k = int(bucket_of[row])
        waiting[k].append(row)
        while len(waiting[k]) + num_filling(k) >= buckets.batch_size(k):
            members = [next(filling[k]) for _ in range(num_filling(k))]
            room = buckets.batch_size(k) - len(members)  # 0 where a small batch is wholly labelled this time
            yield k, members + waiting[k][:room]
            waiting[k] = waiting[k][room:]
            emitted[k] += 1
