"""One shard of a record set with its index, which knows the shard: its name, its size, and each of its records."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from tf_rnnt_kd import files
from tf_rnnt_kd.arrays import Array, dump_arrays, read_arrays
from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.manifest import MANIFEST, ShardEntry

# TFRecord framing: length (8) and its checksum (4) before the payload, the payload's checksum (4) after it.
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_FRAME_BYTES = _HEADER_BYTES + _FOOTER_BYTES

# N: records of the shard.
_INDEX = {
    "offset": Array("int64", ("N",)),
    "num_bytes": Array("int64", ("N",)),
    "num_samples": Array("int32", ("N",)),
    "num_labels": Array("int32", ("N",)),
    "score": Array("float32", ("N",)),
    "fingerprint": Array("int64", ("N",)),
    "id": Array("bytes", ("N",)),
    "edges": Array("uint8", (_FRAME_BYTES,)),
    "shard_bytes": Array("int64", ()),
    "shard_name": Array("bytes", ()),
    "shard_sha256": Array("bytes", ()),
}


def index_path(shard: str) -> str:
    """The index beside a shard."""
    return shard.removesuffix(".tfrecord") + ".index.npz"


def is_finished(path: str) -> bool:
    """Whether the shard is there with its index and is the one that the index says."""
    try:
        check_shard(path, read_index(path))
    except (files.Missing, files.Damaged):
        return False  # whatever is wrong with it, writing it again mends it
    return True


def write_shard(path: str, records: Iterable[schema.Record], targets: schema.TargetsSpec | None) -> None:
    """Writes `records` to `path`, then the index beside it.

    Raises:
      ValueError: a record that does not fit `targets`.
      OSError: ENOSPC when the disk is full.
    """
    with files.replacing(path) as temporary:
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
        of_shard = {
            "edges": _read_edges(temporary),
            "shard_name": np.bytes_(os.path.basename(path)),
            "shard_sha256": np.bytes_(files.sha256_of_file(temporary)),
        }
    files.write_atomically(index_path(path), dump_arrays({**arrays, **of_shard}))


def _write_record(writer: tf.io.TFRecordWriter, record: schema.Record, path: str) -> tuple:
    payload = schema.encode_record(record)
    with _disk_errors(path):
        writer.write(payload)
    about = len(record.samples), len(record.labels), record.score, schema.fingerprint(payload), record.id.encode()
    return len(payload) + _FRAME_BYTES, *about


def _index_arrays(rows: list[tuple]) -> dict[str, np.ndarray]:
    num_bytes, num_samples, num_labels, scores, fingerprints, ids = zip(*rows, strict=True) if rows else [()] * 6
    ends = np.cumsum(np.array(num_bytes, np.int64), dtype=np.int64)
    return {
        "offset": ends - np.array(num_bytes, np.int64),
        "num_bytes": np.array(num_bytes, np.int64),
        "num_samples": np.array(num_samples, np.int32),
        "num_labels": np.array(num_labels, np.int32),
        "score": np.array(scores, np.float32),
        "fingerprint": np.array(fingerprints, np.int64),
        "id": np.array(ids, np.bytes_),
        "shard_bytes": np.int64(sum(num_bytes)),
    }


def describe_shard(path: str, num_items: int) -> ShardEntry:
    """A shard's entry in the manifest, from its index; `num_items` is what it was made from."""
    index = read_index(path)
    return {
        "name": os.path.basename(path),
        "num_bytes": int(index["shard_bytes"]),
        "sha256": index["shard_sha256"].item().decode(),
        "index_sha256": files.sha256_of_file(index_path(path)),
        "utterances": len(index["offset"]),
        "skipped": num_items - len(index["offset"]),
        "samples": int(index["num_samples"].sum(dtype=np.int64)),
    }


def read_index(path: str, entry: ShardEntry | None = None) -> dict[str, np.ndarray]:
    """The arrays of the index of a shard, of which each is what it can be.

    Args:
      path: of the shard.
      entry: what the manifest says of it, where there is a manifest.

    Raises:
      files.Missing: there is no index.
      files.Damaged: it is none, it is of another shard, or it is not the one of the manifest.
    """
    where = index_path(path)
    index = read_arrays(where, _INDEX, sha256=entry and entry["index_sha256"], remedy=remedy(where))
    wrong = _find_wrong(index)
    if not wrong and index["shard_name"].item() != os.path.basename(path).encode():
        wrong = f"it is the index of {index['shard_name'].item()[:80]!r}"
    if not wrong and entry and not _agree(index, entry):
        wrong = "it does not say of its shard what the manifest says"
    if wrong:
        raise damaged(where, wrong)
    return index


def _find_wrong(index: dict[str, np.ndarray]) -> str:
    """What no writer puts into an index, in words; empty for nothing."""
    size, offset, num_bytes = int(index["shard_bytes"]), index["offset"], index["num_bytes"]
    if not 0 <= size < 2**53 or np.any(num_bytes <= _FRAME_BYTES) or np.any(num_bytes > size):
        return f"no shard of {size} bytes has records of so many bytes"
    starts = np.append(offset, size)
    if starts[0] or np.any(starts < 0) or np.any(starts > size) or np.any(starts[:-1] + num_bytes != starts[1:]):
        return "its records do not follow each other from the start of the shard to its end"
    num_samples, num_labels = index["num_samples"], index["num_labels"].astype(np.int64)
    if np.any(num_samples < 0) or np.any(num_labels < 0) or np.any(4 * num_labels > num_bytes):
        return "its records have no such numbers of samples or labels"
    return ""


def _agree(index: dict[str, np.ndarray], entry: ShardEntry) -> bool:
    return entry == {
        **entry,
        "num_bytes": int(index["shard_bytes"]),
        "sha256": index["shard_sha256"].item().decode("ascii", "replace"),
        "utterances": len(index["offset"]),
        "samples": int(index["num_samples"].sum(dtype=np.int64)),
    }


def check_shard(path: str, index: dict[str, np.ndarray]) -> None:
    """Compares the size and both ends of a shard with its index: a few bytes are read.

    Raises:
      files.Missing: there is no shard.
      files.Damaged: it has another size, or is another one of that size.
    """
    wanted = int(index["shard_bytes"])
    try:
        size = os.path.getsize(path)
    except OSError:
        raise missing(path) from None
    if size != wanted:
        raise damaged(path, f"it has {size} bytes, the manifest says {wanted}")
    if np.any(_read_edges(path) != index["edges"]):
        raise damaged(path, "it is another shard of the same size: copied, exchanged or written anew")


def _read_edges(path: str) -> np.ndarray:
    """[16] uint8: the length of the first record and its checksum, then the checksum of the last; zeros if empty."""
    with files.opened(path, remedy(path)) as file:
        first = file.read(_HEADER_BYTES)
        if first:
            file.seek(-_FOOTER_BYTES, os.SEEK_END)
        return np.frombuffer((first + file.read(_FOOTER_BYTES)).ljust(_FRAME_BYTES, b"\0"), np.uint8)


def damaged(path: str, what: str) -> files.Damaged:
    """The error for a file whose content is not what was written; what it advises renews that file alone."""
    return files.Damaged(path, what, remedy(path))


def missing(path: str) -> files.Missing:
    """The error for a file that was there when the set was finished."""
    return files.Missing(path, remedy(path))


def remedy(path: str) -> str:
    """What is advised where a file of a set is damaged or missing."""
    unwanted = [MANIFEST + " beside it"] if os.path.basename(path) != MANIFEST else []
    unwanted = ["it", *unwanted] if os.path.lexists(path) else unwanted
    return f"delete {' and '.join(unwanted)}, and run the command that wrote it again"


@contextlib.contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    """TensorFlow reports a full disk by an exception of its own; callers expect the system's."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from error
