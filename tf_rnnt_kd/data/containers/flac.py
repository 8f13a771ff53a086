"""FLAC files: where each stream begins, and how many samples its last frame says it has."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tf_rnnt_kd.data.containers.streams import Damaged, Stream, read_at

_MARKER = b"fLaC"
_INFO_HEADERS = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # of the first block, which may be the last one
_INFO_BYTES = 34
_BLOCK = 1 << 20  # bytes read at once
_TAILS = (1 << 16, 1 << 22)  # where the last frame is looked for; no frame is longer
_FRAME_HEADER = 16  # bytes at most
_CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 2, 2, 2, 0, 0, 0, 0, 0)  # by a frame's code; 8 to 10 are ways to store a pair
_HERTZ = dict(enumerate((88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000), start=1))


class _Info(NamedTuple):
    block_size: int  # of a stream whose blocks have one size
    rate: int
    channels: int
    total: int  # samples; 0 where the encoder did not know


def find_flac_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The streams of a file: several where files were joined.

    A stream of unknown length, as encoders leave it in a pipe, gets a header with its length.

    Raises:
      Damaged: a stream ends before or after the sample that its header gives.
    """
    starts = list(_find_markers(file))
    if not starts:
        raise Damaged("its header is damaged")
    if len(starts) == 1:
        return [_stream(file, starts[0], size, is_alone=True)]
    return [_stream(file, *ends, is_alone=False) for ends in zip(starts, [*starts[1:], size], strict=True)]


def _find_markers(file: BinaryIO) -> Iterator[int]:
    overlap, at = b"", 0
    while block := read_at(file, at, _BLOCK):
        text = overlap + block
        place = text.find(_MARKER)
        while place >= 0:
            if text[place + 4 : place + 8] in _INFO_HEADERS:
                yield at - len(overlap) + place
            place = text.find(_MARKER, place + 1)
        overlap, at = text[-7:], at + len(block)


def _stream(file: BinaryIO, start: int, stop: int, *, is_alone: bool) -> Stream:
    head = read_at(file, start, 8 + _INFO_BYTES)
    if len(head) < 8 + _INFO_BYTES:
        raise Damaged("it is cut off in its header")
    info = _parse_info(head[8:])
    ends = _frame_ends(file, _first_frame(file, start, stop), stop, info)
    if not ends:
        raise Damaged("it has no frame that fits its header" if info.total else "it has no samples")
    if info.total in ends:
        return Stream(0 if is_alone else start, stop)  # with its tags, as it is
    if info.total:
        raise Damaged(f"its header counts {info.total} samples, but its last frame ends at {ends[0]}")
    counted = struct.pack(">Q", struct.unpack(">Q", head[18:26])[0] | ends[0])
    return Stream(start + 26, stop, head[:18] + counted)


def _parse_info(block: bytes) -> _Info:
    _, block_size = struct.unpack(">HH", block[:4])
    packed = struct.unpack(">Q", block[10:18])[0]
    return _Info(block_size, packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1)


def _first_frame(file: BinaryIO, start: int, stop: int) -> int:
    at, is_last = start + 4, False
    while not is_last:
        header = read_at(file, at, 4)
        if len(header) < 4:
            raise Damaged("it is cut off in its header")
        is_last = bool(header[0] & 0x80)
        at += 4 + int.from_bytes(header[1:], "big")
    return min(at, stop)


def _frame_ends(file: BinaryIO, first: int, stop: int, info: _Info) -> list[int]:
    """The sample after each frame that begins in the last part of the stream, the last one first."""
    for tail in _TAILS:
        begin = max(first, stop - tail)
        content = read_at(file, begin, stop - begin)
        ends = []
        place = content.rfind(b"\xff")
        while place >= 0:
            end = _parse_frame(content[place : place + _FRAME_HEADER], info)
            if end is not None:
                ends.append(end)
            place = content.rfind(b"\xff", 0, place)
        if ends or begin == first:
            return ends
    return []


def _parse_frame(header: bytes, info: _Info) -> int | None:
    """The sample after a frame, or None where the bytes are no header of this stream's frames."""
    if len(header) < 6 or header[1] not in (0xF8, 0xF9) or header[3] & 1:
        return None
    if _CHANNELS[header[3] >> 4] != info.channels or _HERTZ.get(header[2] & 15, info.rate) != info.rate:
        return None
    number, at = _coded_number(header)
    block_size, at = _block_size(header, at)
    at += {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if number is None or not block_size or at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    first = number if header[1] == 0xF9 else number * info.block_size
    return first + block_size


def _coded_number(header: bytes) -> tuple[int | None, int]:
    """The frame's or sample's number, coded like a character in UTF-8, and the place after it."""
    lead = header[4]
    if lead < 0x80:
        return lead, 5
    extra = next((n for n in range(1, 7) if not lead >> (6 - n) & 1), 0) if lead >= 0xC0 else 0
    following = header[5 : 5 + extra]
    if not extra or any(byte >> 6 != 2 for byte in following):
        return None, 5
    number = lead & (1 << (6 - extra)) - 1
    for byte in following:
        number = number << 6 | byte & 0x3F
    return number, 5 + extra


def _block_size(header: bytes, at: int) -> tuple[int, int]:
    code = header[2] >> 4
    if code in (6, 7):
        length = code - 5
        return int.from_bytes(header[at : at + length], "big") + 1, at + length
    if code >= 8:
        return 256 << (code - 8), at
    return {0: 0, 1: 192}.get(code, 144 << code), at


def _make_crc8() -> bytes:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte << 1 ^ (0x07 if byte & 0x80 else 0)) & 0xFF
        table.append(byte)
    return bytes(table)


_CRC8 = _make_crc8()


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc = _CRC8[crc ^ byte]
    return crc
