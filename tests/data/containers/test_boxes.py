"""Sizes that the containers of FFmpeg's formats give themselves."""

import io
import struct

import pytest

from tf_rnnt_kd.data.containers.boxes import check_whole
from tf_rnnt_kd.data.containers.streams import Damaged, Foreign


def atom(name, content=b""):
    return struct.pack(">I", 8 + len(content)) + name + content


def check(content, demuxer):
    check_whole(io.BytesIO(content), len(content), Foreign(demuxer, ""))


MP4 = atom(b"ftyp", b"isom") + atom(b"moov", bytes(50)) + struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100)
MATROSKA = b"\x1aE\xdf\xa3\x83abc" + b"\x18S\x80g\x40\x64" + bytes(100)
OPEN = b"\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff" + b"\x1fC\xb6u\xff"
LIVE = b"\x1aE\xdf\xa3\x80" + OPEN + b"\xa3\x90of sixteen bytes" * 9
AVI = b"RIFF" + struct.pack("<I", 104) + b"AVI " + bytes(100)
CAF = b"caff\0\1\0\0" + b"desc" + struct.pack(">q", 32) + bytes(32) + b"data" + struct.pack(">q", 100) + bytes(100)
ASF = bytes(24) + bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365") + bytes(24) + struct.pack("<Q", 200) + bytes(128)


@pytest.mark.parametrize(
    ("content", "demuxer"),
    [(MP4, "mov"), (MATROSKA, "matroska"), (AVI, "avi"), (CAF, "caf"), (ASF, "asf")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_are_as_long_as_they_say(content, demuxer):
    check(content, demuxer)
    check(content + bytes(50), demuxer)
    for cut in (1, 60):
        with pytest.raises(Damaged, match=f"it is cut off, {len(content) - cut} of {len(content)} bytes are there"):
            check(content[:-cut], demuxer)
    if demuxer != "caf":
        with pytest.raises(Damaged, match="bytes follow its end, as where files were joined"):
            check(content + content, demuxer)


@pytest.mark.parametrize(
    ("content", "demuxer"),
    [
        (atom(b"ftyp") + b"\0\0\0\0mdat" + bytes(9), "mov"),
        (LIVE, "matroska"),
        (LIVE + LIVE, "matroska"),
        (b"RIFF\0\0\0\0AVI " + bytes(9), "avi"),
        (b"caff\0\1\0\0data" + b"\xff" * 8 + bytes(9), "caf"),
        (ASF[:112] + b"\1" + ASF[113:-50], "asf"),
        (b"#!AMR\n", "amr"),
    ],
)
def test_files_that_do_not_say_how_long_they_are_pass(content, demuxer):
    check(content, demuxer)


@pytest.mark.parametrize("cut", [1, 7, 17, 18 + 5])
def test_a_live_recording_ends_with_a_block(cut):
    with pytest.raises(Damaged, match="it is cut off"):
        check(LIVE[:-cut], "matroska")
    check(LIVE[:-18], "matroska")  # as if it had been stopped then
