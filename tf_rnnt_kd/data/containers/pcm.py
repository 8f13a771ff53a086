"""Files that say how many bytes of samples they hold: WAV, RF64, W64, AIFF, AU and NIST SPHERE."""

import struct
from typing import BinaryIO, NamedTuple

from tf_rnnt_kd.data.containers.streams import Damaged, Stream, is_padding, read_at

_UNKNOWN = 0x7FFFF000  # from here on, a 32-bit size that the file does not have was written before the end was known
_UNKNOWN_64 = 1 << 62
_TAIL = 1 << 16  # more padding than this follows no samples
_CHUNK = struct.calcsize("4sI")
_W64_CHUNK = 24  # an identifier of 16 bytes, a size of 8 that counts both


class _Chunk(NamedTuple):
    name: bytes
    start: int  # of its content
    size: int


def find_wav_streams(file: BinaryIO, start: int, size: int) -> list[Stream]:
    """The streams of a file that begins with RIFF, RIFX or RF64 at byte `start`: several where files were joined.

    Raises:
      Damaged: it ends before its samples do, or goes on after them with what is no chunk.
    """
    streams = []
    while start < size:
        stream = _wav_stream(file, start, size)
        streams.append(stream)
        start = stream.stop
    return streams


def _wav_stream(file: BinaryIO, begin: int, size: int) -> Stream:
    order = ">" if read_at(file, begin, 4) == b"RIFX" else "<"
    long_size = None
    at = begin + 12
    while True:
        chunk = _read_chunk(file, at, order)
        if chunk is None or (chunk.name != b"data" and chunk.start + chunk.size > size):
            raise Damaged("it ends before its samples begin")
        if chunk.name == b"data":
            break
        if chunk.name == b"ds64":
            long_size = struct.unpack("<Q", read_at(file, chunk.start + 8, 8))[0]
        at = _after(file, chunk)
    declared = chunk.size
    if declared == 0xFFFFFFFF and long_size is not None:
        declared = long_size
    if _is_unknown(declared, size - chunk.start):
        return Stream(begin, size)
    if declared == 0:
        return _unsized(file, begin, chunk, order, size)
    _check_present(declared, size - chunk.start)
    return Stream(begin, _end_of_chunks(file, chunk._replace(size=declared), order, size))


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
        if chunk is not None and chunk.name in (b"RIFF", b"RIFX", b"RF64"):
            return at
        if chunk is None or not _is_name(chunk.name) or chunk.start + chunk.size > size:
            if size - at <= _TAIL and is_padding(read_at(file, at, size - at)):
                return size
            raise Damaged(
                f"its header counts {data.size} bytes of samples, and {size - at} that it does not count follow"
            )
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
    declared = struct.unpack("<Q", header[16:])[0] - _W64_CHUNK
    if declared < _UNKNOWN_64:
        _check_present(declared, size - at - _W64_CHUNK)
    return [Stream(0, size)]


def find_aiff_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The stream of a file of AIFF or AIFC."""
    at = 12
    while (chunk := _read_chunk(file, at, ">")) is not None and chunk.name != b"SSND":
        at = chunk.start + chunk.size + chunk.size % 2
    if chunk is None:
        raise Damaged("it ends before its samples begin")
    if not _is_unknown(chunk.size, size - chunk.start):
        _check_present(chunk.size, size - chunk.start)
    return [Stream(0, size)]


def find_au_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The stream of a file of Sun's AU."""
    start, declared = struct.unpack(">II", read_at(file, 4, 8).ljust(8, b"\0"))
    if not _is_unknown(declared, size - start):
        _check_present(declared, size - start)
    return [Stream(0, size)]


def find_sphere_streams(file: BinaryIO, size: int) -> list[Stream]:
    """The stream of a NIST SPHERE file, which has its numbers as lines of text."""
    lines = read_at(file, 0, 1024).decode("latin-1").split("\n")
    numbers = {words[0]: words[2] for words in map(str.split, lines) if len(words) == 3}
    try:
        start = int(lines[1])
        samples, channels, width = (int(numbers[key]) for key in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError, IndexError):
        raise Damaged("its header does not say how many samples it has") from None
    _check_present(samples * channels * width, size - start)
    return [Stream(0, size)]


def _read_chunk(file: BinaryIO, at: int, order: str) -> _Chunk | None:
    header = read_at(file, at, _CHUNK)
    return _Chunk(header[:4], at + _CHUNK, struct.unpack(order + "I", header[4:])[0]) if len(header) == _CHUNK else None


def _after(file: BinaryIO, chunk: _Chunk) -> int:
    """Where the next chunk begins: chunks of odd size are followed by a zero, which some writers leave out."""
    end = chunk.start + chunk.size
    return end + (chunk.size % 2 == 1 and read_at(file, end, 1) == b"\0")


def _is_name(name: bytes) -> bool:
    return all(32 <= letter < 127 for letter in name)


def _is_unknown(declared: int, present: int) -> bool:
    return _UNKNOWN <= declared < 1 << 32 and declared > present


def _check_present(declared: int, present: int) -> None:
    if declared > present:
        raise Damaged(f"it is cut off, {max(present, 0)} of {declared} bytes of samples are there")
