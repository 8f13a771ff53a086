"""The door through which audio comes in: whole and as it was, or one line that names the file."""

import io
import os
import pickle
import re
import struct
import sys
import types

import numpy as np
import pytest
import soundfile
import tensorflow as tf

from tests.data.sounds import (
    RATE,
    add_audio,
    changing,
    encode,
    random_samples,
    tone,
    without_info,
    without_length,
)
from tf_rnnt_kd.data import audio
from tf_rnnt_kd.data.audio import AUDIO_SUFFIXES, audio_seconds, decode_audio, mono_seconds
from tf_rnnt_kd.data.corpora import read_librispeech
from tf_rnnt_kd.errors import UserError


def refusal(path):
    """The line that decoding ends with; listing says the same, or does not look so deep."""
    with pytest.raises(UserError) as caught:
        decode_audio(str(path))
    message = caught.value.message
    assert str(path) in message and "\n" not in message
    return message.removeprefix(f"cannot read audio from {path}: ")


# -- whole files --


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "A.FLAC"])
def test_lossless_16_bit_audio_is_bit_exact(work_dir, name):
    path = add_audio(work_dir / name)
    samples = decode_audio(str(path))
    assert samples.dtype == np.int16
    np.testing.assert_array_equal(samples, random_samples())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "ULAW"}),
    ],
)
def test_every_format_gives_the_same_sound(work_dir, name, options):
    path = add_audio(work_dir / name, tone(1.0), **options)
    samples = decode_audio(str(path)) / 32768.0
    assert len(samples) == pytest.approx(RATE, abs=RATE // 10)
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert np.argmax(spectrum) * RATE / 12000 == pytest.approx(440, abs=3)
    assert np.std(samples[2000:14000]) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    assert read_librispeech(str(work_dir), labelled=False)[0].load().tobytes() == decode_audio(str(path)).tobytes()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(work_dir, rate):
    samples = decode_audio(str(add_audio(work_dir / "a.flac", tone(1.0, rate), rate)))
    assert abs(len(samples) - RATE) <= 1
    expected = tone(1.0) * 32768
    np.testing.assert_allclose(samples[1000:15000], expected[1000:15000], atol=60)


def test_channels_are_averaged(work_dir):
    left, right = tone(0.5, level=0.4), tone(0.5, hertz=1000, level=0.4)
    path = add_audio(work_dir / "a.wav", np.stack([left, right], 1), subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(str(path)), (left + right) / 2 * 32768, atol=0.51)


def test_overflow_is_clipped(work_dir):
    path = add_audio(work_dir / "a.wav", np.array([1.5, -1.5, 1.0, -1.0] * 10, np.float32), subtype="FLOAT")
    np.testing.assert_array_equal(decode_audio(str(path)), [32767, -32768, 32767, -32768] * 10)


def test_a_stretch_can_be_decoded(work_dir):
    path = str(add_audio(work_dir / "a.flac"))
    np.testing.assert_array_equal(decode_audio(path, start=0.1, stop=0.2), random_samples()[1600:3200])
    np.testing.assert_array_equal(decode_audio(path, start=0.4, stop=9.0), random_samples()[6400:])


@pytest.mark.parametrize("content", [b"", b"no audio at all", None])
def test_what_is_no_audio_is_named(work_dir, content):
    path = work_dir / "a.flac"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^cannot read audio from {path}: .*; replace or remove the file$"):
        decode_audio(str(path))


@pytest.mark.parametrize("name", ["a.flac", "a.wav"])
def test_audio_without_samples_is_named(work_dir, name):
    path = add_audio(work_dir / name, np.zeros(0, np.int16))
    with pytest.raises(UserError, match=f"{path}.*; replace or remove the file"):
        decode_audio(str(path))


def test_a_truncated_flac_is_named(work_dir):
    path = add_audio(work_dir / "a.flac", random_samples(5.0))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{path}.*; replace or remove the file"):
        decode_audio(str(path))


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_its_count_is_whole(work_dir, mode):
    samples = changing(14.0)
    whole = work_dir / "whole.mp3"
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": 0.5}
    with soundfile.SoundFile(whole, "w", RATE, 1, **options) as file:
        file.write(samples)
    path = work_dir / "pipe.mp3"
    path.write_bytes(without_info(whole.read_bytes()))
    found, expected = decode_audio(str(path)), decode_audio(str(whole))
    assert len(expected) == len(samples)
    assert 0 <= len(found) - len(samples) < 1200  # what the encoder adds at both ends
    shift = int(np.argmax(np.correlate(found[:6000].astype(float), expected[1000:4000].astype(float)))) - 1000
    assert 0 <= shift < 1200
    np.testing.assert_allclose(found[shift : shift + len(expected)], expected[: len(found) - shift], atol=1)
    assert audio_seconds(str(path)) == len(found) / RATE


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.flac", {}),
        ("a.wav", {}),
        ("a.aiff", {}),
    ],
)
def test_joined_files_are_heard_one_after_the_other(work_dir, name, options):
    path = add_audio(work_dir / name, changing(5.0), **options)
    once = decode_audio(str(path))
    joined = work_dir / f"joined-{name}"
    joined.write_bytes(path.read_bytes() * 2)
    assert len(once) == 5 * RATE and audio_seconds(str(joined)) == 10.0
    # The decoder of MP3 rounds now one way, now another.
    np.testing.assert_allclose(decode_audio(str(joined)), np.concatenate([once, once]), atol=1)
    np.testing.assert_allclose(
        decode_audio(str(joined), start=4.5, stop=6.0), np.r_[once[72000:], once[:16000]], atol=1
    )
    assert sum(len(block) for block, _ in mono_seconds(str(joined))) == 10 * RATE


def test_joined_files_may_differ_in_rate(work_dir):
    first, second = add_audio(work_dir / "a.flac", tone(1.0)), add_audio(work_dir / "b.flac", tone(2.0, 44100), 44100)
    joined = work_dir / "c.flac"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    expected = np.concatenate([decode_audio(str(first)), decode_audio(str(second))])
    np.testing.assert_array_equal(decode_audio(str(joined)), expected)
    assert audio_seconds(str(joined)) == 3.0


def test_flac_of_unknown_length_is_whole(work_dir):
    path = add_audio(work_dir / "a.flac", random_samples(2.0))
    path.write_bytes(without_length(path.read_bytes()))
    np.testing.assert_array_equal(decode_audio(str(path)), random_samples(2.0))
    np.testing.assert_array_equal(decode_audio(str(path), start=1.5), random_samples(2.0)[24000:])
    assert audio_seconds(str(path)) == 2.0


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
def test_wav_of_unknown_length_is_whole(work_dir, size):
    path = add_audio(work_dir / "a.wav")
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", size)
    path.write_bytes(content)
    np.testing.assert_array_equal(decode_audio(str(path)), random_samples())
    assert audio_seconds(str(path)) == 0.5


ENCODED = [
    ("a.m4a", "aac", {}),
    ("a.mp4", "aac", {"options": {"movflags": "faststart"}}),
    ("a.mov", "pcm_s16le", {}),
    ("a.mka", "aac", {}),
    ("a.webm", "libopus", {"rate": 48000}),
    ("a.aac", "aac", {"container": "adts"}),
    ("a.mp2", "mp2", {}),
    ("a.caf", "pcm_s16le", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), ENCODED)
def test_formats_of_ffmpeg_are_whole(work_dir, capfd, name, codec, options):
    pytest.importorskip("av")
    rate = options.get("rate", RATE)
    path = encode(work_dir / name, tone(5.0, rate), codec, **options)
    samples = decode_audio(str(path))
    assert 5 * RATE <= len(samples) < 5 * RATE + 2500  # AAC has frames of 1024 samples, and begins with empty ones
    assert audio_seconds(str(path)) == pytest.approx(len(samples) / RATE, abs=1e-4)
    assert np.std(samples[20000:60000] / 32768) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    np.testing.assert_array_equal(decode_audio(str(path), start=1.0, stop=2.5), samples[RATE : RATE * 5 // 2])
    assert capfd.readouterr() == ("", "")
    assert name.endswith(AUDIO_SUFFIXES)


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.mka", "a.webm"])
def test_cut_and_joined_files_of_ffmpeg_are_named(work_dir, capfd, name):
    pytest.importorskip("av")
    codec, options = next(rest for first, *rest in ENCODED if first == name)
    content = encode(work_dir / name, tone(5.0, options.get("rate", RATE)), codec, **options).read_bytes()
    path = work_dir / f"cut-{name}"
    for length in (len(content) // 2, len(content) - 300, len(content) - 1):
        path.write_bytes(content[:length])
        assert re.search("cut off|damaged", refusal(path))
    path.write_bytes(content * 2)
    assert "bytes follow its end, as where files were joined" in refusal(path)
    assert capfd.readouterr() == ("", "")


def test_the_sound_of_a_film_is_heard(work_dir):
    av = pytest.importorskip("av")
    path, samples = work_dir / "film.mkv", tone(2.0)
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 16
        sound = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros([16, 16, 3], np.uint8), format="rgb24")
        for packet in [*pictures.encode(picture), *pictures.encode(None)]:
            output.mux(packet)
        content = np.rint(samples[None] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(content, format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*sound.encode(frame), *sound.encode(None)]:
            output.mux(packet)
    np.testing.assert_allclose(decode_audio(str(path)), content[0], atol=1)


def test_a_film_without_sound_is_named(work_dir):
    av = pytest.importorskip("av")
    path = work_dir / "film.mkv"
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 16
        picture = av.VideoFrame.from_ndarray(np.zeros([16, 16, 3], np.uint8), format="rgb24")
        for packet in [*pictures.encode(picture), *pictures.encode(None)]:
            output.mux(packet)
    assert "it is Matroska or WebM without sound that FFmpeg can decode" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.m4a", b"\0\0\0\x08ftyp", "MP4"),
        ("a.webm", b"\x1aE\xdf\xa3\x80\x18S\x80g\x80", "Matroska or WebM"),
        ("a.aac", b"\xff\xf1\x50\x80", "AAC"),
        ("a.amr", b"#!AMR\n", "AMR"),
        ("a.wav", b"\0\0\0\x08ftyp", "MP4"),
    ],
)
def test_without_pyav_its_formats_are_refused_by_name(work_dir, monkeypatch, name, content, form):
    monkeypatch.setitem(sys.modules, "av", None)
    path = work_dir / name
    path.write_bytes(content)
    expected = f"it is {form}, which needs PyAV; pip install tf_rnnt_kd[av], convert the file to FLAC, or remove it"
    assert refusal(path) == expected
    with pytest.raises(UserError, match="which needs PyAV"):
        audio_seconds(str(path))


# -- files that are not whole --


@pytest.mark.parametrize("seconds", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.w64", {"format": "W64"}),
        ("a.rf64", {"format": "RF64"}),
        ("a.aiff", {}),
        ("a.au", {}),
        ("a.sph", {"format": "NIST"}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
    ],
)
def test_cut_files_are_named(work_dir, capfd, name, options, seconds):
    content = add_audio(work_dir / "whole" / name, changing(20.0), **options).read_bytes()
    path = work_dir / name
    for length in (len(content) // 2, len(content) - len(content) // 50):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{path}: it.*(is cut off|its last frame ends at).*; replace or remove"):
            audio_seconds(str(path)) if seconds else decode_audio(str(path))
    assert capfd.readouterr() == ("", "")


def test_what_a_header_does_not_count_is_named(work_dir):
    path = add_audio(work_dir / "a.wav", random_samples(2.0))
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 16000)  # a recorder that was switched off before it wrote the size again
    path.write_bytes(content)
    assert "its header counts 16000 bytes of samples, and 48000 that it does not count follow" in refusal(path)


def test_damage_within_ogg_and_mp3_is_named(work_dir, capfd):
    ogg = add_audio(work_dir / "a.ogg", changing(5.0))
    content = ogg.read_bytes()
    ogg.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    assert "was altered" in refusal(ogg)
    mp3 = add_audio(work_dir / "a.mp3", changing(5.0))
    content = mp3.read_bytes()
    mp3.write_bytes(content[:5000] + content[6000:])
    assert re.search("no frame of MP3|frames are there", refusal(mp3))
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_complains_is_not_heard(work_dir, capfd):
    path = add_audio(work_dir / "a.mp3", changing(5.0))
    content = bytearray(path.read_bytes())
    for place in range(2000, 6000, 7):
        content[place] ^= 0x15 if content[place] != 0xFF and content[place - 1] != 0xFF else 0
    path.write_bytes(content)
    try:
        assert len(decode_audio(str(path))) == 5 * RATE
    except UserError:
        pass  # whether frames can be decoded at all is left to the decoder
    assert capfd.readouterr() == ("", "")


def test_promised_samples_take_no_memory(work_dir):
    path = add_audio(work_dir / "a.flac", np.zeros(4096, np.int16))
    content = bytearray(path.read_bytes())
    content[18:26] = (int.from_bytes(content[18:26], "big") | (1 << 36) - 1).to_bytes(8, "big")
    path.write_bytes(content)
    assert refusal(path).startswith(f"its header counts {(1 << 36) - 1} samples, but its last frame ends at 4096")
    with pytest.raises(UserError, match="its last frame ends at 4096"):
        audio_seconds(str(path))


# -- what no microphone gives --


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_not_finite_are_named(work_dir, recwarn, rate, value, channels):
    samples = np.stack([tone(2.0, rate)] * channels, 1)
    samples[rate] = value
    path = add_audio(work_dir / "a.wav", samples, rate, subtype="FLOAT")
    assert refusal(path) == "its samples are not finite; replace or remove the file"
    assert not list(recwarn)


def test_samples_in_another_scale_are_named(work_dir):
    path = add_audio(work_dir / "a.wav", tone(1.0) * 32768, subtype="FLOAT")
    assert refusal(path) == "its samples reach 9830 where 1 is full scale; replace or remove the file"
    add_audio(path, tone(1.0, level=7.9), subtype="FLOAT")
    assert np.max(decode_audio(str(path))) == 32767


@pytest.mark.parametrize("rate", [1, 3999, 800_000, 2_000_000_000])
def test_rates_of_no_recorder_are_named(work_dir, rate):
    path = add_audio(work_dir / "a.wav", random_samples(), 8000)
    content = bytearray(path.read_bytes())
    content[24:32] = struct.pack("<II", rate, 2 * rate & 0xFFFFFFFF)
    path.write_bytes(content)
    message = f"it claims {rate} samples a second, where recorders take 4000 to 768000; replace or remove the file"
    assert refusal(path) == message
    with pytest.raises(UserError, match=message):
        audio_seconds(str(path))


def test_a_rate_that_the_header_contradicts_is_named(work_dir):
    path = add_audio(work_dir / "a.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", 8000)
    path.write_bytes(content)
    assert "its header contradicts itself, 8000 times 2 bytes a second are not 32000" in refusal(path)


def test_channels_that_cancel_each_other_are_named(work_dir):
    samples = tone(1.0)
    path = work_dir / "a.wav"
    for pair in ([samples, -samples], [samples, -0.95 * samples]):
        add_audio(path, np.stack(pair, 1))
        assert refusal(path).startswith("its channels cancel each other (opposite phase)")
    for pair in ([samples, samples], [samples, 0 * samples], [samples, -0.5 * samples], [0 * samples] * 2):
        add_audio(path, np.stack(pair, 1))
        assert len(decode_audio(str(path))) == RATE
    add_audio(path, np.stack([samples] + [0 * samples] * 31, 1))
    assert len(decode_audio(str(path))) == RATE


def test_a_single_sample_of_a_high_rate_is_none(work_dir):
    assert "it has no samples" in refusal(add_audio(work_dir / "a.wav", np.ones(1), 192000))


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.ogg", "a.mp3"])
def test_names_that_are_no_utf8_are_read(work_dir, name):
    path = os.fsdecode(os.fsencode(str(work_dir)) + b"/caf\xe9-" + name.encode())
    os.rename(add_audio(work_dir / name, tone(1.0)), path)
    assert len(decode_audio(path)) == RATE


def test_pipes_and_folders_are_no_files(work_dir):
    os.mkfifo(work_dir / "a.wav")
    (work_dir / "b.wav").mkdir()
    assert refusal(work_dir / "a.wav") == refusal(work_dir / "b.wav") == "it is no file; replace or remove the file"


def test_errors_come_from_other_processes(work_dir):
    with pytest.raises(UserError) as caught:
        decode_audio(str(work_dir / "no.wav"))
    assert caught.value.reason == "No such file or directory"
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


# -- tensorflow-io --


def fake_tensorflow_io(decode_wav):
    audio = types.SimpleNamespace(
        decode_wav=decode_wav,
        decode_flac=lambda content, dtype: read_bytes(content, "int16"),
        decode_vorbis=lambda content: read_bytes(content, "float32"),
        decode_mp3=lambda content: read_bytes(content, "float32"),
    )
    return types.SimpleNamespace(audio=audio)


def read_bytes(content, dtype):
    return tf.constant(soundfile.read(io.BytesIO(content.numpy()), dtype=dtype, always_2d=True)[0])


@pytest.fixture
def tensorflow_io(monkeypatch):
    def install(decode_wav):
        monkeypatch.setitem(sys.modules, "tensorflow_io", fake_tensorflow_io(decode_wav))
        audio._tensorflow_io.cache_clear()

    yield install
    audio._tensorflow_io.cache_clear()


def test_the_probe_is_a_wav_file_of_one_sample(tensorflow_io):
    seen = []
    tensorflow_io(lambda content, dtype: seen.append(content))
    audio._tensorflow_io()
    samples, rate = tf.audio.decode_wav(seen[0])
    assert samples.shape == [1, 1] and rate == RATE


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.ogg", "a.mp3"])
def test_tensorflow_io_decodes_when_asked(work_dir, tensorflow_io, name):
    calls = []

    def decode_wav(content, dtype):
        calls.append(content)
        return read_bytes(content, "int16") if isinstance(content, tf.Tensor) else None

    tensorflow_io(decode_wav)
    path = add_audio(work_dir / name, tone(0.5))
    (utterance,) = read_librispeech(str(work_dir), labelled=False, decoder="tensorflow_io")
    np.testing.assert_array_equal(utterance.load(), decode_audio(str(path)))
    assert len(calls) == (2 if name.endswith("wav") else 1)  # the probe, and the file


def test_tensorflow_io_that_loads_but_does_not_work_is_refused(work_dir, tensorflow_io):
    def decode_wav(content, dtype):
        raise NotImplementedError("unable to open file: libtensorflow_io.so\nundefined symbol: _ZN3tsl")

    tensorflow_io(decode_wav)
    path = add_audio(work_dir / "a.flac")
    message = (
        "tensorflow-io does not work here (unable to open file: libtensorflow_io.so undefined symbol: _ZN3tsl): keep"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        decode_audio(str(path), decoder="tensorflow_io")


def test_absent_tensorflow_io_is_refused_before_listing(work_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    audio._tensorflow_io.cache_clear()
    with pytest.raises(UserError, match=r"tensorflow-io does not work here .*pip install tf_rnnt_kd\[tfio\]"):
        read_librispeech(str(work_dir), decoder="tensorflow_io")


def test_an_unknown_decoder_is_refused(work_dir):
    with pytest.raises(UserError, match="decoder is 'ffmpeg': none of soundfile, tensorflow_io"):
        read_librispeech(str(work_dir), decoder="ffmpeg")
