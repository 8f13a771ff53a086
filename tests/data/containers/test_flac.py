"""The last frame of a FLAC file says how long it is."""

import io

import numpy as np
import pytest
import soundfile

from tests.data.sounds import without_length
from tf_rnnt_kd.data.containers.flac import find_flac_streams
from tf_rnnt_kd.data.containers.streams import Damaged, Spliced


def flac(num_samples, channels=1, rate=16000, subtype="PCM_16"):
    buffer = io.BytesIO()
    samples = np.random.default_rng(num_samples).integers(-9000, 9000, [num_samples, channels]).astype(np.int16)
    soundfile.write(buffer, samples, rate, format="FLAC", subtype=subtype)
    return buffer.getvalue()


def streams(content):
    return find_flac_streams(io.BytesIO(content), len(content))


@pytest.mark.parametrize("num_samples", [1, 17, 4095, 4096, 4097, 600_001])
@pytest.mark.parametrize("options", [{}, {"channels": 2}, {"rate": 44_100, "subtype": "PCM_24"}, {"channels": 6}])
def test_any_length_is_found(num_samples, options):
    content = flac(num_samples, **options)
    (stream,) = streams(content)
    assert (stream.start, stream.stop, stream.head) == (0, len(content), b"")
    pipe = without_length(content)
    (stream,) = streams(pipe)
    given = Spliced(io.BytesIO(pipe), stream).readall()
    assert soundfile.info(io.BytesIO(given)).frames == num_samples
    assert given[26:42] == bytes(16) and given[42:] == pipe[42:]


@pytest.mark.parametrize("tail", [b"TAG".ljust(128, b"\0"), bytes(1000)])
def test_what_follows_the_last_frame_is_left_alone(tail):
    content = flac(9000) + tail
    assert streams(content)[0].stop == len(content)


def test_joined_files_are_streams_of_their_own():
    parts = [flac(9000), without_length(flac(5000)), flac(9000)]
    content = b"".join(parts)
    found = streams(content)
    lengths = [soundfile.info(io.BytesIO(Spliced(io.BytesIO(content), stream).readall())).frames for stream in found]
    assert lengths == [9000, 5000, 9000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (flac(40_000)[:-20_000], "its header counts 40000 samples, but its last frame ends at"),
        (flac(9000)[:30], "cut off in its header"),
        (flac(9000)[:4] + b"\x00\x00\x00\x22" + flac(9000)[8:42] + b"\x84\0\xff\xff", "no frame that fits its header"),
        (without_length(flac(9000))[:42] + b"\x84\0\0\0", "it has no samples"),
        (b"fLaC\x01" + flac(9000)[5:], "its header is damaged"),
        (flac(9000)[:20] + bytes([flac(9000)[20] ^ 2]) + flac(9000)[21:], "no frame that fits its header"),
    ],
    ids=["cut", "short", "metadata", "empty", "header", "channels"],
)
def test_what_is_not_whole_is_told(content, message):
    with pytest.raises(Damaged, match=message):
        streams(content)
