"""One shard of a record set with its index, and how files of a set get their names: whole, or not at all."""

import contextlib
import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data import schema
from tf_rnnt_kd.errors import UserError

MANIFEST = "manifest.json"

# TFRecord framing: length (8) and its checksum (4) before the payload, the payload's checksum (4) after it.
_FRAME_BYTES = 16
# How NumPy and zipfile fail on bytes that are no archive, or a broken one.
_UNREADABLE = (ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile)


def index_path(shard: str) -> str:
    """The index beside a shard."""
    return shard.removesuffix(".tfrecord") + ".index.npz"


def is_finished(path: str) -> bool:
    """Whether the shard is there with its index and has the size that the index says."""
    try:
        return os.path.getsize(path) == int(load_arrays(index_path(path))["shard_bytes"])
    except (UserError, OSError, KeyError):
        return False  # whatever is wrong with it, writing it again mends it


def write_shard(path: str, records: Iterable[schema.Record], targets: schema.TargetsSpec | None) -> None:
    """Writes `records` to `path`, then the index beside it.

    Raises:
      ValueError: a record that does not fit `targets`.
      OSError: ENOSPC when the disk is full.
    """
    with replacing(path) as temporary:
        with tf.io.TFRecordWriter(temporary) as writer:
            rows = []
            for record in records:
                schema.check_record(record, targets)
                rows.append(_write_record(writer, record, path))
            with _disk_errors(path):
                writer.flush()
        arrays = _index_arrays(rows)
        if os.path.getsize(temporary) != arrays["shard_bytes"]:
            raise OSError(errno.EIO, "fewer bytes on disk than written", path)
        sha256 = sha256_of_file(temporary)
    write_atomically(index_path(path), dump_arrays({**arrays, "shard_sha256": np.bytes_(sha256)}))


def _write_record(writer: tf.io.TFRecordWriter, record: schema.Record, path: str) -> tuple:
    payload = schema.encode_record(record)
    with _disk_errors(path):
        writer.write(payload)
    return len(payload) + _FRAME_BYTES, len(record.samples), len(record.labels), record.score, record.id.encode()


def _index_arrays(rows: list[tuple]) -> dict[str, np.ndarray]:
    num_bytes, num_samples, num_labels, scores, ids = zip(*rows, strict=True) if rows else [()] * 5
    ends = np.cumsum(np.array(num_bytes, np.int64), dtype=np.int64)
    return {
        "offset": ends - np.array(num_bytes, np.int64),
        "num_bytes": np.array(num_bytes, np.int64),
        "num_samples": np.array(num_samples, np.int32),
        "num_labels": np.array(num_labels, np.int32),
        "score": np.array(scores, np.float32),
        "id": np.array(ids, np.bytes_),
        "shard_bytes": np.int64(sum(num_bytes)),
    }


def describe_shard(path: str, num_items: int) -> dict[str, Any]:
    """A shard's entry in the manifest, from its index; `num_items` is what it was made from."""
    index = load_arrays(index_path(path))
    return {
        "name": os.path.basename(path),
        "num_bytes": int(index["shard_bytes"]),
        "sha256": index["shard_sha256"].item().decode(),
        "index_sha256": sha256_of_file(index_path(path)),
        "utterances": len(index["offset"]),
        "skipped": num_items - len(index["offset"]),
        "samples": int(index["num_samples"].sum(dtype=np.int64)),
    }


def check_size(path: str, num_bytes: int) -> None:
    """Raises UserError unless the file is there and has `num_bytes`."""
    if not os.path.exists(path):
        raise missing(path)
    size = os.path.getsize(path)
    if size != num_bytes:
        raise damaged(path, f"it has {size} bytes, the manifest says {num_bytes}")


def load_arrays(path: str, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Reads what `dump_arrays` made.

    Raises:
      UserError: the file is missing, is no such file, or has not the given sha256.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise missing(path) from None
    if sha256 is not None and sha256_of(content) != sha256:
        raise damaged(path, "its sha256 differs from the manifest's")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except _UNREADABLE as error:
        raise damaged(path, "it is not readable") from error


def dump_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an `.npz`; equal arrays give equal bytes (NumPy writes no time stamps)."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def load_json(path: str) -> dict[str, Any]:
    """Reads what `dump_json` made.

    Raises:
      UserError: the file is missing, or holds no such thing.
    """
    try:
        with open(path, encoding="ascii") as file:
            content = json.load(file)
    except (ValueError, OSError) as error:
        raise damaged(path, "it is not readable") from error
    if not isinstance(content, dict):
        raise damaged(path, "it is not readable")
    return content


def dump_json(content: dict[str, Any]) -> bytes:
    """JSON; equal contents give equal bytes."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode("ascii")


def dump_signed(content: dict[str, Any]) -> bytes:
    """JSON that also holds the sha256 of the rest of it."""
    return dump_json({**content, "sha256": sha256_of(dump_json(content))})


def damaged(path: str, what: str) -> UserError:
    """The error for a file whose content is not what was written; what it advises renews that file alone."""
    unwanted = "it" if os.path.basename(path) == MANIFEST else f"it and {MANIFEST} beside it"
    return UserError(f"{path} is damaged: {what}; delete {unwanted}, and run the command that wrote it again")


def missing(path: str) -> UserError:
    """The error for a file that was there when the set was finished."""
    return UserError(f"{path} is missing: delete {MANIFEST} beside it, and run the command that wrote it again")


def sha256_of(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: str, content: bytes) -> None:
    """Makes `path` hold `content`, or leaves it as it was."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Gives a temporary name beside `path`; on success its file becomes `path`, durably, else it is removed."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        _flush_to_disk(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def remove_temporaries(folder: str) -> None:
    """Removes what killed writers left; nobody else may be writing."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(".tmp"):
            os.remove(os.path.join(folder, name))


def _flush_to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    """TensorFlow reports a full disk by an exception of its own; callers expect the system's."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from error
