"""MP3 files: their frames, counted one by one, and the streams that these make."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from tf_rnnt_kd.data.containers.streams import Damaged, Foreign, Stream, end_of_id3, is_padding, read_at

_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # MPEG 1, 2 and 2.5
_JUNK = 1 << 20  # bytes at most before the first frame
_IN_A_ROW = 4  # headers that are no accident
_SAME = 0xFFFE0C00  # bits of a header that are equal in all frames of a stream: version, layer, rate
_MONO = 3


def _frame_bytes(second: int, third: int) -> int:
    """Bytes of a frame by the second and third byte of its header; 0 for what is no frame of Layer III."""
    version, rate, hertz = second >> 3 & 3, third >> 4, third >> 2 & 3
    if second < 0xE0 or second >> 1 & 3 != 1 or version == 1 or rate in (0, 15) or hertz == 3:
        return 0
    kbps, factor = (_MPEG1_KBPS, 144) if version == 3 else (_MPEG2_KBPS, 72)
    return factor * kbps[rate] * 1000 // _HERTZ[version][hertz] + (third >> 1 & 1)


_FRAME_BYTES = [_frame_bytes(code >> 8, code & 0xFF) for code in range(1 << 16)]


class _Run(NamedTuple):
    """Frames without a gap that one decoder reads."""

    start: int  # of the first frame, which may be one that counts the others
    stop: int
    frames: int  # those with sound
    counter: int  # bytes of the frame that counts; 0 where there is none
    declared: int | None  # how many it counts
    count_at: int  # where in that frame the number is; 0 where it cannot be put right


def find_mp3_streams(file: BinaryIO, size: int) -> list[Stream] | None:
    """The streams of a file: several where files were joined; None where it has no frames.

    A stream whose first frame does not say how many there are gets such a frame.

    Raises:
      Damaged: there are fewer frames than the first one says, or something else between them.
    """
    content = read_at(file, 0, size)
    start, head = _find_frames(content, 0), end_of_id3(content, 0)
    if start is None:
        return None
    if start > head and _frame_at(content, head) and _find_count(content, head):
        raise Damaged(f"between its first frame and byte {start} is something else than frames of MP3")
    runs = [part for run in _runs(content, start) for part in _parts(content, run) if part.frames]
    if not runs:
        raise Damaged("it has no samples")
    if len(runs) == 1 and runs[0].declared == runs[0].frames:
        return [Stream(0, size, is_mp3=True)]
    return [_stream(content, run) for run in runs]


def sniff_mp3(content: bytes) -> bool:
    """Whether the content begins with a frame of Layer III."""
    return _frame_at(content, 0) > 0


def sniff_other_layers(content: bytes) -> Foreign | None:
    """What begins like MP3 and is not: frames of AAC, or of MPEG's layers I and II."""
    header = content[:4]
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    if header[1] & 0xF6 == 0xF0:
        return Foreign("aac", "AAC")
    return Foreign("mp3", "MPEG audio of layer I or II") if header[1] >> 1 & 3 in (2, 3) else None


def _frame_at(content: bytes, at: int) -> int:
    """Bytes of the frame that begins at `at`; 0 where none does."""
    if content[at : at + 1] != b"\xff" or at + 4 > len(content):
        return 0
    return _FRAME_BYTES[content[at + 1] << 8 | content[at + 2]]


def _number(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "big")


def _find_frames(content: bytes, start: int) -> int | None:
    """Where, from `start` on, frames follow each other."""
    begin = end_of_id3(content, start)
    at = content.find(b"\xff", begin, begin + _JUNK)
    while at >= 0:
        if _is_row(content, at):
            return at
        at = content.find(b"\xff", at + 1, begin + _JUNK)
    return None


def _is_row(content: bytes, at: int) -> bool:
    first = at
    for _ in range(_IN_A_ROW):
        length = _frame_at(content, at)
        if not length or _number(content, at) & _SAME != _number(content, first) & _SAME:
            return False
        at += length
        if at >= len(content) or _after_tag(content, at) > at:
            return at <= len(content)
    return True


def _runs(content: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and number of frames of each stretch without a gap."""
    while at < len(content):
        start, frames, kind = at, 0, _number(content, at) & _SAME
        while length := _frame_at(content, at):
            is_other = _number(content, at) & _SAME != kind or (frames and _find_count(content, at))
            if is_other or at + length > len(content):
                break
            at, frames = at + length, frames + 1
        if frames:
            yield start, at, frames
        at = _skip(content, at)


def _skip(content: bytes, at: int) -> int:
    """Where the frames go on after a tag; the end of the file after the last one, be it cut off.

    Raises:
      Damaged: something else lies there.
    """
    while (after := _after_tag(content, at)) > at:
        at = after
    length = _frame_at(content, at)
    if length:
        return at if at + length <= len(content) else len(content)
    if is_padding(content[at:]):
        return len(content)
    raise Damaged(f"what begins at byte {at} is no frame of MP3")


def _after_tag(content: bytes, at: int) -> int:
    """Where a tag ends that begins here: ID3v1, ID3v2, APE or Lyrics3."""
    lead = content[at : at + 11]
    if lead.startswith(b"TAG"):
        return at + (227 if lead.startswith(b"TAG+") else 128)
    if lead.startswith(b"APETAGEX"):
        size, _, flags = struct.unpack("<III", content[at + 12 : at + 24].ljust(12, b"\0"))
        return at + size + (32 if flags >> 31 and flags >> 29 & 1 else 0)
    if lead.startswith(b"LYRICSBEGIN"):
        end = content.find(b"LYRICS", at + 11)
        return end + 9 if end >= 0 else len(content)
    return end_of_id3(content, at)


def _find_count(content: bytes, at: int) -> tuple[int, int] | None:
    """In a frame that counts: the place of the number, 0 where there is none, and the number."""
    header = _number(content, at)
    mono, mpeg1 = header >> 6 & 3 == _MONO, header >> 19 & 3 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    crc = 0 if header >> 16 & 1 else 2
    for place in (at + 4 + side, at + 4 + side + crc):
        if content[place : place + 4] in (b"Xing", b"Info"):
            has_count = _number(content, place + 4) & 1
            return (place + 8 - at, _number(content, place + 8)) if has_count else (0, -1)
    if content[at + 36 : at + 40] == b"VBRI":
        return 0, _number(content, at + 50)
    return None


def _parts(content: bytes, run: tuple[int, int, int]) -> Iterator[_Run]:
    """A run, and what was joined to it without a count of its own.

    Raises:
      Damaged: it has fewer frames than it counts.
    """
    start, stop, frames = run
    count = _find_count(content, start)
    if count is None:
        yield _Run(start, stop, frames, 0, None, 0)
        return
    counter = _frame_at(content, start)
    (place, declared), frames = count, frames - 1
    counts_itself = declared == frames + 1 and not _frame_at(content, stop)
    if declared > frames and not counts_itself:
        raise Damaged(f"it is cut off, {frames} of {declared} frames are there")
    if place:
        yield from _counted(content, _Run(start, stop, frames, counter, declared, place))
    else:
        yield _Run(start + counter, stop, frames, 0, None, 0)


def _counted(content: bytes, run: _Run) -> Iterator[_Run]:
    if run.frames <= run.declared:
        yield run
        return
    at = run.start + run.counter
    for _ in range(run.declared):
        at += _frame_at(content, at)
    yield run._replace(stop=at, frames=run.declared)
    yield _Run(at, run.stop, run.frames - run.declared, 0, None, 0)


def _stream(content: bytes, run: _Run) -> Stream:
    if run.declared == run.frames:
        return Stream(run.start, run.stop, is_mp3=True)
    if run.counter:
        head = bytearray(content[run.start : run.start + run.counter])
        head[run.count_at : run.count_at + 4] = struct.pack(">I", run.frames)
        return Stream(run.start + run.counter, run.stop, bytes(head), is_mp3=True)
    head = _make_counter(_number(content, run.start), run.frames)
    return Stream(run.start, run.stop, head, is_mp3=True)


def _make_counter(header: int, frames: int) -> bytes:
    """A frame without sound that says how many follow it, as encoders write it."""
    mpeg1 = header >> 19 & 3 == 3
    side = (17 if header >> 6 & 3 == _MONO else 32) if mpeg1 else (9 if header >> 6 & 3 == _MONO else 17)
    header = header & ~0xF200 | 8 << 12 | 1 << 16  # of 64 or 112 kbit/s, without padding and CRC
    frame = bytearray(_frame_at(struct.pack(">I", header), 0))
    frame[:4] = struct.pack(">I", header)
    frame[4 + side : 16 + side] = b"Info" + struct.pack(">II", 1, frames)
    return bytes(frame)
