"""Sizes that headers of uncompressed audio give, and what is there."""

import io
import struct

import pytest

from tf_rnnt_kd.data.containers.pcm import (
    find_au_streams,
    find_chunk_streams,
    find_sphere_streams,
    find_w64_streams,
)
from tf_rnnt_kd.data.containers.streams import Damaged, Spliced

FORMAT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)


def chunk(name, content, size=None, order="<", pad=True):
    size = len(content) if size is None else size
    return name + struct.pack(order + "I", size) + content + b"\0" * (pad and len(content) % 2)


def wav(*chunks):
    body = b"WAVE" + FORMAT + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def ends(content, find=find_chunk_streams):
    return [(stream.start, stream.stop) for stream in find(io.BytesIO(content), len(content))]


@pytest.mark.parametrize(
    "content",
    [
        wav(chunk(b"data", bytes(100))),
        wav(chunk(b"LIST", b"abc"), chunk(b"data", bytes(101)), chunk(b"LIST", b"abcd")),
        wav(chunk(b"LIST", b"abc", pad=False), chunk(b"data", b"\1" * 101, pad=False), chunk(b"LIST", b"abcd")),
        wav(chunk(b"data", bytes(100))) + bytes(7),
        wav(chunk(b"data", bytes(100))) + b"TAG".ljust(128, b"\0"),
        wav(chunk(b"data", bytes(100), 0x7FFFF000)),
        wav(chunk(b"data", bytes(100), 0xFFFFFFFF)),
        wav(chunk(b"data", b""), chunk(b"LIST", b"abcd")),
    ],
)
def test_whole_files_are_left_as_they_are(content):
    assert ends(content) == [(0, len(content))]


def test_a_size_of_zero_before_samples_is_put_right():
    content = wav(chunk(b"data", b"\1\2" * 50, 0))
    (stream,) = find_chunk_streams(io.BytesIO(content), len(content))
    assert (
        Spliced(io.BytesIO(content), stream).readall()
        == wav(chunk(b"data", b"\1\2" * 50))[:4] + content[4:8] + (wav(chunk(b"data", b"\1\2" * 50))[8:])
    )


def test_joined_files_are_streams_of_their_own():
    one, two = wav(chunk(b"data", bytes(100)), chunk(b"LIST", b"abcd")), wav(chunk(b"data", bytes(60)))
    assert ends(one + two) == [(0, len(one)), (len(one), len(one + two))]


def test_rf64_says_its_size_elsewhere():
    size = struct.pack("<QQQI", 0, 100, 50, 0)
    content = b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", size) + FORMAT + chunk(b"data", bytes(100), 0xFFFFFFFF)
    assert ends(content) == [(0, len(content))]
    with pytest.raises(Damaged, match="98 of 100 bytes of samples"):
        ends(content[:-2])


@pytest.mark.parametrize(
    "content", [wav(), wav(chunk(b"LIST", b"ab", 99)), b"RIFF\0\0\0\0WAVEfmt ", FORMAT[:0] + wav()[:30]]
)
def test_a_file_without_samples_is_told(content):
    with pytest.raises(Damaged, match="it ends before its samples begin"):
        ends(content)


def aiff(*chunks):
    return b"FORM\0\0\0\0AIFF" + b"".join(chunks)


def test_aiff_is_read_in_its_own_order():
    samples = chunk(b"SSND", bytes(108), order=">")
    content = aiff(chunk(b"COMM", bytes(18), order=">"), samples, chunk(b"NAME", b"abcd", order=">"))
    assert ends(content) == [(0, len(content))]
    assert ends(content * 2) == [(0, len(content)), (len(content), 2 * len(content))]
    with pytest.raises(Damaged, match="8 of 108 bytes"):
        ends(aiff(samples)[:-100])


def test_wave64_has_sizes_of_eight_bytes():
    def part(name, content, size=None):
        size = 24 + len(content) if size is None else size
        return (name.ljust(16, b"-") + struct.pack("<Q", size) + content).ljust(-(-(24 + len(content)) // 8) * 8, b"\0")

    head = part(b"riff", b"")[:24] + b"wave".ljust(16, b"-") + part(b"fmt ", bytes(18))
    content = head + part(b"data", bytes(100))
    assert ends(content, find_w64_streams) == [(0, len(head) + 124)]  # without the padding
    assert ends(head + part(b"data", bytes(100), 1 << 63), find_w64_streams) == [(0, len(content))]
    far = part(b"junk", b"", (1 << 64) - 8)
    for broken in (content[:-30], head, head + bytes(24), content + b"more", head + far):
        with pytest.raises(Damaged, match="cut off|before its samples|does not count follow"):
            ends(broken, find_w64_streams)


def test_au_and_sphere_end_with_their_samples():
    au = b".snd" + struct.pack(">IIIII", 24, 100, 3, 16000, 1) + b"\1" * 100
    lines = b"NIST_1A\n   1024\nsample_count -i 50\nchannel_count -i 1\nsample_n_bytes -i 2\nend_head\n"
    sphere = lines.ljust(1024) + b"\1" * 100
    for content, find in ((au, find_au_streams), (sphere, find_sphere_streams)):
        assert ends(content, find) == [(0, len(content))]
        assert ends(content + bytes(9), find) == [(0, len(content))]
        for broken, message in ((content[:-1], "99 of 100"), (content + b"more", "4 that it does not count follow")):
            with pytest.raises(Damaged, match=message):
                ends(broken, find)
    assert ends(au[:8] + b"\xff" * 4 + au[12:], find_au_streams) == [(0, len(au))]
    with pytest.raises(Damaged, match="does not say how many"):
        ends(sphere.replace(b"sample_count", b"simple_count"), find_sphere_streams)
    with pytest.raises(Damaged, match="numbers below zero"):
        ends(sphere.replace(b"-i 50", b"-i -5"), find_sphere_streams)
