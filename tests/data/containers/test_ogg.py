"""Pages of Ogg and the chain that they make."""

import io
import struct

import pytest
import soundfile

from tests.data.sounds import tone
from tf_rnnt_kd.data.containers import ogg
from tf_rnnt_kd.data.containers.ogg import find_ogg_streams
from tf_rnnt_kd.data.containers.streams import Damaged, Foreign


def page(flags, serial, number, content, granule=0):
    lacing = bytes([255] * (len(content) // 255) + [len(content) % 255])
    head = b"OggS" + struct.pack("<BBQII", 0, flags, granule, serial, number)
    rest = bytes([len(lacing)]) + lacing + content
    return head + struct.pack("<I", ogg._crc(head + bytes(4) + rest)) + rest


def link(serial, pages=4):
    first = page(2, serial, 0, b"\x01vorbis" + bytes(300))
    middle = [page(0, serial, i, bytes([i]) * 900) for i in range(1, pages - 1)]
    return [first, *middle, page(4, serial, pages - 1, b"the end")]


def find(*pages):
    content = b"".join(pages)
    return find_ogg_streams(io.BytesIO(content), len(content))


def test_the_sum_of_a_page_is_that_of_libogg():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(1.0), 16000, format="OGG", subtype="VORBIS")
    content = buffer.getvalue()
    assert [(s.start, s.stop) for s in find(content)] == [(0, len(content))]
    for i in range(0, len(content), 97):
        with pytest.raises(Damaged):
            find(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])


def test_chained_streams_are_found():
    one, two = link(1), link(2, 7)
    length = len(b"".join(one))
    assert [s.start for s in find(*one, *two)] == [0, length]
    assert [s.stop for s in find(*one, *one, *two)][:2] == [length, 2 * length]


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (link(1)[:-1], "it is cut off, its stream has no end"),
        (link(1)[:-1] + link(2), "it is cut off, its stream has no end"),
        (link(1)[:2] + link(1)[3:], "pages are missing before byte"),
        (link(1)[1:], "pages are missing before byte 0"),
        ([*link(1), page(0, 3, 0, b"")], "pages are missing"),
        ([*link(1), b"something else"], "is no page of Ogg"),
        ([*link(1)[:-1], link(1)[-1][:-2]], "cut off in its last page"),
    ],
)
def test_what_is_not_whole_is_told(pages, message):
    with pytest.raises(Damaged, match=message):
        find(*pages)


def test_zeros_may_follow():
    assert len(find(*link(1), bytes(99))) == 1


def test_what_libsndfile_does_not_read_is_for_ffmpeg():
    assert isinstance(find(link(1)[0], link(2)[0], *link(1)[1:], *link(2)[1:]), Foreign)
    assert isinstance(find(page(2, 1, 0, b"\x80theora"), page(4, 1, 1, b"")), Foreign)
