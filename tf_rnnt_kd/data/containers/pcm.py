"""Files that say how many bytes of samples they hold: WAV, RF64, W64, AIFF, AU and NIST SPHERE."""

import struct
from typing import BinaryIO, NamedTuple

from tf_rnnt_kd.data.containers.streams import Damaged, Stream, is_padding, read_at

_UNKNOWN = 0x7FFFF000  # from here on, a 32-bit size that the file does not have was written before the end was known
_UNKNOWN_64 = 1 << 62
_SAMPLES = (b"data", b"SSND")  # names of the chunk that has them
_FILES = (b"RIFF", b"RIFX", b"RF64", b"FORM")  # with which a file begins
_TAIL = 1 << 16  # more padding than this follows no samples
_CHUNK = struct.calcsize("4sI")
_W64_CHUNK = 24  # an identifier of 16 bytes, a size of 8 that counts both


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of its content
    size: int


def find_chunk_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The streams of a file of WAV, RF64 or AIFF, which consist of chunks: several where files were joined.

    Raises:
      Damaged: it ends before its samples do, or goes on after them with what is no chunk; or the header of a WAV
        contradicts itself.
    """
    streams, start = [], 0
    while start < size:
        kind = read_at(file, start, 4)
        stream = _chunk_stream(file, start, size, "<" if kind in (b"RIFF", b"RF64") else ">")
        streams.append(stream)
        start = stream.stop
    return streams


def _chunk_stream(file: BinaryIO, begin: int, size: int, order: str) -> Stream:
    chunk = _find_samples(file, begin, size, order)
    if _is_unknown(chunk.size, size - chunk.start):
        return Stream(begin, size)
    if chunk.size == 0:
        return _unsized(file, begin, chunk, order, size)
    _check_present(chunk.size, size - chunk.start)
    return Stream(begin, _end_of_chunks(file, chunk, order, size))


def _find_samples(file: BinaryIO, begin: int, size: int, order: str) -> _Chunk:
    """The chunk that has the samples, with its true size where RF64 says it elsewhere."""
    at, long_size = begin + 12, 0xFFFFFFFF
    while (chunk := _read_chunk(file, at, order)) is not None and chunk.name not in _SAMPLES:
        if chunk.start + chunk.size > size:
            break
        if chunk.name == b"ds64":
            long_size = int.from_bytes(read_at(file, chunk.start + 8, 8), "little")
        elif chunk.name == b"fmt ":
            _check_format(read_at(file, chunk.start, 16), order)
        at = _after(file, chunk)
    if chunk is None or chunk.name not in _SAMPLES:
        raise Damaged("it ends before its samples begin")
    return chunk._replace(size=long_size) if chunk.size == 0xFFFFFFFF else chunk


def _check_format(content: bytes, order: str) -> None:
    """Of plain samples, how many bytes they take in a second is said twice."""
    if len(content) < 16:
        raise Damaged("it ends before its samples begin")
    tag, _, rate, byte_rate, width, _ = struct.unpack(order + "HHIIHH", content)
    if tag in (1, 3) and byte_rate and byte_rate != rate * width:
        raise Damaged(f"its header contradicts itself, {rate} times {width} bytes a second are not {byte_rate}")


def _unsized(file: BinaryIO, begin: int, data: _Chunk, order: str, size: int) -> Stream:
    """A size of 0 means that there are no samples, or that nobody came back to say how many."""
    try:
        return Stream(begin, _end_of_chunks(file, data, order, size))
    except Damaged:
        head = read_at(file, begin, data.start - begin - 4) + struct.pack(order + "I", size - data.start)
        return Stream(data.start, size, head)


def _end_of_chunks(file: BinaryIO, data: _Chunk, order: str, size: int) -> int:
    """Where the chunks after the samples end: at the end of the file, or where another begins."""
    at = _after(file, data)
    while at < size:
        chunk = _read_chunk(file, at, order)
        if chunk is not None and chunk.name in _FILES:
            return at
        if chunk is None or not _is_name(chunk.name) or chunk.start + chunk.size > size:
            _check_rest(file, at, size, data.size)
            return size
        at = _after(file, chunk)
    return size


def find_w64_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The stream of a file of Sony Wave64."""
    at = _W64_CHUNK + 16
    while (header := read_at(file, at, _W64_CHUNK))[:4] != b"data":
        length = struct.unpack("<Q", header[16:])[0] if len(header) == _W64_CHUNK else 0
        if length < _W64_CHUNK:
            raise Damaged("it ends before its samples begin")
        at += -(-length // 8) * 8
    declared = int.from_bytes(header[16:], "little") - _W64_CHUNK
    return [_plain_stream(file, size, at + _W64_CHUNK, declared, is_known=declared < _UNKNOWN_64)]


def find_au_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The stream of a file of Sun's AU."""
    start, declared = struct.unpack(">II", read_at(file, 4, 8).ljust(8, b"\0"))
    return [_plain_stream(file, size, start, declared, is_known=not _is_unknown(declared, size - start))]


def find_sphere_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The stream of a NIST SPHERE file, which has its numbers as lines of text."""
    lines = read_at(file, 0, 1024).decode("latin-1").split("\n")
    numbers = {words[0]: words[2] for words in map(str.split, lines) if len(words) == 3}
    try:
        start = int(lines[1])
        samples, channels, width = (int(numbers[key]) for key in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError, IndexError):
        raise Damaged("its header does not say how many samples it has") from None
    if min(start, samples, channels, width) < 0:
        raise Damaged("its header has numbers below zero")
    return [_plain_stream(file, size, start, samples * channels * width, is_known=True)]


def _plain_stream(file: BinaryIO, size: int, start: int, declared: int, *, is_known: bool) -> Stream:
    """A file whose samples begin at `start` and are followed by nothing."""
    if not is_known:
        return Stream(0, size)
    _check_present(declared, size - start)
    _check_rest(file, start + declared, size, declared)
    return Stream(0, start + declared)


def _read_chunk(file: BinaryIO, at: int, order: str) -> _Chunk | None:
    header = read_at(file, at, _CHUNK)
    return _Chunk(header[:4], at + _CHUNK, struct.unpack(order + "I", header[4:])[0]) if len(header) == _CHUNK else None


def _after(file: BinaryIO, chunk: _Chunk) -> int:
    """Where the next chunk begins: chunks of odd size are followed by a zero, which some writers leave out."""
    end = chunk.start + chunk.size
    return end + (chunk.size % 2 == 1 and read_at(file, end, 1) == b"\0")


def _check_rest(file: BinaryIO, end: int, size: int, declared: int) -> None:
    if size - end > _TAIL or not is_padding(read_at(file, end, size - end)):
        raise Damaged(f"its header counts {declared} bytes of samples, and {size - end} that it does not count follow")


def _is_name(name: bytes) -> bool:
    return all(32 <= letter < 127 for letter in name)


def _is_unknown(declared: int, present: int) -> bool:
    return _UNKNOWN <= declared < 1 << 32 and declared > present


def _check_present(declared: int, present: int) -> None:
    if declared > present:
        raise Damaged(f"it is cut off, {max(present, 0)} of {declared} bytes of samples are there")
