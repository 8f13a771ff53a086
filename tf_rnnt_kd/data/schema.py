"""One utterance as a `tf.train.Example`: written from NumPy arrays, read back as NumPy arrays or inside a graph."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message

SCHEMA_VERSION = 3

CODECS = ("factored", "lattice")
DTYPES = ("float32", "float16", "bfloat16")

HUMAN_TRANSCRIPT = 0
TEACHER_HYPOTHESIS = 1


@dataclasses.dataclass(frozen=True)
class TargetsSpec:
    """What a set's teacher targets are, once per set, so that a record needs no shapes of its own.

    Attributes:
      codec: `factored` (the two inputs of the joint's tanh) or `lattice` (the logits).
      dtype: `float32`, `float16` or `bfloat16`, as stored.
      width: D, the joint's width; 0 for codec `lattice`.
      vocabulary_size: V, with blank.
      blank_id: the teacher's blank.
      teacher_hash: sha256 of the teacher's weights and architecture.
      frame_ms: duration of an encoder frame in milliseconds.
    """

    codec: str
    dtype: str
    width: int
    vocabulary_size: int
    blank_id: int
    teacher_hash: str
    frame_ms: int = 40

    def __post_init__(self):
        if self.codec not in CODECS:
            raise ValueError(f"codec {self.codec!r} is none of {', '.join(CODECS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} of the teacher targets is none of {', '.join(DTYPES)}")
        if self.vocabulary_size < 1 or (self.codec == "factored" and self.width < 1):
            raise ValueError(f"no teacher has width {self.width} and a vocabulary of {self.vocabulary_size}")

    def fields(self) -> dict[str, int]:
        """The features this codec stores, each with the size of its last axis."""
        if self.codec == "factored":
            return {"encoded": self.width, "predicted": self.width}
        return {"logits": self.vocabulary_size}


def targets_of(manifest: Mapping[str, Any]) -> TargetsSpec | None:
    """The teacher targets of the records of a set, by what its manifest says of them."""
    return TargetsSpec(**manifest["targets"]) if manifest["targets"] else None


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One utterance with its labels and, where a teacher made them, that teacher's targets.

    Attributes:
      id: unique in its set.
      speaker: empty when unknown.
      text: the transcript or the teacher's hypothesis; empty when there is neither.
      samples: [S] int16, 16 kHz.
      labels: [U] int32, blank-free.
      source: `HUMAN_TRANSCRIPT` or `TEACHER_HYPOTHESIS`.
      score: log-probability of the hypothesis; 0 for a human transcript.
      encoded: [T, D] or None.
      predicted: [U+1, D] or None.
      logits: [T, U+1, V] or None.
      features: [N, F] as `features.stored` has them, or None; a record that has them is stored without its samples.
    """

    id: str
    speaker: str
    text: str
    samples: np.ndarray
    labels: np.ndarray
    source: int = HUMAN_TRANSCRIPT
    score: float = 0.0
    encoded: np.ndarray | None = None
    predicted: np.ndarray | None = None
    logits: np.ndarray | None = None
    features: np.ndarray | None = None


# How `decode_record` fails on bytes that are no record of a set.
UNDECODABLE = (ValueError, KeyError, IndexError, message.DecodeError)

_TEACHER_FIELDS = ("encoded", "predicted", "logits")


def check_record(record: Record, targets: TargetsSpec | None) -> None:
    """Raises ValueError where `record` is not what a set with these `targets` can give back.

    A record of a human transcript may lack teacher targets in a set that has them.
    """
    _check_vector(record, "samples", np.int16)
    _check_vector(record, "labels", np.int32)
    expected = targets.fields() if targets else {}
    present = {name for name in _TEACHER_FIELDS if getattr(record, name) is not None}
    if present - set(expected) or present not in (set(), set(expected)):
        raise ValueError(f"record {record.id!r} carries {sorted(present)}, its set stores {sorted(expected)}")
    for name in sorted(present):
        _check_target(record, name, targets)


def _check_vector(record: Record, name: str, dtype: type) -> None:
    value = getattr(record, name)
    if value.ndim != 1 or value.dtype != dtype:
        kind = np.dtype(dtype).name
        raise ValueError(f"{name} of record {record.id!r} must be one axis of {kind}, not {value.shape} {value.dtype}")


def _check_target(record: Record, name: str, targets: TargetsSpec) -> None:
    value = getattr(record, name)
    label_axis = {"encoded": None, "predicted": 0, "logits": 1}[name]
    rank = 3 if name == "logits" else 2
    wrong_rank = value.ndim != rank or value.shape[-1] != targets.fields()[name]
    wrong_labels = label_axis is not None and not wrong_rank and value.shape[label_axis] != len(record.labels) + 1
    if wrong_rank or wrong_labels or value.dtype.name != targets.dtype:
        raise ValueError(
            f"{name} of record {record.id!r} with {len(record.labels)} labels is {value.shape} {value.dtype}, "
            f"which does not fit {targets}"
        )


def encode_record(record: Record) -> bytes:
    """Serialises to a `tf.train.Example`; equal records give equal bytes."""
    features = {
        "id": _bytes_feature(record.id.encode()),
        "speaker": _bytes_feature(record.speaker.encode()),
        "text": _bytes_feature(record.text.encode()),
        "samples": _bytes_feature(_little_endian(record.samples) if record.features is None else b""),
        "labels": _bytes_feature(_little_endian(record.labels)),
        "source": tf.train.Feature(int64_list=tf.train.Int64List(value=[record.source])),
        "score": tf.train.Feature(float_list=tf.train.FloatList(value=[record.score])),
    }
    for name in (*_TEACHER_FIELDS, "features"):
        if getattr(record, name) is not None:
            features[name] = _bytes_feature(_little_endian(getattr(record, name)))
    # A protobuf map has no order of its own: without `deterministic` a shard's checksum would change from run to run.
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def fingerprint(serialized: bytes) -> int:
    """What an index keeps of a record, so that whoever reads it knows it again."""
    return int(fingerprints(serialized).numpy())


def fingerprints(serialized: tf.Tensor) -> tf.Tensor:
    """`fingerprint` inside a graph: scalar string -> scalar int64."""
    return tf.bitcast(tf.fingerprint(tf.reshape(serialized, [1]))[0], tf.int64)


def _bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _little_endian(array: np.ndarray) -> bytes:
    swap = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    return (array.byteswap() if swap else array).tobytes()


def decode_record(serialized: bytes, targets: TargetsSpec | None = None) -> Record:
    """The inverse of `encode_record`; `targets` gives the shapes of the teacher fields and may be None without them."""
    features = tf.train.Example.FromString(serialized).features.feature
    raw = {name: feature.bytes_list.value[0] for name, feature in features.items() if feature.bytes_list.value}
    labels = np.frombuffer(raw["labels"], "<i4")
    return Record(
        id=raw["id"].decode(),
        speaker=raw["speaker"].decode(),
        text=raw["text"].decode(),
        samples=np.frombuffer(raw["samples"], "<i2"),
        labels=labels,
        source=features["source"].int64_list.value[0],
        score=features["score"].float_list.value[0],
        **_decode_targets(raw, targets, len(labels)),
    )


def _decode_targets(raw: dict[str, bytes], targets: TargetsSpec | None, num_labels: int) -> dict[str, np.ndarray]:
    fields = targets.fields() if targets else {}
    stored = [name for name in fields if name in raw]
    dtype = tf.as_dtype(targets.dtype).as_numpy_dtype if stored else None
    middle = {"logits": (num_labels + 1,)}
    return {name: np.frombuffer(raw[name], dtype).reshape(-1, *middle.get(name, ()), fields[name]) for name in stored}


def parse_record(
    serialized: tf.Tensor, targets: TargetsSpec | None, features_dtype: str | None = None
) -> dict[str, tf.Tensor]:
    """Reads one record inside a graph.

    Args:
      serialized: scalar string, one `tf.train.Example`.
      targets: what the set's teacher targets are, or None to leave them out.
      features_dtype: in which features are stored, or None to leave them out.

    Returns:
      `id`, `speaker`, `text`: scalar string; `samples`: [S] int16; `labels`: [U] int32; `source`: scalar int32;
      `score`: scalar float32; and of the teacher, in the stored dtype, `encoded`: [T, D] and `predicted`: [U+1, D]
      (codec `factored`) or `logits`: [T, U+1, V] (codec `lattice`). A record without teacher has T = 0 and no rows in
      `predicted`. With `features_dtype` also `features`: [N * F], empty where the record holds audio.
    """
    fields = targets.fields() if targets else {}
    stored = ["features"] if features_dtype else []
    parsed = tf.io.parse_single_example(serialized, _feature_spec([*fields, *stored]))
    labels = tf.io.decode_raw(parsed["labels"], tf.int32)  # [U]
    record = {
        **{name: parsed[name] for name in ("id", "speaker", "text", "score")},
        "samples": tf.io.decode_raw(parsed["samples"], tf.int16),  # [S]
        "labels": labels,
        "source": tf.cast(parsed["source"], tf.int32),
        **{name: tf.io.decode_raw(parsed[name], tf.as_dtype(features_dtype)) for name in stored},
    }
    for name, size in fields.items():
        middle = [tf.size(labels) + 1] if name == "logits" else []
        values = tf.io.decode_raw(parsed[name], tf.as_dtype(targets.dtype))
        values = tf.reshape(values, [-1, *middle, size])  # [T or U+1, D] or [T, U+1, V]
        record[name] = tf.ensure_shape(values, [None, *[None for _ in middle], size])
    return record


def _feature_spec(optional: Iterable[str]) -> dict[str, tf.io.FixedLenFeature]:
    text = tf.io.FixedLenFeature([], tf.string)
    return {
        **dict.fromkeys(("id", "speaker", "text", "samples", "labels"), text),
        "source": tf.io.FixedLenFeature([], tf.int64),
        "score": tf.io.FixedLenFeature([], tf.float32),
        **dict.fromkeys(optional, tf.io.FixedLenFeature([], tf.string, default_value="")),
    }
