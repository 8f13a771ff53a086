"""A record set: a folder of TFRecord shards, an index beside each, and a manifest written last that vouches for all.

    plan.json                           what is being written: settings, schema version, hash of the list of items
    records-00000-of-00012.tfrecord     one `schema` record per utterance
    records-00000-of-00012.index.npz    where each record starts and how long it is, so that any order can be read
    joint.npz                           the teacher's kernel and bias (codec `factored` only)
    manifest.json                       the plan, counts and checksums

Every file is written under a temporary name and then renamed, so a file under its final name is complete. A killed
writer goes on where it stopped; a folder without manifest is unfinished and is never read.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data import schema, shards
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored

MANIFEST = shards.MANIFEST
PLAN = "plan.json"
JOINT = "joint.npz"

Item = TypeVar("Item")
Joint = tuple[np.ndarray, np.ndarray]


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
      hash: sha256 of the manifest, which holds the checksums of everything else.
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
        return _targets(self.manifest)

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


# -- writing --


def write_records(
    folder: str,
    items: Sequence[Item],
    to_records: Callable[[Sequence[Item]], Iterable[schema.Record]],
    *,
    manifest: dict[str, Any],
    records_per_shard: int,
    joint: Joint | None = None,
    measured: dict[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> RecordSet:
    """Writes `items` as a record set, or goes on with one that was begun with the same arguments.

    Shard i holds what `to_records` makes of `items[i * records_per_shard : (i + 1) * records_per_shard]`. A shard that
    is there already is kept; one that is missing, or has not the size its index says, is written (again).

    Args:
      folder: made if missing; nothing else may live in it.
      items: what to write; attributes `id`, where items have them, must differ and are part of the set's identity.
      to_records: from consecutive items to their records, in order; it may leave items out.
      manifest: settings that decide the content, as JSON: `tokenizer_hash` (None for unlabelled audio), `sample_rate`
        in Hz, `targets` (a `TargetsSpec` as a dict, or None), `source` and whatever else tells this set from another;
        with `features`, of `features.stored.describe`, records hold features in place of their samples.
      records_per_shard: items per shard.
      joint: kernel [D, V] and bias [V] of the teacher, for codec `factored`.
      measured: figures for the manifest that may differ from run to run, and so are no part of the set's identity.
      on_progress: called with (items done, items in all) after every shard.

    Returns:
      The finished set, opened.

    Raises:
      UserError: the folder was begun with other settings, another process writes it, or there is nothing to write.
      OSError: ENOSPC when the disk is full; no half-written file has a final name.
    """
    plan = _make_plan(items, manifest, records_per_shard, joint)
    measured = json.loads(json.dumps(measured or {}))  # what JSON cannot hold must not fail after the last shard
    _check_names(measured, plan)
    if not items:
        raise UserError(f"no utterances to write into {folder}: check the corpus and the limits on length")
    os.makedirs(folder, exist_ok=True)
    with _sole_writer(folder):
        _begin(folder, plan)
        with contextlib.suppress(UserError):
            return open_records(folder)
        if joint is not None:
            shards.write_atomically(os.path.join(folder, JOINT), _joint_bytes(joint))
        entries = _write_shards(folder, items, to_records, plan, on_progress)
        shards.write_atomically(
            os.path.join(folder, MANIFEST), shards.dump_signed(_make_manifest(plan, measured, entries))
        )
        return open_records(folder)


def _make_plan(
    items: Sequence, manifest: dict[str, Any], records_per_shard: int, joint: Joint | None
) -> dict[str, Any]:
    if records_per_shard < 1:
        raise ValueError(f"records_per_shard is {records_per_shard}, must be at least 1")
    for key in ("tokenizer_hash", "sample_rate", "targets"):
        if key not in manifest:
            raise ValueError(f"the manifest lacks {key!r}")
    targets = _targets(manifest)
    _check_joint(joint, targets)
    ids = [str(getattr(item, "id", "")) for item in items]
    _check_unique(ids)
    identity = {
        "schema_version": _version(manifest),
        "items": len(items),
        "items_sha256": shards.sha256_of("\n".join(ids).encode()),
        "records_per_shard": records_per_shard,
        "joint_sha256": shards.sha256_of(_joint_bytes(joint)) if joint else None,
    }
    _check_names(manifest, identity)
    return json.loads(json.dumps({**manifest, **identity}))


def _version(manifest: dict[str, Any]) -> int:
    return schema.FEATURES_VERSION if "features" in manifest else schema.SCHEMA_VERSION


def _check_names(given: Iterable[str], taken: Iterable[str]) -> None:
    reserved = {*taken, "utterances", "seconds", "skipped", "shards", "sha256"} & set(given)
    if reserved:
        raise ValueError(f"the manifest may not set {', '.join(sorted(reserved))}")


def _targets(manifest: dict[str, Any]) -> schema.TargetsSpec | None:
    return schema.TargetsSpec(**manifest["targets"]) if manifest["targets"] else None


def _check_joint(joint: Joint | None, targets: schema.TargetsSpec | None) -> None:
    factored = targets is not None and targets.codec == "factored"
    if factored != (joint is not None):
        raise ValueError("codec factored needs the joint's kernel and bias, and nothing else has them")
    if joint is None:
        return
    expected = (targets.width, targets.vocabulary_size), (targets.vocabulary_size,)
    shapes = tuple(np.shape(array) for array in joint)
    if shapes != expected:
        raise ValueError(f"the joint's kernel and bias are {shapes}, the targets need {expected}")


def _check_unique(ids: list[str]) -> None:
    seen = set()
    for name in filter(None, ids):
        if name in seen:
            raise UserError(f"two utterances have the id {name!r}: remove one of them from the corpus")
        seen.add(name)


def _begin(folder: str, plan: dict[str, Any]) -> None:
    """Removes what dead writers left, and makes sure that what is there was begun by this plan."""
    shards.remove_temporaries(folder)
    names = os.listdir(folder)
    path = os.path.join(folder, PLAN)
    if PLAN in names:
        _check_same_plan(path, plan)
        return
    foreign = sorted(name for name in names if name == MANIFEST or name.endswith(".tfrecord"))
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]} but no {PLAN}: delete {folder} or choose another folder")
    shards.write_atomically(path, shards.dump_json(plan))


def _check_same_plan(path: str, plan: dict[str, Any]) -> None:
    found = _load_json(path)
    keys = [key for key in sorted({*found, *plan}) if found.get(key) != plan.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {found.get(key)!r} there and {plan.get(key)!r} now" for key in keys)
        folder = os.path.dirname(path)
        remedy = f"delete {folder} or choose another folder"
        raise UserError(f"{folder} was begun with other settings ({differences}): {remedy}")


def _write_shards(folder, items, to_records, plan, on_progress) -> list[dict[str, Any]]:
    size = plan["records_per_shard"]
    num_shards = -(-len(items) // size)
    targets = _targets(plan)
    entries = []
    for i in range(num_shards):
        path = os.path.join(folder, f"records-{i:05d}-of-{num_shards:05d}.tfrecord")
        part = items[i * size : (i + 1) * size]
        if not shards.is_finished(path):
            records = _at_most(len(part), to_records(part))
            if "features" in plan:
                records = _with_features(records, plan["features"]["dtype"])
            shards.write_shard(path, records, targets)
        entries.append(shards.describe_shard(path, len(part)))
        if on_progress:
            on_progress(min((i + 1) * size, len(items)), len(items))
    return entries


def _at_most(count: int, records: Iterable[schema.Record]) -> Iterator[schema.Record]:
    for i, record in enumerate(records):
        if i == count:
            raise ValueError(f"more than {count} records came from {count} items: {record.id!r} is one too many")
        yield record


def _with_features(records: Iterable[schema.Record], dtype: str) -> Iterator[schema.Record]:
    for record in records:
        yield dataclasses.replace(record, features=stored.quantise(record.samples, dtype))


def _make_manifest(plan: dict[str, Any], measured: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **measured,
        **plan,
        "utterances": sum(entry["utterances"] for entry in entries),
        "skipped": sum(entry["skipped"] for entry in entries),
        "seconds": sum(entry["samples"] for entry in entries) / plan["sample_rate"],
        "shards": entries,
    }


# -- opening --


def open_records(folder: str, *, tokenizer_hash: str | None = None) -> RecordSet:
    """Opens a finished set, after checks that cost no reading of shards (see `RecordSet.verify` for those).

    Args:
      folder: what `write_records` wrote.
      tokenizer_hash: refuse labels made with another tokenizer; None accepts any.

    Raises:
      UserError: no manifest, a damaged one, another schema version, another tokenizer, features of another front
        end, a missing or truncated shard, a damaged index or joint.
    """
    path = os.path.join(folder, MANIFEST)
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
    return RecordSet(folder, manifest, paths, _load_indices(paths, manifest), shards.sha256_of_file(path))


def _load_manifest(path: str) -> dict[str, Any]:
    folder = os.path.dirname(path)
    if not os.path.exists(path):
        raise UserError(f"{folder} has no {MANIFEST}, so it is no finished record set: run the command that writes it")
    manifest = _load_json(path)
    version = manifest.get("schema_version")
    if version != _version(manifest):
        raise UserError(
            f"{path} has schema version {version!r}, this program reads {_version(manifest)}: "
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


def _joint_bytes(joint: Joint) -> bytes:
    kernel, bias = (np.asarray(array, np.float32) for array in joint)
    return shards.dump_arrays({"kernel": kernel, "bias": bias})


def _load_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="ascii") as file:
            content = json.load(file)
    except (ValueError, OSError) as error:
        raise shards.damaged(path, "it is not readable") from error
    if not isinstance(content, dict):
        raise shards.damaged(path, "it is not readable")
    return content


@contextlib.contextmanager
def _sole_writer(folder: str) -> Iterator[None]:
    """Holds the folder's lock; the system drops it when the process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another process is writing {folder}: wait for it, or stop it and run again") from None
    except OSError:
        pass  # some network file systems have no locks; the renames still keep every file whole
    try:
        yield
    finally:
        os.close(handle)
