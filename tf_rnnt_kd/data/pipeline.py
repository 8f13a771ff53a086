"""From record sets to batches: the graph that reads what a schedule says, and makes features of it."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import tensorflow as tf
from annotated_types import Le

from tf_rnnt_kd.batch import Batch, TeacherTargets
from tf_rnnt_kd.data.batching import FRAME_FEATURES, Schedule
from tf_rnnt_kd.data.input_servers import read_through
from tf_rnnt_kd.data.records import RecordSet
from tf_rnnt_kd.data.schema import TargetsSpec, fingerprints, parse_record
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import NUM_MEL_BINS, log_mel
from tf_rnnt_kd.features.spec_augment import spec_augment
from tf_rnnt_kd.features.stored import restore
from tf_rnnt_kd.options import CountOrZero, Fraction, checked


@checked
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """SpecAugment settings of the student's input (see `spec_augment`); zero masks switch it off.

    Before `first_step` nothing is masked: on varied speech a small model may never leave the plateau where it models
    the text alone if masks hide the speech from the start.
    """

    first_step: CountOrZero = 0
    num_frequency_masks: CountOrZero = 2
    max_frequency_bins: Annotated[CountOrZero, Le(NUM_MEL_BINS)] = 27
    num_time_masks: CountOrZero = 10
    time_fraction: Fraction = 0.05


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

_CHANGED = "another record than was written, in shard"


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
    batch_sizes = tf.constant([schedule.buckets.batch_size(k) for k in range(len(schedule.buckets.seconds))])

    def read_part(step, rows, bucket, part):
        whole = tf.gather(batch_sizes, bucket)
        size = whole // share.of
        records = table.read(tf.data.Dataset.from_tensor_slices(rows[part * size : (part + 1) * size]))
        records = records.map(lambda serialized: to_fields(serialized, targets, features_dtype))
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


@contextlib.contextmanager
def named_shards(sets: Sequence[RecordSet]) -> Iterator[None]:
    """Turns what TensorFlow says of a record that cannot be read into the UserError of its shard.

    TensorFlow names no file, so the sets are looked through; a shard may be whole again by then.

    Args:
      sets: those that are read, in their order.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.InvalidArgumentError) as error:
        changed = re.search(re.escape(_CHANGED) + r"\D+(\d+)", error.message)
        for records in sets:
            records.verify()
        if changed:
            shard = [path for records in sets for path in records.shards][int(changed[1])]
        elif isinstance(error, tf.errors.DataLossError) or ".tfrecord" in error.message:
            shard = f"a shard of {' or '.join(records.folder for records in sets)}"
        else:
            raise
        raise UserError(f"{shard} changed while it was read: start the same command again") from error


class RecordTable:
    """Where each utterance of the concatenated sets lies, as tensors."""

    def __init__(self, sets: Sequence[RecordSet]):
        first_shard = np.cumsum([0] + [len(s.shards) for s in sets])
        shards = [s.index.shard + first for s, first in zip(sets, first_shard, strict=False)]
        self._files = tf.constant([path for s in sets for path in s.shards])
        self._shard = tf.constant(np.concatenate(shards), tf.int32)
        self._offset = tf.constant(np.concatenate([s.index.offset for s in sets]), tf.int64)
        self._num_bytes = tf.constant(np.concatenate([s.index.num_bytes for s in sets]), tf.int64)
        self._fingerprint = tf.constant(np.concatenate([s.index.fingerprint for s in sets]), tf.int64)

    def read(self, rows: tf.data.Dataset) -> tf.data.Dataset:
        """The serialized records of `rows`, one each: a shard that has another record there, or none, is an error."""
        return tf.data.Dataset.zip(rows, rows.flat_map(self._read_row)).map(self._check)

    def _read_row(self, row):
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[tf.gather(self._files, tf.gather(self._shard, row))],
            compression_type="",
            buffer_size=tf.gather(self._num_bytes, row),
            byte_offsets=[tf.gather(self._offset, row)],
        )
        # Beyond the end of a file there is no record and no error: what is then found is empty.
        found = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        return found.concatenate(tf.data.Dataset.from_tensors("")).take(1)

    def _check(self, row, serialized):
        is_own = tf.equal(fingerprints(serialized), tf.gather(self._fingerprint, row))
        with tf.control_dependencies([tf.debugging.Assert(is_own, [_CHANGED, tf.gather(self._shard, row)])]):
            return tf.identity(serialized)


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
        "features": [FRAME_FEATURES * frames, NUM_MEL_BINS],
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
