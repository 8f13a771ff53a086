"""What a file of audio consists of: streams, each of which a decoder reads to its end as a file of its own."""

import io
import os
from typing import BinaryIO, NamedTuple

_BEYOND = 1 << 62
_ID3_HEADER = 10
_ID3V1_BYTES = 128


class Damaged(Exception):
    """A file that is not whole, or no audio.

    Attributes:
      advice: what to do about it.
    """

    def __init__(self, reason: str, advice: str = "replace or remove the file"):
        super().__init__(reason)
        self.advice = advice


class Stream(NamedTuple):
    """A stretch of a file that is decoded by itself.

    Attributes:
      start: byte of the file with which it begins.
      stop: byte of the file before which it ends.
      head: bytes that are read before the first, such as a header that says how long the stream really is.
      is_mp3: whether it is MP3.
    """

    start: int
    stop: int
    head: bytes = b""
    is_mp3: bool = False


class Foreign(NamedTuple):
    """A file that only FFmpeg decodes.

    Attributes:
      demuxer: FFmpeg's name of the container.
      name: the format as people call it.
    """

    demuxer: str
    name: str


class Spliced(io.RawIOBase):
    """A stream of an open file as a file: read-only, from its head to its stop."""

    def __init__(self, file: BinaryIO, stream: Stream):
        super().__init__()
        self._file = file
        self._stream = stream
        self._at = 0
        self._size = len(stream.head) + stream.stop - stream.start

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a byte, counted from the begin of the head; returns it."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def readinto(self, buffer) -> int:
        """Fills the buffer as far as head or file go; returns how many bytes it got."""
        head, start, wanted = self._stream.head, self._stream.start, min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        if self._at < len(head):
            data = head[self._at : self._at + wanted]
        else:
            self._file.seek(start + self._at - len(head))
            data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_at(file: BinaryIO, start: int, count: int) -> bytes:
    """Up to `count` bytes of the file from `start` on, none where that is beyond what any file has."""
    if start >= _BEYOND:
        return b""
    file.seek(start)
    return file.read(count)


def end_of_id3(content: bytes, start: int = 0) -> int:
    """Where the ID3v2 tag ends that begins at `start`; `start` where there is none."""
    header = content[start : start + _ID3_HEADER]
    if header[:3] != b"ID3" or len(header) < _ID3_HEADER or max(header[6:]) > 127:
        return start
    size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
    footer = _ID3_HEADER if header[5] & 0x10 else 0
    return start + _ID3_HEADER + size + footer


def is_padding(rest: bytes) -> bool:
    """Whether what follows the last stream is nothing of it: no bytes, zeros, or an ID3v1 tag."""
    return not rest.strip(b"\0") or (len(rest) == _ID3V1_BYTES and rest.startswith(b"TAG"))
