"""A record set: a folder of TFRecord shards, an index beside each, and a manifest written last that vouches for all.

    plan.json                           what is being written: settings, schema version, hash of the list of items
    records-00000-of-00012.tfrecord     one `schema` record per utterance
    records-00000-of-00012.index.npz    where each record starts and how long it is, so that any order can be read
    joint.npz                           the teacher's kernel and bias (codec `factored` only)
    manifest.json                       the plan, counts and checksums

A folder without manifest is unfinished and is never read; `record_writer` goes on with it.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd import files
from tf_rnnt_kd.arrays import Array, read_arrays
from tf_rnnt_kd.data import schema, shards
from tf_rnnt_kd.data.manifest import MANIFEST, Manifest, read_manifest
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored

JOINT = "joint.npz"


class RecordIndex(NamedTuple):
    """Where each record lies and what decides its bucket; entry i of every array is utterance i of the set.

    Attributes:
      shard: [N] int32, position in `RecordSet.shards`.
      offset: [N] int64, byte at which the record's frame starts, as `TFRecordDatasetV2` takes it.
      num_bytes: [N] int64, length of the whole frame.
      num_samples: [N] int32.
      num_labels: [N] int32.
      score: [N] float32, log-probability of the hypothesis; 0 for human transcripts.
      fingerprint: [N] int64, of the record's bytes (`schema.fingerprint`).
    """

    shard: np.ndarray
    offset: np.ndarray
    num_bytes: np.ndarray
    num_samples: np.ndarray
    num_labels: np.ndarray
    score: np.ndarray
    fingerprint: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSet:
    """A finished record set, opened by `open_records`.

    Attributes:
      folder: where it is.
      manifest: the content of `manifest.json`; `utterances`, `seconds` and `skipped` are the counts.
      shards: paths, in order.
      index: one entry per utterance, in the order of the items it was written from.
      hash: see `content_hash`.
    """

    folder: str
    manifest: Manifest
    shards: tuple[str, ...]
    index: RecordIndex
    hash: str

    @property
    def num_utterances(self) -> int:
        return self.manifest["utterances"]

    @property
    def seconds(self) -> float:
        return self.manifest["seconds"]

    @functools.cached_property
    def ids(self) -> list[str]:
        """Utterance ids in the order of the index."""
        entries = zip(self.shards, self.manifest["shards"], strict=True)
        return [name.decode() for path, entry in entries for name in shards.read_index(path, entry)["id"].tolist()]

    @functools.cached_property
    def targets(self) -> schema.TargetsSpec | None:
        """What teacher targets the records carry, or None."""
        return schema.targets_of(self.manifest)

    @property
    def features_dtype(self) -> str | None:
        """Of the features that the records carry in place of audio, or None."""
        return self.manifest["features"]["dtype"] if "features" in self.manifest else None

    @property
    def kernel(self) -> np.ndarray:
        """[D, V] float32, of the teacher's joint (codec `factored`)."""
        return self._joint["kernel"]

    @property
    def bias(self) -> np.ndarray:
        """[V] float32, of the teacher's joint (codec `factored`)."""
        return self._joint["bias"]

    @functools.cached_property
    def _joint(self) -> dict[str, np.ndarray]:
        if self.manifest["joint_sha256"] is None:
            raise ValueError(f"{self.folder} holds no factored targets, so no joint")
        return _read_joint(self.folder, self.manifest)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[schema.Record]:
        """Yields the records from position `start` up to `stop`, in order; by default all of them.

        Raises:
          UserError: a shard whose bytes are not what was written, or a set that holds no audio.
        """
        if self.features_dtype:
            raise UserError(
                f"{self.folder} holds features in place of audio, so it can be trained on and no more: "
                "leave out Corpus.features, and write it again into another folder"
            )
        stop = self.num_utterances if stop is None else stop
        for i, record in enumerate(self._decode(start, stop), start):
            if len(record.samples) != self.index.num_samples[i]:
                raise shards.damaged(self._shard_of(i), f"record {record.id!r} has not the samples its index says")
            yield record

    def verify(self) -> None:
        """Reads all shards, compares checksums, and decodes every record.

        Raises:
          UserError: the first shard that is missing, whose sha256 differs from the manifest's, or with a record that is
            none of this set.
        """
        for path, entry in zip(self.shards, self.manifest["shards"], strict=True):
            if not os.path.exists(path):
                raise shards.missing(path)
            if files.sha256_of_file(path) != entry["sha256"]:
                raise shards.damaged(path, "its sha256 differs from the manifest's")
        for _ in self._decode(0, self.num_utterances):
            pass

    def _decode(self, start: int, stop: int) -> Iterator[schema.Record]:
        """The records of a stretch, each with the labels that the index says."""
        for i, serialized in enumerate(self._read(start, stop), start):
            try:
                record = schema.decode_record(serialized, self.targets)
            except schema.UNDECODABLE as error:
                raise shards.damaged(self._shard_of(i), f"a record is none of this set ({error})") from error
            if len(record.labels) != self.index.num_labels[i]:
                raise shards.damaged(self._shard_of(i), f"record {record.id!r} has not the labels its index says")
            yield record

    def _shard_of(self, position: int) -> str:
        return self.shards[self.index.shard[position]]

    def _read(self, start: int, stop: int) -> Iterator[bytes]:
        first = 0
        for path, entry in zip(self.shards, self.manifest["shards"], strict=True):
            begin, end = max(start - first, 0), min(stop - first, entry["utterances"])
            if begin < end:
                yield from self._read_shard(path, begin, end, first)
            first += entry["utterances"]

    def _read_shard(self, path: str, begin: int, end: int, first: int) -> Iterator[bytes]:
        count = begin
        try:
            for serialized in tf.data.TFRecordDataset(path).skip(begin).take(end - begin).as_numpy_iterator():
                if schema.fingerprint(serialized) != self.index.fingerprint[first + count]:
                    raise shards.damaged(path, f"record {count} is another one than was written there")
                yield serialized
                count += 1
        except tf.errors.NotFoundError as error:
            raise shards.missing(path) from error
        except tf.errors.DataLossError as error:
            raise shards.damaged(path, f"record {count} cannot be read") from error
        if count != end:
            raise shards.damaged(path, f"it ends after {count} records")


def content_hash(manifest: Manifest) -> str:
    """sha256 over what records hold, by the checksums of their shards, and over how they are to be read.

    Where they came from does not count: a set that is prepared again from audio that was only copied has the same hash.
    """
    content = {
        name: manifest.get(name) for name in ("tokenizer_hash", "sample_rate", "targets", "features", "joint_sha256")
    }
    return files.sha256_of(files.dump_json({**content, "shards": [entry["sha256"] for entry in manifest["shards"]]}))


def records_hash(folder: str) -> str | None:
    """`RecordSet.hash` of what is in a folder; None where there is no finished set."""
    return content_hash(read_manifest(folder)) if os.path.exists(os.path.join(folder, MANIFEST)) else None


def open_records(folder: str, *, tokenizer_hash: str | None = None) -> RecordSet:
    """Opens a finished set, after checks that read a few bytes of each shard (see `RecordSet.verify` for the rest).

    Args:
      folder: what `record_writer` wrote.
      tokenizer_hash: refuse labels made with another tokenizer; None accepts any.

    Raises:
      UserError: no manifest, a damaged one, another schema version, another tokenizer, features of another front
        end, a missing, truncated or exchanged shard, a damaged index or joint.
    """
    manifest = read_manifest(folder)
    made_with = manifest["tokenizer_hash"]
    if None not in (tokenizer_hash, made_with) and made_with != tokenizer_hash:
        raise UserError(
            f"{folder} was made with tokenizer {made_with[:12]}, not {tokenizer_hash[:12]}: "
            "use the tokenizer it was made with, or write the records again into another folder"
        )
    changes = stored.front_end_changes(manifest["features"]) if "features" in manifest else ""
    if changes:
        raise UserError(f"{folder} holds features of another front end ({changes}): delete it and write it again")
    if manifest["joint_sha256"]:
        _read_joint(folder, manifest)
    paths = tuple(os.path.join(folder, entry["name"]) for entry in manifest["shards"])
    index = _load_indices(paths, manifest)
    if "features" not in manifest and np.any(2 * index.num_samples.astype(np.int64) > index.num_bytes):
        raise shards.damaged(os.path.join(folder, MANIFEST), "its records hold no audio, and it lists no features")
    return RecordSet(folder, manifest, paths, index, content_hash(manifest))


def _read_joint(folder: str, manifest: Manifest) -> dict[str, np.ndarray]:
    width, vocabulary = manifest["targets"]["width"], manifest["targets"]["vocabulary_size"]
    path = os.path.join(folder, JOINT)
    wanted = {"kernel": Array("float32", (width, vocabulary)), "bias": Array("float32", (vocabulary,))}
    return read_arrays(path, wanted, sha256=manifest["joint_sha256"], remedy=shards.remedy(path))


def _load_indices(paths: Sequence[str], manifest: Manifest) -> RecordIndex:
    indices = []
    for path, entry in zip(paths, manifest["shards"], strict=True):
        indices.append(shards.read_index(path, entry))
        shards.check_shard(path, indices[-1])
    shard = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index["offset"]) for index in indices])
    return RecordIndex(shard, *[np.concatenate([index[name] for index in indices]) for name in RecordIndex._fields[1:]])
