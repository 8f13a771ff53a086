"""Ogg files: their pages, and the chain of streams that these make."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tf_rnnt_kd.data.containers.streams import Damaged, Foreign, Stream, is_padding, read_at

_HEADER = 27
_BEGINS, _ENDS = 2, 4  # flags of a page
_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")  # of libsndfile
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    start: int
    stop: int
    flags: int
    serial: int
    number: int
    begin: bytes  # of its content


def find_ogg_streams(file: BinaryIO, size: int) -> list[Stream] | Foreign:
    """The streams of a file, one after the other; what has several at once, or other codecs, is FFmpeg's.

    Raises:
      Damaged: pages are missing, cut off or altered, or the last one does not end its stream.
    """
    streams: list[Stream] = []
    last: _Page | None = None
    for page in _pages(file, size):
        begins = bool(page.flags & _BEGINS)
        if begins and last is not None and last.flags & _BEGINS and last.serial != page.serial:
            return Foreign("ogg", "Ogg of several streams at once")
        if begins:
            _check_ended(last)
            if not page.begin.startswith(_CODECS):
                return Foreign("ogg", "Ogg of another codec")
            streams.append(Stream(page.start, page.stop))
        elif last is None or page.serial != last.serial or page.number != (last.number + 1) % (1 << 32):
            raise Damaged(f"pages are missing before byte {page.start}")
        streams[-1] = streams[-1]._replace(stop=page.stop)
        last = page
    _check_ended(last)
    return streams if len(streams) > 1 else [Stream(0, size)]


def _check_ended(page: _Page | None) -> None:
    if page is not None and not page.flags & _ENDS:
        raise Damaged(f"it is cut off, its stream has no end at byte {page.stop}")


def _pages(file: BinaryIO, size: int) -> Iterator[_Page]:
    at = 0
    while at < size:
        header = read_at(file, at, _HEADER)
        if header[:4] != b"OggS":
            if is_padding(read_at(file, at, 1 << 16)):
                return
            raise Damaged(f"what begins at byte {at} is no page of Ogg")
        lacing = file.read(header[26]) if len(header) == _HEADER else b""
        content = file.read(sum(lacing))
        if len(header) < _HEADER or len(lacing) < header[26] or len(content) < sum(lacing):
            raise Damaged("it is cut off in its last page")
        flags, _, serial, number, crc = struct.unpack("<xBQIII", header[4:26])
        if crc != _crc(header[:22] + bytes(4) + header[26:] + lacing + content):
            raise Damaged(f"the page at byte {at} was altered")
        stop = at + _HEADER + len(lacing) + len(content)
        yield _Page(at, stop, flags, serial, number, content[:8])
        at = stop


def _crc(content: bytes) -> int:
    """Ogg's CRC: zlib's polynomial with the bits the other way round, from 0."""
    reflected = zlib.crc32(content.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED), "big")
