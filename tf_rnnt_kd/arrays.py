"""Arrays of ours in `.npz` files, of which nothing is unpacked before it is known to be what was asked for."""

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

from tf_rnnt_kd import files

_ENDING = ".npy"


class Array(NamedTuple):
    """What an array has to be.

    Attributes:
      dtype: its name; "bytes" for byte strings of any length.
      shape: sizes; a name stands for any size, the same wherever it comes.
    """

    dtype: str
    shape: tuple[int | str, ...]


def dump_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an `.npz`; equal arrays give equal bytes (NumPy writes no time stamps)."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_arrays(
    path: str,
    wanted: Mapping[str, Array],
    *,
    sha256: str | None = None,
    remedy: str = files.RENEW,
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` that was written uncompressed.

    The headers are compared with `wanted` first: what is then made is no larger than the file, whatever the file says.

    Args:
      path: of the file.
      wanted: all its arrays, by name.
      sha256: of the file, where it is known.
      remedy: what the reader of an error is told to do.

    Raises:
      files.Missing: there is no file.
      files.Damaged: it has another sha256, is no such file, holds other arrays, or a floating one that is not finite.
    """
    with files.opened(path, remedy) as file:
        if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise files.Damaged(path, "its sha256 is not the one that was noted", remedy)
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, wanted)
                _check_headers(archive, wanted)
                return {name: _read(archive, name) for name in wanted}
        except _Unfit as error:
            raise files.Damaged(path, str(error), remedy) from None
        except Exception as error:  # zip, struct, tokenize, memory and OS errors all mean one thing here
            what = f"it cannot be read ({str(error).partition(chr(10))[0][:200]})"
            raise files.Damaged(path, what, remedy) from error


class _Unfit(Exception):
    """An archive of other arrays; says which."""


def _check_members(archive: zipfile.ZipFile, wanted: Mapping[str, Array]) -> None:
    found = [member.filename for member in archive.infolist()]
    expected = [name + _ENDING for name in wanted]
    if sorted(found) != sorted(expected):
        odd = sorted({*found} ^ {*expected}) or sorted(name for name in {*found} if found.count(name) > 1)
        raise _Unfit(f"it has {len(found)} arrays, {len(expected)} are expected, and differs in {odd[0][:80]!r}")
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _Unfit(f"{member.filename} is compressed, which this program never writes")
    if sum(member.file_size for member in archive.infolist()) > archive.fp.seek(0, io.SEEK_END):
        raise _Unfit("it says to hold more than it has bytes")


def _check_headers(archive: zipfile.ZipFile, wanted: Mapping[str, Array]) -> None:
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in wanted.items():
        with archive.open(name + _ENDING) as file:
            found_shape, is_fortran, found = _read_header(file)
            num_bytes = archive.getinfo(name + _ENDING).file_size - file.tell()
        named = "bytes" if found.kind == "S" else found.name
        if named != dtype or found.byteorder == ">" or is_fortran and len(found_shape) > 1:
            raise _Unfit(f"{name} is {found.str}, expected is {dtype}")
        expected = shape
        if len(found_shape) == len(shape):
            given = zip(shape, found_shape, strict=True)
            expected = tuple(sizes.setdefault(size, n) if isinstance(size, str) else size for size, n in given)
        if found_shape != expected:
            raise _Unfit(f"{name} has shape {found_shape}, expected is {expected}")
        if math.prod(found_shape) * found.itemsize != num_bytes:
            raise _Unfit(f"{name} of shape {found_shape} has {num_bytes} bytes")


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise _Unfit(f"an array has version {version}, which this program never writes")
    return read[version](file)


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name + _ENDING) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise _Unfit(f"{name} goes on after its end")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _Unfit(f"{name} holds values that are not finite")
    return array
