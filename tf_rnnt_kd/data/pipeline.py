"""From record sets to batches: a schedule that is a pure function of its seed, and the graph that reads it.

Which utterances make up step n is decided before training, from the sets' indexes alone. So the position of the input
is the step number, a restart needs no iterator state, the order does not depend on threads, and every batch has exactly
the wanted share of labelled speech.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.batch import Batch, TeacherTargets
from tf_rnnt_kd.data.input_servers import read_through
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.data.schema import TargetsSpec, parse_record
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP, NUM_MEL_BINS, log_mel, num_log_mel_frames
from tf_rnnt_kd.features.spec_augment import spec_augment
from tf_rnnt_kd.features.stored import restore

_FRAME_FEATURES = 4  # feature frames in an encoder frame


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The few static shapes that batches come in.

    Attributes:
      seconds: longest utterance of each bucket, ascending; longer utterances are left out, and counted.
      batch_seconds: audio in a batch, padding included: a bucket of length s has `batch_seconds // s` rows.
      batch_multiple: the number of rows is a multiple of this (of the number of replicas, say).
    """

    seconds: tuple[float, ...]
    batch_seconds: float
    batch_multiple: int = 1

    def num_frames(self, bucket: int) -> int:
        """T of a bucket, in encoder frames of 40 ms."""
        return int(np.ceil(self.seconds[bucket] * 25))

    def num_samples(self, bucket: int) -> int:
        """S of a bucket: just enough for 4T feature frames."""
        return (_FRAME_FEATURES * self.num_frames(bucket) - 1) * FRAME_STEP + FRAME_LENGTH

    def batch_size(self, bucket: int) -> int:
        """B of a bucket."""
        multiples = int(self.batch_seconds / self.seconds[bucket]) // self.batch_multiple
        return max(1, multiples) * self.batch_multiple


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """SpecAugment settings of the student's input (see `spec_augment`); zero masks switch it off.

    Before `first_step` nothing is masked: on varied speech a small model may never leave the plateau where it models
    the text alone if masks hide the speech from the start.
    """

    first_step: int = 0
    num_frequency_masks: int = 2
    max_frequency_bins: int = 27
    num_time_masks: int = 10
    time_fraction: float = 0.05


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


class Share(NamedTuple):
    """Which rows of every batch are read here: those of some replicas.

    Attributes:
      first: replica.
      count: of replicas; each gets an element of its own.
      of: replicas in all.
    """

    first: int = 0
    count: int = 1
    of: int = 1


WHOLE = Share()


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
    completed with labelled utterances of its bucket: `labelled_fraction` of its rows, exact to a row in each bucket.

    Raises:
      UserError: if no utterance fits a bucket, or the share leaves no room for pseudo-labelled speech.
    """
    if pseudo_labelled and labelled_fraction >= 1.0:
        raise UserError(
            f"labelled_fraction {labelled_fraction:g} leaves no room for pseudo-labelled speech: set it below 1"
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
    num_frames = num_log_mel_frames(num_samples) // _FRAME_FEATURES
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
            "check the buckets, the transcripts, or the teacher's word error rate"
        )


def _epochs(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """The rows, shuffled, again and again."""
    while True:
        yield from rng.permutation(rows)


def _fillers(bucket_of, num_buckets, rng):
    """For each bucket an endless stream of its labelled rows, or those of the nearest shorter bucket that has any."""
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


def read_batches(
    sets: Sequence[RecordSet],
    schedule: Schedule,
    *,
    first_step: int,
    augmentation: Augmentation,
    seed: int,
    with_teacher: bool,
    num_parallel: int = 2,
    share: Share = WHOLE,
    servers: Sequence[str] = (),
) -> tf.data.Dataset:
    """The batches of steps `first_step`, `first_step` + 1, …, as `Batch`; of each step the parts of `share` in turn.

    Reads by byte offset, with native operations only. Features are computed here; a batch's augmentation depends on the
    seed and the step alone.

    Args:
      sets: the labelled, then the pseudo-labelled sets that `schedule` was made from.
      schedule: see `make_schedule`.
      first_step: where to begin.
      augmentation: SpecAugment settings.
      seed: of the augmentation.
      with_teacher: whether `Batch.teacher` is wanted.
      num_parallel: elements worked on at the same time, on each server.
      share: what is read of every batch; by default all, as one element.
      servers: addresses of input servers that do the work (see `read_through`); by default it is done here.
    """
    targets = common_targets(sets) if with_teacher else None
    features_dtype = _common_features_dtype(sets)
    table = RecordTable(sets)

    def read_part(step, rows, bucket, part):
        whole = tf.gather(table.batch_sizes(schedule.buckets), bucket)
        size = whole // share.of
        records = tf.data.Dataset.from_tensor_slices(rows[part * size : (part + 1) * size])
        records = records.flat_map(table.read).map(lambda serialized: to_fields(serialized, targets, features_dtype))
        shapes = _padded_shapes(schedule, bucket, targets)
        place = {"first_row": part * size, "num_rows": whole}
        return records.padded_batch(tf.cast(size, tf.int64), shapes).map(
            lambda fields: _to_batch(fields, augmentation, tf.stack([tf.cast(seed, tf.int64), step]), place)
        )

    def read_steps(steps):
        parts = _list_parts(schedule, steps, share)
        return parts.interleave(
            read_part, cycle_length=num_parallel, num_parallel_calls=num_parallel, deterministic=True
        )

    steps = np.arange(first_step, len(schedule.bucket), dtype=np.int64)
    dataset = read_through(servers, read_steps, steps, share.count) if servers else read_steps(steps)
    return dataset.prefetch(num_parallel)


def _list_parts(schedule, steps, share):
    """(step, rows, bucket, part) of each element, in order."""
    whole = tf.data.Dataset.from_tensor_slices((steps, schedule.rows[steps], schedule.bucket[steps]))
    parts = tf.data.Dataset.range(share.first, share.first + share.count, output_type=tf.int32)
    return whole.flat_map(lambda *step: parts.map(lambda part: (*step, part)))


def common_targets(sets: Sequence[RecordSet]) -> TargetsSpec | None:
    """The teacher targets of the sets that have them; two different teachers in one batch are refused."""
    found = {s.targets: s.folder for s in sets if s.targets is not None}
    if len(found) > 1:
        raise UserError(f"{' and '.join(found.values())} hold targets of different teachers or codecs: label them anew")
    return next(iter(found), None)


def _common_features_dtype(sets):
    found = {s.features_dtype: s.folder for s in sets if s.features_dtype}
    if len(found) > 1:
        raise UserError(f"{' and '.join(found.values())} hold features of {' and '.join(found)}: write them alike")
    return next(iter(found), None)


class RecordTable:
    """Where each utterance of the concatenated sets lies, as tensors."""

    def __init__(self, sets: Sequence[RecordSet]):
        first_shard = np.cumsum([0] + [len(s.shards) for s in sets])
        shards = [s.index.shard + first for s, first in zip(sets, first_shard, strict=False)]
        self._files = tf.constant([path for s in sets for path in s.shards])
        self._shard = tf.constant(np.concatenate(shards), tf.int32)
        self._offset = tf.constant(np.concatenate([s.index.offset for s in sets]), tf.int64)
        self._num_bytes = tf.constant(np.concatenate([s.index.num_bytes for s in sets]), tf.int64)

    @staticmethod
    def batch_sizes(buckets: Buckets) -> tf.Tensor:
        return tf.constant([buckets.batch_size(k) for k in range(len(buckets.seconds))])

    def read(self, row: tf.Tensor) -> tf.data.Dataset:
        """The serialized record of one row, as a dataset of one element."""
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[tf.gather(self._files, tf.gather(self._shard, row))],
            compression_type="",
            buffer_size=tf.gather(self._num_bytes, row),
            byte_offsets=[tf.gather(self._offset, row)],
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(1)


def to_fields(
    serialized: tf.Tensor, targets: TargetsSpec | None, features_dtype: str | None = None
) -> dict[str, tf.Tensor]:
    """One record as the fields of a batch, unpadded: so features are made of speech alone, not of padding.

    Args:
      serialized: scalar string.
      targets: of the teacher, None for none.
      features_dtype: of features that some records hold in place of audio, None where none does.

    Returns:
      `features` [N, F] float32 and the other fields of `Batch` and `TeacherTargets`, each without its axis B.
    """
    record = parse_record(serialized, targets, features_dtype)
    features = _to_features(record)
    empty = tf.zeros([0, 0], tf.float32)
    codec = targets.codec if targets else None
    return {
        "features": features,
        "num_features": tf.shape(features)[0],
        "labels": record["labels"],
        "num_labels": tf.size(record["labels"]),
        "source": record["source"],
        "encoded": record["encoded"] if codec == "factored" else empty,
        "predicted": record["predicted"] if codec == "factored" else empty,
        "logits": record["logits"] if codec == "lattice" else tf.zeros([0, 0, 0]),
        "weight": _has_teacher(record, codec),
    }


def _to_features(record):
    """[N, F], from what the record has: audio, or features."""

    def hear():
        return log_mel(tf.cast(record["samples"], tf.float32)[None] / 32768.0)[0]

    if "features" not in record:
        return hear()
    return tf.cond(tf.size(record["features"]) > 0, lambda: restore(record["features"]), hear)


def _has_teacher(record, codec):
    values = record.get({"factored": "encoded", "lattice": "logits"}.get(codec))
    return tf.cast(tf.size(values) > 0, tf.float32) if values is not None else tf.zeros([])


def _padded_shapes(schedule, bucket, targets):
    num_buckets = len(schedule.buckets.seconds)
    frames = tf.gather(tf.constant([schedule.buckets.num_frames(k) for k in range(num_buckets)], tf.int64), bucket)
    labels = tf.gather(tf.constant(schedule.num_labels, tf.int64), bucket)
    width, vocabulary = (targets.width, targets.vocabulary_size) if targets else (0, 0)
    factored, lattice = (targets is not None and targets.codec == codec for codec in ("factored", "lattice"))
    zero = tf.constant(0, tf.int64)
    return {
        "features": [_FRAME_FEATURES * frames, NUM_MEL_BINS],
        "num_features": [],
        "labels": [labels],
        "num_labels": [],
        "source": [],
        "encoded": [frames, width] if factored else [zero, 0],
        "predicted": [labels + 1, width] if factored else [zero, 0],
        "logits": [frames, labels + 1, vocabulary] if lattice else [zero, zero, 0],
        "weight": [],
    }


def _to_batch(fields, augmentation, seed, place):
    features, num_features = fields["features"], fields["num_features"]  # [B, 4T, F], [B]
    masks = dataclasses.asdict(augmentation)
    first_step = masks.pop("first_step")
    masked = spec_augment(features, num_features, seed=seed, **place, **masks)
    features = tf.where(seed[1] >= first_step, masked, features)
    teacher = TeacherTargets(fields["encoded"], fields["predicted"], fields["logits"], fields["weight"])
    return Batch(features, num_features, fields["labels"], fields["num_labels"], teacher, fields["source"])
