"""Containers that only FFmpeg decodes: whether all is there that their sizes promise, and no second file is joined."""

import struct
from collections.abc import Callable
from typing import BinaryIO

from tf_rnnt_kd.data.containers.streams import Damaged, Foreign, is_padding, read_at

_TAIL = 1 << 16
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def check_whole(file: BinaryIO, size: int, form: Foreign) -> None:
    """Raises Damaged where a file is shorter, or longer, than its container says."""
    find_end = _FIND_END.get(form.demuxer)
    end = find_end(file, size) if find_end else None
    if end is None:  # the container does not say
        return
    if end > size:
        raise Damaged(f"it is cut off, {size} of {end} bytes are there")
    if size - end > _TAIL or not is_padding(read_at(file, end, size - end)):
        raise Damaged(f"{size - end} bytes follow its end, as where files were joined", "split or convert the file")


def _end_of_mp4(file: BinaryIO, size: int) -> int | None:
    at, names = 0, set()
    while at < size:
        header = read_at(file, at, 16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length == 0 and any(name):
            return None  # until the end of the file
        if length < 8 or (name == b"ftyp" and name in names):
            return at
        names.add(name)
        at += length
    return at


def _end_of_matroska(file: BinaryIO, size: int) -> int | None:
    start, length = _element(file, 0, _EBML)
    if length is None:
        return None
    start, length = _element(file, start + length, _SEGMENT)
    return None if length is None else start + length


def _element(file: BinaryIO, at: int, name: bytes) -> tuple[int, int | None]:
    """Where an element's content begins, and its length, None where that is unknown or there is no such element."""
    header = read_at(file, at, len(name) + 8)
    coded = header[len(name) :]
    if not header.startswith(name) or not coded or not coded[0]:
        return at, None
    width = 9 - coded[0].bit_length()
    length = int.from_bytes(coded[:width], "big") & (1 << 7 * width) - 1
    return at + len(name) + width, None if length == (1 << 7 * width) - 1 else length


def _end_of_avi(file: BinaryIO, size: int) -> int | None:
    at = 0
    while at < size:
        header = read_at(file, at, 12)
        if header[:4] != b"RIFF" or (at and header[8:] == b"AVI "):
            return at
        length = int.from_bytes(header[4:8], "little")
        if length in (0, 0xFFFFFFFF):
            return None
        at += 8 + length + length % 2
    return at


def _end_of_caf(file: BinaryIO, size: int) -> int | None:
    at = 8
    while at < size:
        header = read_at(file, at, 12)
        if len(header) < 12 or not any(header[:4]):
            return at
        length = struct.unpack(">q", header[4:])[0]
        if length < 0:
            return None
        at += 12 + length
    return at


def _end_of_asf(file: BinaryIO, size: int) -> int | None:
    del size
    head = read_at(file, 0, _TAIL)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or len(head) < at + 92:
        return None
    is_broadcast = head[at + 88] & 1
    return None if is_broadcast else struct.unpack("<Q", head[at + 40 : at + 48])[0]


_FIND_END: dict[str, Callable[[BinaryIO, int], int | None]] = {
    "mov": _end_of_mp4,
    "matroska": _end_of_matroska,
    "avi": _end_of_avi,
    "caf": _end_of_caf,
    "asf": _end_of_asf,
}
