"""Small record sets, whole and damaged."""

import dataclasses
import os

import numpy as np
import tensorflow as tf

from tests.data.test_schema import record, spec
from tf_rnnt_kd.data.record_writer import write_records

MANIFEST = {"tokenizer_hash": "a" * 64, "sample_rate": 16000, "targets": None, "source": "test"}
JOINT = (np.arange(15, dtype=np.float32).reshape(3, 5), np.ones(5, np.float32))


@dataclasses.dataclass(frozen=True)
class Item:
    id: str


def items(count=10):
    return [Item(f"u{i}") for i in range(count)]


def to_records(part, codec=None):
    for item in part:
        i = int(item.id[1:])
        yield record(num_labels=i % 4, num_frames=i + 1, codec=codec, num_samples=100 + i, id=item.id, score=-float(i))


def write(
    folder, part=None, make=to_records, records_per_shard=4, joint=None, measured=None, on_progress=None, **manifest
):
    return write_records(
        str(folder),
        items() if part is None else part,
        make,
        manifest={**MANIFEST, **manifest},
        records_per_shard=records_per_shard,
        joint=joint,
        measured=measured,
        on_progress=on_progress,
    )


def write_factored(folder):
    targets = dataclasses.asdict(spec())
    return write(folder, make=lambda part: to_records(part, "factored"), joint=JOINT, targets=targets)


def content(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x20
    path.write_bytes(data)


def read_at(record_set, i):
    """The record of utterance i by its byte offset, as a pipeline reads it."""

    def read(offset):
        path = record_set.shards[record_set.index.shard[i]]
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=0, byte_offsets=[offset]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(1)

    (serialized,) = tf.data.Dataset.from_tensors(record_set.index.offset[i]).flat_map(read).as_numpy_iterator()
    return serialized
