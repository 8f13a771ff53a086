"""The one door through which audio comes in, for corpora and transcription alike: 16-bit mono at 16 kHz, whole.

`containers` says what a file consists of and whether all of it is there; libsndfile, tensorflow-io or FFmpeg decode.
"""

import contextlib
import functools
import importlib
import io
import os
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import soundfile
import soxr
import tensorflow as tf

from tf_rnnt_kd.data.containers import ffmpeg
from tf_rnnt_kd.data.containers.layout import find_streams
from tf_rnnt_kd.data.containers.streams import Damaged, Foreign, Spliced, Stream
from tf_rnnt_kd.errors import UserError, muted_stderr

SAMPLE_RATE = 16000

# Those of the second line are decoded where PyAV is installed.
AUDIO_SUFFIXES = (
    *(".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".w64", ".rf64", ".sph"),
    *(".m4a", ".mp4", ".mov", ".3gp", ".aac", ".webm", ".mkv", ".mka", ".wma", ".amr", ".caf", ".mp2"),
)

_RATES = (4_000, 768_000)  # what recorders take in a second
_LOUDEST = 8.0  # of full scale; a little over 1 is usual in files of floats
_CANCELLED = 0.004  # of the power that the mean of independent channels would have
_INAUDIBLE = 1e-9  # mean power, -90 dB
_BLOCK_VALUES = 1 << 20  # decoded at once, so that memory follows what is there and not what a header says

_Block = tuple[np.ndarray, int]  # [S, C] int16 or float32, and the rate in Hz


class AudioError(UserError):
    """A file that is no speech to the models.

    Attributes:
      path: which.
      reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str, advice: str):
        super().__init__(f"cannot read audio from {show_name(path)}: {reason}; {advice}")
        self.path = path
        self.reason = reason

    def __reduce__(self):
        return UserError, (self.message,)  # as much as another process needs


def show_name(path: str) -> str:
    """A path as text that can be printed, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def decode_audio(path: str, *, decoder: str = "soundfile", start: float = 0.0, stop: float | None = None) -> np.ndarray:
    """Reads audio as the models hear it.

    Args:
      path: WAV, RF64, W64, AIFF, AU, NIST SPHERE, FLAC, Ogg or MP3; where PyAV is installed, also MP4, WebM, Matroska,
        AAC, WMA, AMR, CAF, AVI or MP2. The content says which, not the name.
      decoder: `soundfile`, or `tensorflow_io` for whole files of FLAC, WAV, Ogg Vorbis and MP3 where it works; both
        give the same samples of lossless formats.
      start: first second wanted.
      stop: end of what is wanted, in seconds; None for the end of the file.

    Returns:
      [S] int16, mean of the channels, 16 kHz, of all streams of a file one after the other.

    Raises:
      AudioError: the file is missing, cut off, damaged or empty, holds what cannot be recorded speech (samples that are
        not finite or far beyond full scale, an impossible rate, channels that cancel each other), or its format needs
        a package that is not installed.
      UserError: there is no such decoder, or tensorflow-io does not work here.
    """
    check_decoder(decoder)
    with _readable(path):
        streams = _streams_of(path)
        if isinstance(streams, Foreign) or len(streams) > 1:
            whole = _decode_whole(path, *_stamp(path))
            first = round(start * SAMPLE_RATE)
            samples = whole[first : None if stop is None else round(stop * SAMPLE_RATE)].copy()
        else:
            samples = _decode_stream(path, streams[0], decoder, start, stop)
        if not len(samples):
            raise Damaged("it has no samples")
    return samples


def audio_seconds(path: str) -> float:
    """How long the audio of a file really is; what does not say so for sure is counted, or decoded.

    Raises:
      AudioError: as `decode_audio`, where no decoding is needed to see it.
    """
    with _readable(path):
        streams = _streams_of(path)
        if isinstance(streams, Foreign):
            seconds = sum(len(block) / rate for block, rate in _foreign_blocks(path, streams))
        else:
            seconds = sum(_stream_seconds(path, stream) for stream in streams)
        if not seconds:
            raise Damaged("it has no samples")
    return seconds


def mono_seconds(path: str) -> Iterator[tuple[np.ndarray, int]]:
    """Decodes a file second by second, for what needs no more of it at once: [up to rate] float32 and the rate in Hz.

    Raises:
      AudioError: as `decode_audio`.
    """
    with _readable(path):
        streams = _streams_of(path)
        for blocks in _all_blocks(path, streams, seconds=1):
            mixer = _Mixer()
            yield from ((mixer.mix(block), rate) for block, rate in blocks)
            mixer.check()


def check_decoder(decoder: str) -> None:
    """Raises UserError unless there is such a decoder and it works here."""
    if decoder not in DECODERS:
        raise UserError(f"decoder {decoder!r} is none of {', '.join(DECODERS)}: choose one of them")
    if decoder == "tensorflow_io":
        _tensorflow_io()


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (Damaged, soundfile.SoundFileError, OSError, tf.errors.OpError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        reason = " ".join(reason.split()).rstrip(".")
        raise AudioError(path, reason, getattr(error, "advice", Damaged("").advice)) from error


# -- streams --


def _streams_of(path: str) -> list[Stream] | Foreign:
    return _found_streams(path, *_stamp(path))


@functools.lru_cache(maxsize=64)
def _found_streams(path: str, size: int, mtime_ns: int) -> list[Stream] | Foreign:
    """Kept for the pieces of a long file, which is read as a whole to find them."""
    del size, mtime_ns
    return find_streams(path)


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _decode_stream(path: str, stream: Stream, decoder: str, start: float, stop: float | None) -> np.ndarray:
    with _opened(path, stream) as sound:
        rate = sound.samplerate
        first = round(start * rate)
        last = sound.frames if stop is None else min(round(stop * rate), sound.frames)
        if decoder == "tensorflow_io" and _is_whole(path, stream) and _suffix(path) in _TENSORFLOW_IO:
            blocks = iter([(_read_by_tensorflow_io(path)[first:last], rate)])
        else:
            sound.seek(min(first, sound.frames))
            blocks = _sound_blocks(sound, stream, last - first)
        samples, count = _mix(blocks)
    if count != last - first:
        raise Damaged(f"it gives {count} of {last - first} samples")
    return samples


@functools.lru_cache(maxsize=1)
def _decode_whole(path: str, size: int, mtime_ns: int) -> np.ndarray:
    """[S] int16 of a file that cannot be entered in the middle; the last one is kept, for the next piece of it."""
    del size, mtime_ns
    parts = [_mix(blocks)[0] for blocks in _all_blocks(path, _streams_of(path))]
    return np.concatenate(parts)


def _all_blocks(path: str, streams: list[Stream] | Foreign, seconds: int | None = None) -> Iterator[Iterator[_Block]]:
    """The blocks of each stream."""
    if isinstance(streams, Foreign):
        yield _foreign_blocks(path, streams)
    else:
        yield from (_stream_blocks(path, stream, seconds) for stream in streams)


def _foreign_blocks(path: str, form: Foreign) -> Iterator[_Block]:
    for block, rate in ffmpeg.decode(path, form):
        _check_rate(rate)
        yield block, rate


def _stream_blocks(path: str, stream: Stream, seconds: int | None) -> Iterator[_Block]:
    with _opened(path, stream) as sound:
        count = 0
        for block, rate in _sound_blocks(sound, stream, sound.frames, seconds and seconds * sound.samplerate):
            count += len(block)
            yield block, rate
        if count != sound.frames:
            raise Damaged(f"it gives {count} of {sound.frames} samples")


def _stream_seconds(path: str, stream: Stream) -> float:
    with _opened(path, stream) as sound:
        return sound.frames / sound.samplerate


@contextlib.contextmanager
def _opened(path: str, stream: Stream) -> Iterator[soundfile.SoundFile]:
    with contextlib.ExitStack() as stack:
        source = os.fsencode(path)  # libsndfile takes any name
        if not _is_whole(path, stream):
            file = stack.enter_context(open(path, "rb"))
            source = stack.enter_context(io.BufferedReader(Spliced(file, stream), 1 << 16))
        with _muted(stream):
            sound = stack.enter_context(soundfile.SoundFile(source))
        _check_rate(sound.samplerate)
        yield sound


def _is_whole(path: str, stream: Stream) -> bool:
    return (stream.start, stream.stop, stream.head) == (0, os.path.getsize(path), b"")


def _muted(stream: Stream) -> contextlib.AbstractContextManager:
    """Keeps the decoder of MP3 from printing what it finds odd."""
    return muted_stderr() if stream.is_mp3 else contextlib.nullcontext()


def _sound_blocks(sound: soundfile.SoundFile, stream: Stream, wanted: int, size: int | None = None) -> Iterator[_Block]:
    """Of int16 where the file has such, else float32: libsndfile would not scale floats to integers."""
    dtype = "int16" if sound.subtype == "PCM_16" else "float32"
    size = size or max(1, _BLOCK_VALUES // sound.channels)
    while wanted > 0:
        with _muted(stream):
            block = sound.read(min(size, wanted), dtype=dtype, always_2d=True)
        if not len(block):
            return
        wanted -= len(block)
        yield block, sound.samplerate


# -- samples --


class _Mixer:
    """Takes the mean of the channels, block by block, and says at the end whether that can be speech."""

    def __init__(self):
        self._peak = 0.0
        self._count = 0
        self._power = 0.0  # sum of squares of the mean
        self._expected = 0.0  # the same if the channels were independent

    def mix(self, block: np.ndarray) -> np.ndarray:
        """[S] float32 of a block [S, C] of int16 or float32."""
        if block.dtype == np.int16:
            block = block.astype(np.float32) / np.float32(32768.0)
        elif block.size:
            self._peak = float(np.maximum(self._peak, np.max(np.abs(block))))  # once NaN, always NaN
        if block.shape[1] == 1:
            return block[:, 0]
        with np.errstate(all="ignore"):  # what is not finite is told at the end
            mono = np.mean(block, axis=1, dtype=np.float32)
            self._count += len(mono)
            self._power += float(np.sum(np.square(mono, dtype=np.float64)))
            self._expected += float(np.sum(np.square(block, dtype=np.float64))) / block.shape[1] ** 2
        return mono

    def check(self) -> None:
        """Raises Damaged for what no microphone gives."""
        if not np.isfinite(self._peak):
            raise Damaged("its samples are not finite")
        if self._peak > _LOUDEST:
            raise Damaged(f"its samples reach {self._peak:.0f} where 1 is full scale")
        if self._expected > _INAUDIBLE * self._count and self._power < _CANCELLED * self._expected:
            raise Damaged("its channels cancel each other (opposite phase), so that their mean is silence")


def _mix(blocks: Iterator[_Block]) -> tuple[np.ndarray, int]:
    """[S] int16 at 16 kHz of the blocks of a stream, and how many samples they had in a channel."""
    mixer, parts, rate = _Mixer(), [np.zeros(0, np.int16)], SAMPLE_RATE
    for block, rate in blocks:
        is_done = block.dtype == np.int16 and block.shape[1] == 1 and rate == SAMPLE_RATE
        parts.append(block[:, 0] if is_done else mixer.mix(block))
    mixer.check()
    mono = np.concatenate(parts[1:] or parts)
    return mono if mono.dtype == np.int16 else _to_16k(mono, rate), len(mono)


def _to_16k(mono: np.ndarray, rate: int) -> np.ndarray:
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)


def _check_rate(rate: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise Damaged(f"it claims {rate} samples a second, where recorders take {_RATES[0]} to {_RATES[1]}")


# -- tensorflow-io --

DECODERS = ("soundfile", "tensorflow_io")
_TENSORFLOW_IO = {
    ".flac": lambda audio, content: audio.decode_flac(content, dtype=tf.int16),
    ".wav": lambda audio, content: audio.decode_wav(content, dtype=tf.int16),
    ".mp3": lambda audio, content: audio.decode_mp3(content),
    ".ogg": lambda audio, content: audio.decode_vorbis(content),
}


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _read_by_tensorflow_io(path: str) -> np.ndarray:
    return _TENSORFLOW_IO[_suffix(path)](_tensorflow_io().audio, tf.io.read_file(path)).numpy()


@functools.cache
def _tensorflow_io() -> ModuleType:
    """The package, if its compiled part loads: on a TensorFlow it was not built for, only a call tells."""
    one_sample = b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80>\0\0\0}\0\0\2\0\x10\0data\2\0\0\0\0\0"
    try:
        module = importlib.import_module("tensorflow_io")
        module.audio.decode_wav(one_sample, dtype=tf.int16)
    except (ImportError, NotImplementedError, AttributeError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tensorflow-io does not work here ({reason}): keep decoder soundfile, or pip install tf_rnnt_kd[tfio]"
        ) from error
    return module
