"""Containers that only FFmpeg decodes: whether all is there that their sizes promise, and no second file is joined."""

import struct
from collections.abc import Callable
from typing import BinaryIO

from tf_rnnt_kd.data.containers.streams import Damaged, Foreign, is_padding, read_at

_TAIL = 1 << 16
_EBML = b"\x1aE\xdf\xa3"
_OPEN = (b"\x18S\x80g", b"\x1fC\xb6u")  # segment and cluster, whose length a live recording leaves open
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
    """Where the segment ends; of one that was written as it came, where its last element ends."""
    at, is_live = 0, False
    while at < size:
        name, start, length = _element(file, at)
        if name == _EBML and at and not is_live:
            return at
        if length is None and name in _OPEN:
            at, is_live = start, True
        elif length is None:
            return at if at + 12 < size else size + 1  # no element, or the begin of one
        else:
            at = start + length
    return at


def _element(file: BinaryIO, at: int) -> tuple[bytes, int, int | None]:
    """An element's name, where its content begins, and its length, None where that is open or there is no element."""
    header = read_at(file, at, 12)
    width = 9 - header[0].bit_length()
    name, coded = header[:width], header[width:]
    if width > 4 or not coded or not coded[0]:
        return b"", at, None
    digits = 9 - coded[0].bit_length()
    length = int.from_bytes(coded[:digits], "big") & (1 << 7 * digits) - 1
    is_known = len(coded) >= digits and length != (1 << 7 * digits) - 1
    return name, at + width + digits, length if is_known else None


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
