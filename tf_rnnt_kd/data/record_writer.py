"""Writes a record set (see `records`), or goes on with one.

Every file is written under a temporary name and then renamed, so a file under its final name is complete. A killed
writer goes on where it stopped.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from tf_rnnt_kd import files
from tf_rnnt_kd.arrays import dump_arrays
from tf_rnnt_kd.data import schema, shards
from tf_rnnt_kd.data.manifest import MANIFEST, Manifest, Plan, ShardEntry, count_shards, shard_name
from tf_rnnt_kd.data.records import JOINT, RecordSet, open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored

PLAN = "plan.json"

Item = TypeVar("Item")
Joint = tuple[np.ndarray, np.ndarray]


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
      folder: made if missing; nothing else may live in it but a lineage, and a list of what `to_records` left out.
      items: what to write; attributes `id`, where items have them, must differ; they, `text` and `source` are part of
        the set's identity.
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
    measured = json.loads(files.dump_json(measured or {}))  # what JSON cannot hold must not fail after the last shard
    _check_names(measured, plan)
    if not items:
        raise UserError(f"no utterances to write into {folder}: check the corpus and the limits on length")
    os.makedirs(folder, exist_ok=True)
    with _sole_writer(folder):
        _begin(folder, plan)
        with contextlib.suppress(UserError):
            return open_records(folder)
        if joint is not None:
            files.write_atomically(os.path.join(folder, JOINT), _joint_bytes(joint))
        entries = _write_shards(folder, items, to_records, plan, on_progress)
        finished = files.dump_signed(_make_manifest(plan, measured, entries))
        files.write_atomically(os.path.join(folder, MANIFEST), finished)
        return open_records(folder)


def _make_plan(items: Sequence, manifest: dict[str, Any], records_per_shard: int, joint: Joint | None) -> Plan:
    if records_per_shard < 1:
        raise ValueError(f"records_per_shard is {records_per_shard}, must be at least 1")
    for key in ("tokenizer_hash", "sample_rate", "targets", "source"):
        if key not in manifest:
            raise ValueError(f"the manifest lacks {key!r}")
    targets = schema.targets_of(manifest)
    _check_joint(joint, targets)
    ids = [str(getattr(item, "id", "")) for item in items]
    _check_unique(ids)
    identity = {
        "schema_version": schema.SCHEMA_VERSION,
        "items": len(items),
        "items_sha256": files.sha256_of("\n".join(ids).encode()),
        "records_per_shard": records_per_shard,
        "joint_sha256": files.sha256_of(_joint_bytes(joint)) if joint else None,
    }
    _check_names(manifest, identity)
    return json.loads(files.dump_json({**manifest, **identity}))


def _check_names(given: Iterable[str], taken: Iterable[str]) -> None:
    reserved = {*taken, "utterances", "seconds", "skipped", "shards", "sha256"} & set(given)
    if reserved:
        raise ValueError(f"the manifest may not set {', '.join(sorted(reserved))}")


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


def _begin(folder: str, plan: Plan) -> None:
    """Removes what dead writers left, and makes sure that what is there was begun by this plan."""
    files.remove_temporaries(folder)
    names = os.listdir(folder)
    path = os.path.join(folder, PLAN)
    if PLAN in names:
        _check_same_plan(path, plan)
        return
    foreign = sorted(name for name in names if name == MANIFEST or name.endswith(".tfrecord"))
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]} but no {PLAN}: delete {folder} or choose another folder")
    files.write_atomically(path, files.dump_json(plan))


def _check_same_plan(path: str, plan: Plan) -> None:
    found = files.read_json(path, dict[str, Any], remedy=f"delete {os.path.dirname(path)}, and run the command again")
    keys = [key for key in sorted({*found, *plan}) if found.get(key, ...) != plan.get(key, ...)]
    if keys:
        differences = "; ".join(f"{key} is {found.get(key)!r} there and {plan.get(key)!r} now" for key in keys)
        folder = os.path.dirname(path)
        remedy = f"delete {folder} or choose another folder"
        raise UserError(f"{folder} was begun with other settings ({differences}): {remedy}")


def _write_shards(folder, items, to_records, plan, on_progress) -> list[ShardEntry]:
    size = plan["records_per_shard"]
    num_shards = count_shards(plan)
    targets = schema.targets_of(plan)
    entries = []
    for i in range(num_shards):
        path = os.path.join(folder, shard_name(i, num_shards))
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


def _make_manifest(plan: Plan, measured: dict[str, Any], entries: list[ShardEntry]) -> Manifest:
    return {
        **measured,
        **plan,
        "utterances": sum(entry["utterances"] for entry in entries),
        "skipped": sum(entry["skipped"] for entry in entries),
        "seconds": sum(entry["samples"] for entry in entries) / plan["sample_rate"],
        "shards": entries,
    }


def _joint_bytes(joint: Joint) -> bytes:
    kernel, bias = (np.asarray(array, np.float32) for array in joint)
    return dump_arrays({"kernel": kernel, "bias": bias})


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
