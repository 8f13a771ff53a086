"""Frames of MP3, counted: made by hand, so that every kind of file can be."""

import io
import struct

import pytest

from tf_rnnt_kd.data.containers.mp3 import find_mp3_streams, sniff_mp3, sniff_other_layers
from tf_rnnt_kd.data.containers.streams import Damaged, Spliced

MPEG1, MPEG2 = 0xFFFB9000, 0xFFF38000  # 128 kbit/s at 44.1 kHz, 64 kbit/s at 22.05 kHz; stereo
SIDE = {MPEG1: 32, MPEG2: 17}


def frame(header=MPEG1, content=b""):
    size = 144 * 128_000 // 44_100 if header == MPEG1 else 72 * 64_000 // 22_050
    return (struct.pack(">I", header) + content).ljust(size, b"\x55")


def counter(count, header=MPEG1, name=b"Xing", flags=1):
    return frame(header, bytes(SIDE[header]) + name + struct.pack(">II", flags, count))


def streams(content):
    return find_mp3_streams(io.BytesIO(content), len(content))


def given(content, stream):
    """What the decoder gets to read."""
    return Spliced(io.BytesIO(content), stream).readall()


def counted(content, stream):
    """How many frames the decoder is told of, and how many it gets."""
    text = given(content, stream)
    place = max(text.find(b"Xing"), text.find(b"Info"))
    size = len(frame(MPEG1 if text[1] & 8 else MPEG2))
    return struct.unpack(">I", text[place + 8 : place + 12])[0], (len(text) - 1) // size


@pytest.mark.parametrize("name", [b"Xing", b"Info"])
@pytest.mark.parametrize("header", [MPEG1, MPEG2])
def test_a_file_that_counts_its_frames_is_left_as_it_is(header, name):
    content = counter(9, header, name) + frame(header) * 9
    for before, after in ((b"", b""), (b"junk" * 99, b"TAG".ljust(128, b"\0")), (b"", bytes(5000))):
        (stream,) = streams(before + content + after)
        assert (stream.start, stream.stop, stream.head) == (0, len(before + content + after), b"")


@pytest.mark.parametrize("header", [MPEG1, MPEG2])
def test_frames_are_counted_where_nothing_counts_them(header):
    content = frame(header) * 9
    for first in (b"", counter(0, header, flags=0)):
        (stream,) = streams(first + content)
        assert counted(first + content, stream) == (9, 9)
        assert given(first + content, stream).endswith(content)


def test_the_encoders_count_may_include_itself():
    content = counter(10) + frame() * 9
    (stream,) = streams(content)
    assert counted(content, stream) == (9, 9)


@pytest.mark.parametrize(
    "content",
    [counter(10) + frame() * 9 + frame()[:100], counter(12) + frame() * 9, counter(5) + b"TAG".ljust(128, b"\0")],
)
def test_missing_frames_are_told(content):
    with pytest.raises(Damaged, match="it is cut off, [09] of [0-9]+ frames are there"):
        streams(content)


@pytest.mark.parametrize(
    "tag",
    [
        b"",
        b"TAG".ljust(128, b"\0"),
        b"ID3\x04\0\0\0\0\0\x05abcde",
        b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0),
    ],
)
def test_joined_files_are_streams_of_their_own(tag):
    one, two = counter(9) + frame() * 9, counter(5, MPEG2) + frame(MPEG2) * 5
    content = one + tag + two + tag + frame() * 4
    found = streams(content)
    assert [counted(content, stream) for stream in found] == [(9, 9), (5, 5), (4, 4)]


def test_frames_beyond_the_count_are_a_stream_of_their_own():
    content = counter(3) + frame() * 8
    assert [counted(content, stream) for stream in streams(content)] == [(3, 3), (5, 5)]


def test_the_count_of_fraunhofer_is_compared_too():
    first = frame(MPEG1, bytes(32) + b"VBRI" + bytes(10) + struct.pack(">I", 9))
    (stream,) = streams(first + frame() * 9)
    assert counted(first + frame() * 9, stream) == (9, 9)
    with pytest.raises(Damaged, match="7 of 9 frames"):
        streams(first + frame() * 7)


def test_what_is_no_frame_is_told():
    with pytest.raises(Damaged, match=f"what begins at byte {9 * 417} is no frame of MP3"):
        streams(frame() * 9 + b"something else" * 30 + frame() * 9)
    assert streams(b"no frames at all" * 100) is None


def test_a_count_is_not_passed_over_where_the_frames_behind_it_are_damaged():
    lost = 100
    with pytest.raises(Damaged, match="between its first frame and byte .* is something else"):
        streams(counter(9) + frame() + frame()[lost:] + frame() * 7)
    assert len(streams(b"junk of a recorder" + counter(9) + frame() * 9)) == 1


def test_the_last_frame_may_be_cut_where_nothing_counts_it():
    content = frame() * 9 + frame()[:200]
    (stream,) = streams(content)
    assert counted(content, stream) == (9, 9)


def test_other_formats_that_begin_alike_are_told_apart():
    assert sniff_mp3(frame()) and sniff_other_layers(frame()) is None
    assert not sniff_mp3(b"\xff\xf1\x50\x80") and sniff_other_layers(b"\xff\xf1\x50\x80").name == "AAC"
    assert not sniff_mp3(b"\xff\xfd\x90\0") and sniff_other_layers(b"\xff\xfd\x90\0").demuxer == "mp3"
    assert sniff_other_layers(b"\xff") is None
