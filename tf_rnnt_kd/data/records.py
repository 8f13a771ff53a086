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
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data import schema, shards
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
    """

    shard: np.ndarray
    offset: np.ndarray
    num_bytes: np.ndarray
    num_samples: np.ndarray
    num_labels: np.ndarray
    score: np.ndarray


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
    manifest: dict[str, Any]
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
        arrays = [shards.load_arrays(shards.index_path(path), entry["index_sha256"])["id"] for path, entry in entries]
        return [name.decode() for ids in arrays for name in ids.tolist()]

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
        return shards.load_arrays(os.path.join(self.folder, JOINT), self.manifest["joint_sha256"])

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
        first = 0
        for path, entry in zip(self.shards, self.manifest["shards"], strict=True):
            begin, end = max(start - first, 0), min(stop - first, entry["utterances"])
            if begin < end:
                yield from self._read_shard(path, begin, end, entry["utterances"])
            first += entry["utterances"]

    def _read_shard(self, path: str, begin: int, end: int, num_records: int) -> Iterator[schema.Record]:
        count = begin
        try:
            for serialized in tf.data.TFRecordDataset(path).skip(begin).take(end - begin).as_numpy_iterator():
                yield schema.decode_record(serialized, self.targets)
                count += 1
        except tf.errors.NotFoundError as error:
            raise shards.missing(path) from error
        except tf.errors.DataLossError as error:
            raise shards.damaged(path, f"record {count} cannot be read") from error
        if count != end:
            raise shards.damaged(path, f"it holds {count} records, the manifest says {num_records}")

    def verify(self) -> None:
        """Reads all shards and compares checksums.

        Raises:
          UserError: the first shard that is missing, or whose sha256 differs from the manifest's.
        """
        for path, entry in zip(self.shards, self.manifest["shards"], strict=True):
            shards.check_size(path, entry["num_bytes"])
            if shards.sha256_of_file(path) != entry["sha256"]:
                raise shards.damaged(path, "its sha256 differs from the manifest's")


def content_hash(manifest: dict[str, Any]) -> str:
    """sha256 over what records hold, by the checksums of their shards, and over how they are to be read.

    Where they came from does not count: a set that is prepared again from audio that was only copied has the same hash.
    """
    content = {
        name: manifest.get(name) for name in ("tokenizer_hash", "sample_rate", "targets", "features", "joint_sha256")
    }
    return shards.sha256_of(shards.dump_json({**content, "shards": [entry["sha256"] for entry in manifest["shards"]]}))


def records_hash(folder: str) -> str | None:
    """`RecordSet.hash` of what is in a folder; None where there is no finished set."""
    path = os.path.join(folder, shards.MANIFEST)
    return content_hash(_load_manifest(path)) if os.path.exists(path) else None


def open_records(folder: str, *, tokenizer_hash: str | None = None) -> RecordSet:
    """Opens a finished set, after checks that cost no reading of shards (see `RecordSet.verify` for those).

    Args:
      folder: what `record_writer` wrote.
      tokenizer_hash: refuse labels made with another tokenizer; None accepts any.

    Raises:
      UserError: no manifest, a damaged one, another schema version, another tokenizer, features of another front
        end, a missing or truncated shard, a damaged index or joint.
    """
    path = os.path.join(folder, shards.MANIFEST)
    manifest = _load_manifest(path)
    made_with = manifest["tokenizer_hash"]
    if None not in (tokenizer_hash, made_with) and made_with != tokenizer_hash:
        raise UserError(
            f"{folder} was made with tokenizer {made_with[:12]}, not {tokenizer_hash[:12]}: "
            "use the tokenizer it was made with, or write the records again into another folder"
        )
    changes = stored.front_end_changes(manifest["features"]) if "features" in manifest else ""
    if changes:
        raise UserError(f"{folder} holds features of another front end ({changes}): delete it and write it again")
    paths = tuple(os.path.join(folder, entry["name"]) for entry in manifest["shards"])
    for shard, entry in zip(paths, manifest["shards"], strict=True):
        shards.check_size(shard, entry["num_bytes"])
    if manifest["joint_sha256"]:
        shards.load_arrays(os.path.join(folder, JOINT), manifest["joint_sha256"])
    return RecordSet(folder, manifest, paths, _load_indices(paths, manifest), content_hash(manifest))


def _load_manifest(path: str) -> dict[str, Any]:
    folder = os.path.dirname(path)
    if not os.path.exists(path):
        raise UserError(
            f"{folder} has no {shards.MANIFEST}, so it is no finished record set: run the command that writes it"
        )
    manifest = shards.load_json(path)
    version, wanted = manifest.get("schema_version"), schema.version_of(manifest)
    if version != wanted:
        raise UserError(
            f"{path} has schema version {version!r}, this program reads {wanted}: "
            f"delete {folder} and run the command that wrote it again"
        )
    with open(path, "rb") as file:
        # Compared as bytes, so that no flipped byte passes, not even one in white space.
        if file.read() != shards.dump_signed({key: value for key, value in manifest.items() if key != "sha256"}):
            raise shards.damaged(path, "its sha256 does not fit its content")
    return manifest


def _load_indices(paths: Sequence[str], manifest: dict[str, Any]) -> RecordIndex:
    pairs = zip(paths, manifest["shards"], strict=True)
    indices = [shards.load_arrays(shards.index_path(path), entry["index_sha256"]) for path, entry in pairs]
    shard = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index["offset"]) for index in indices])
    return RecordIndex(shard, *[np.concatenate([index[name] for index in indices]) for name in RecordIndex._fields[1:]])
