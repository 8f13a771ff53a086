"""Record sets of noise, schedules of them, and the batches that are read."""

import dataclasses

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.batching import Buckets, make_schedule
from tf_rnnt_kd.data.pipeline import Augmentation, read_batches
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.features.log_mel import num_log_mel_frames

BUCKETS = Buckets((1.0, 2.0, 4.0), batch_seconds=8.0)  # 8, 4 and 2 rows
SMALL = Buckets((0.6, 1.2), batch_seconds=2.4)  # 4 and 2 rows
OFF = Augmentation(num_frequency_masks=0, num_time_masks=0)


def plan(labelled, pseudo=(), *, num_steps=60, fraction=0.25, seed=0, buckets=BUCKETS):
    return make_schedule(labelled, pseudo, buckets, num_steps=num_steps, labelled_fraction=fraction, seed=seed)


def schedule_of(sets, codec, num_steps=9):
    return plan([sets[None]], [sets[codec]], fraction=0.5, num_steps=num_steps, buckets=SMALL)


def members(schedule):
    """(bucket, rows) of every step."""
    sizes = [schedule.buckets.batch_size(k) for k in schedule.bucket]
    return [(int(k), row[:n].tolist()) for k, row, n in zip(schedule.bucket, schedule.rows, sizes, strict=True)]


def make_records(count, codec, seed):
    """Records of noise; a tenth of a second more each."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        samples = rng.integers(-3_000, 3_000, 4_000 + 1_600 * i).astype(np.int16)
        labels = rng.integers(1, 5, 1 + i % 4).astype(np.int32)
        frames = num_log_mel_frames(len(samples)) // 4
        targets = {
            None: {},
            "factored": {"encoded": random(rng, frames, 3), "predicted": random(rng, len(labels) + 1, 3)},
            "lattice": {"logits": random(rng, frames, len(labels) + 1, 5).astype(np.float16)},
        }[codec]
        yield schema.Record(f"{seed}-{i}", "", "", samples, labels, source=int(codec is not None), **targets)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def write_set(folder, count=9, codec=None, seed=0, teacher="a" * 64, features=None):
    width, dtype = (3, "float32") if codec == "factored" else (0, "float16")
    spec = schema.TargetsSpec(codec, dtype, width, 5, 0, teacher) if codec else None
    manifest = {
        "tokenizer_hash": None,
        "sample_rate": 16_000,
        "targets": dataclasses.asdict(spec) if spec else None,
        "source": "noise",
        **({"features": stored.describe(features)} if features else {}),
    }
    joint = (np.ones([3, 5], np.float32), np.zeros(5, np.float32)) if codec == "factored" else None
    items = list(make_records(count, codec, seed))
    return write_records(str(folder), items, lambda part: part, manifest=manifest, records_per_shard=4, joint=joint)


def read(
    sets, schedule, *, first_step=0, augmentation=OFF, seed=3, with_teacher=True, num_parallel=2, options=None, **more
):
    dataset = read_batches(
        sets,
        schedule,
        first_step=first_step,
        augmentation=augmentation,
        seed=seed,
        with_teacher=with_teacher,
        num_parallel=num_parallel,
        **more,
    ).with_options(options or tf.data.Options())
    return [tf.nest.map_structure(lambda value: value.numpy(), batch) for batch in dataset]


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
            np.testing.assert_array_equal(x, y)
