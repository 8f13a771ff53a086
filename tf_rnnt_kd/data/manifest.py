"""What a record set says of itself: the declared types of `plan.json` and `manifest.json`, and what has to agree."""

import os
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from tf_rnnt_kd import files
from tf_rnnt_kd.data import schema
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored

MANIFEST = "manifest.json"

_REMEDY = "delete it, and run the command that wrote it again"


@with_config(files.CLOSED)
class ShardEntry(TypedDict):
    """One shard; `utterances` and `skipped` together are the items it was made from."""

    name: str
    num_bytes: files.Count
    sha256: files.Sha256
    index_sha256: files.Sha256
    utterances: files.Count
    skipped: files.Count
    samples: files.Count


@with_config(files.CLOSED)
class Targets(TypedDict):
    """`schema.TargetsSpec`, as JSON."""

    codec: Literal[schema.CODECS]
    dtype: Literal[schema.DTYPES]
    width: Annotated[int, Field(ge=0, le=2**20)]
    vocabulary_size: Annotated[int, Field(ge=1, le=2**24)]
    blank_id: Literal[0]
    teacher_hash: files.Name
    frame_ms: Annotated[int, Field(ge=1, le=10_000)]


@with_config(files.CLOSED)
class Features(TypedDict):
    """What `features.stored.describe` gives."""

    dtype: Literal[stored.DTYPES]
    front_end: dict[str, int | float | str | list[int | float]]


@with_config(files.OPEN)
class Versioned(TypedDict):
    """What is looked at first: another version may hold anything else."""

    schema_version: int


@with_config(files.OPEN)
class Plan(Versioned):
    """What a set is, before it is written; whoever writes it may add to it."""

    tokenizer_hash: files.Sha256 | None
    sample_rate: Annotated[int, Field(ge=1, le=10**6)]
    targets: Targets | None
    source: str | dict[str, Any]
    items: files.Positive
    items_sha256: files.Sha256
    records_per_shard: files.Positive
    joint_sha256: files.Sha256 | None
    features: NotRequired[Features]


@with_config(files.OPEN)
class Manifest(Plan):
    """A finished set; whoever wrote it may have added to it."""

    utterances: files.Count
    skipped: files.Count
    seconds: files.Amount
    shards: list[ShardEntry]
    sha256: files.Sha256


def shard_name(position: int, count: int) -> str:
    """The name of a shard of so many."""
    return f"records-{position:05d}-of-{count:05d}.tfrecord"


def count_shards(plan: Plan) -> int:
    """How many shards a set has."""
    return -(-plan["items"] // plan["records_per_shard"])


def read_manifest(folder: str) -> Manifest:
    """The manifest of a finished set, of this version and in agreement with itself.

    Raises:
      UserError: there is none, it is of another version, or it is not what was written.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        version = files.read_json(path, Versioned, remedy=_REMEDY)["schema_version"]
    except files.Missing:
        raise UserError(
            f"{folder} has no {MANIFEST}, so it is no finished record set: run `prepare` or `label`, which write them"
        ) from None
    if version != schema.SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version!r}, this program reads {schema.SCHEMA_VERSION}: "
            f"delete {folder} and run the command that wrote it again"
        )
    manifest = files.read_signed(path, Manifest, remedy=_REMEDY)
    wrong = _find_contradiction(manifest)
    if wrong:
        raise files.Damaged(path, wrong, _REMEDY)
    return manifest


def _find_contradiction(manifest: Manifest) -> str:
    """In words; empty if there is none."""
    entries, count, size = manifest["shards"], count_shards(manifest), manifest["records_per_shard"]
    if len(entries) != count:
        return f"shards lists {len(entries)}, {manifest['items']} items make {count}"
    for i, entry in enumerate(entries):
        if entry["name"] != shard_name(i, count):
            return f"shards.{i}.name is {entry['name'][:80]!r}, it should be {shard_name(i, count)}"
        if entry["utterances"] + entry["skipped"] != min(size, manifest["items"] - i * size):
            return f"shards.{i} has not the items that it was made from"
    return _find_wrong_sum(manifest) or _find_wrong_targets(manifest)


def _find_wrong_sum(manifest: Manifest) -> str:
    sums = {name: sum(entry[name] for entry in manifest["shards"]) for name in ("utterances", "skipped", "samples")}
    expected = {
        "utterances": sums["utterances"],
        "skipped": sums["skipped"],
        "seconds": sums["samples"] / manifest["sample_rate"],
    }
    return ", ".join(
        f"{name} is {manifest[name]}, its shards make {value}"
        for name, value in expected.items()
        if manifest[name] != value
    )


def _find_wrong_targets(manifest: Manifest) -> str:
    targets = manifest["targets"]
    factored = targets is not None and targets["codec"] == "factored"
    if factored != (manifest["joint_sha256"] is not None):
        return "codec factored has a joint_sha256, and nothing else has"
    if factored and targets["width"] < 1:
        return "targets.width is 0"
    return ""
