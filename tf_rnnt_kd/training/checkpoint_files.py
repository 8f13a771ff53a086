"""One checkpoint on disk, of which no flipped byte passes.

    ckpt-STEP.data      the bytes of all tensors, one after the other
    ckpt-STEP.json      written last: step, costs, and of every tensor name, shape, dtype and sha256; and its own sha256

The header vouches for the data: a checkpoint without a header does not exist.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.shards import dump_signed, remove_temporaries, replacing, write_atomically


class Damaged(Exception):
    """A checkpoint whose bytes are not those that were written."""


class Tensor(NamedTuple):
    """What the header says of a tensor, in the order of the data."""

    name: str
    shape: list[int]
    dtype: str
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Its part of the data."""
        return int(np.prod(self.shape, dtype=np.int64)) * tf.as_dtype(self.dtype).size


def find_steps(folder: str) -> list[int]:
    """Steps of the checkpoints in a folder, which need not exist."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(found[1]) for found in map(re.compile(r"ckpt-(\d+)\.json").fullmatch, names) if found)


def write_checkpoint(folder: str, step: int, names: Sequence[str], values: Sequence[np.ndarray], **about: Any) -> None:
    """Writes a checkpoint and reads it back, from the disk where the system allows; it exists when all of it is right.

    Args:
      folder: made if missing.
      step: of the run.
      names: of the tensors.
      values: of the tensors.
      **about: what else the header shall say, as JSON.

    Raises:
      Damaged: if what is read is not what was written.
      OSError: if it can't be written.
    """
    os.makedirs(folder, exist_ok=True)
    tensors = [
        Tensor(name, list(value.shape), value.dtype.name, hashlib.sha256(_bytes(value)).hexdigest())
        for name, value in zip(names, values, strict=True)
    ]
    header = dump_signed({**about, "step": step, "tensors": tensors})
    with replacing(data_path(folder, step)) as temporary:
        with open(temporary, "wb") as file:
            for value in values:
                file.write(_bytes(value))
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # or the check would read what the system still has in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _verify_data(temporary, tensors)
    write_atomically(header_path(folder, step), header)
    if read_header(folder, step)["tensors"] != tensors:
        raise Damaged("its header was not read back as it was written")


def read_header(folder: str, step: int) -> dict[str, Any]:
    """What the header of a checkpoint says; `tensors` as `Tensor`.

    Raises:
      Damaged: if it is missing or any byte of it was changed.
    """
    try:
        with open(header_path(folder, step), "rb") as file:
            content = file.read()
        header = json.loads(content)
        if content != dump_signed({key: value for key, value in header.items() if key != "sha256"}):
            raise Damaged("the sha256 of its header does not fit")
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f"its header can't be read: {error}") from error
    return {**header, "tensors": [Tensor(*tensor) for tensor in header["tensors"]]}


def verify_checkpoint(folder: str, step: int) -> dict[str, Any]:
    """Compares every byte of a checkpoint with its checksums; returns the header.

    Raises:
      Damaged: if it is incomplete, or any byte was changed.
    """
    header = read_header(folder, step)
    _verify_data(data_path(folder, step), header["tensors"])
    return header


def read_values(folder: str, step: int, tensors: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """The values of a verified checkpoint, one at a time."""
    with open(data_path(folder, step), "rb") as file:
        for tensor in tensors:
            value = np.frombuffer(file.read(tensor.num_bytes), tf.as_dtype(tensor.dtype).as_numpy_dtype)
            yield value.reshape(tensor.shape)


def remove_checkpoint(folder: str, step: int) -> None:
    """Removes a checkpoint, the header first."""
    for path in (header_path(folder, step), data_path(folder, step)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def clear_remains(folder: str) -> None:
    """Removes what killed writers left half written or half removed; nobody else may be writing."""
    if not os.path.isdir(folder):
        return
    remove_temporaries(folder)
    whole = {data_path(folder, step) for step in find_steps(folder)}
    for path in {entry.path for entry in os.scandir(folder) if entry.name.endswith(".data")} - whole:
        os.remove(path)


def header_path(folder: str, step: int) -> str:
    """Of the header."""
    return os.path.join(folder, f"ckpt-{step}.json")


def data_path(folder: str, step: int) -> str:
    """Of the tensors."""
    return os.path.join(folder, f"ckpt-{step}.data")


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _verify_data(path: str, tensors: Sequence[Tensor]) -> None:
    try:
        size, expected = os.path.getsize(path), sum(tensor.num_bytes for tensor in tensors)
        if size != expected:
            raise Damaged(f"it has {size} bytes of {expected}")
        with open(path, "rb") as file:
            for tensor in tensors:
                if hashlib.sha256(file.read(tensor.num_bytes)).hexdigest() != tensor.sha256:
                    raise Damaged(f"the sha256 of {tensor.name} does not fit")
    except OSError as error:
        raise Damaged(f"its data can't be read: {error}") from error
