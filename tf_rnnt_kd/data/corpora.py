"""Recorded speech in the layout of LibriSpeech and Libri-Light, as a list of utterances that load when asked."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Annotated

import numpy as np
import soundfile
import soxr
import tensorflow as tf
from absl import logging

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import Distinct, NotNegative, OneOf, Positive, Text, checked

SAMPLE_RATE = 16000
AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
TRANSCRIPT_SUFFIX = ".trans.txt"
DECODERS = ("soundfile", "tensorflow_io")

_HOPS_PER_SECOND = 100  # resolution of cuts
_PAUSE_HOPS = 20  # a cut goes where so many hops together are quietest


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance, not yet read.

    Attributes:
      id: unique in its corpus.
      speaker: who speaks.
      text: the transcript, or None for unlabelled speech.
      load: gives [S] int16 mono samples at 16 kHz.
    """

    id: str
    speaker: str
    text: str | None
    load: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _AudioFile:
    path: str
    stem: str
    speaker: str


@dataclasses.dataclass(frozen=True)
class _Transcript:
    path: str
    text: str


@checked
def read_librispeech(
    folder: Text,
    *,
    splits: Annotated[Sequence[Text], Distinct] = (),
    labelled: bool = True,
    min_seconds: NotNegative = 0.0,
    max_seconds: Positive | None = None,
    decoder: Annotated[str, OneOf(DECODERS)] = "soundfile",
) -> list[Utterance]:
    """Lists a corpus: `speaker/chapter/ID.flac` (or wav, ogg, opus, mp3) with `ID TEXT` lines in `*.trans.txt`.

    With limits on length, the header of every file is read; unlabelled files over `max_seconds` are read as a whole,
    once, to find their pauses.

    Args:
      folder: the corpus, or any folder of it.
      splits: the folders below it that are wanted, such as `train-clean-100`; none for all.
      labelled: False ignores transcripts and cuts files over `max_seconds` at pauses into `ID-0000`, `ID-0001`, …
      min_seconds: shorter utterances and pieces are left out.
      max_seconds: longer labelled utterances are left out; None for no limit.
      decoder: see `decode_audio`.

    Returns:
      Utterances in the order of their ids.

    Raises:
      UserError: no such folder, no audio in it, a header that can't be read; and in a labelled corpus audio without
        transcript, a transcript without audio, an empty transcript, or two of the same id.
    """
    _check_decoder(decoder)
    folders = [os.path.join(folder, split) for split in splits] or [folder]
    kept = [u for path in folders for u in _read_folder(path, labelled, min_seconds, max_seconds, decoder)]
    return sorted(kept, key=lambda utterance: utterance.id)


def _look_for_splits(folder: str, *, splits: Sequence[str] = (), **_) -> None:
    """Raises UserError where a folder of `read_librispeech` is missing or has no audio; no file is opened."""
    for split in splits or [""]:
        find_audio(os.path.join(folder, split) if split else folder)


read_librispeech.look = _look_for_splits  # for those who only want to know whether there is something


def _read_folder(folder, labelled, min_seconds, max_seconds, decoder) -> list[Utterance]:
    files = [_audio_file(path, folder) for path in find_audio(folder)]
    if labelled:
        texts = _match_transcripts(files, _read_transcripts(folder))
        listed = _list_labelled(files, texts, decoder, with_seconds=min_seconds > 0 or max_seconds is not None)
    else:
        listed = _list_unlabelled(files, max_seconds, decoder)
    longest = np.inf if max_seconds is None else max_seconds
    kept = [utterance for utterance, seconds in listed if min_seconds <= seconds <= longest]
    _report(folder, len(listed), len(kept), f"{min_seconds:g} to {longest:g} s")
    return kept


def find_audio(folder: str) -> list[str]:
    """Paths of all audio below a folder, sorted.

    Raises:
      UserError: there is no such folder, or no audio in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}: check the path of the corpus")
    paths = [path for path in _walk(folder) if path.lower().endswith(AUDIO_SUFFIXES)]
    if not paths:
        raise UserError(f"{folder} has no audio ({' '.join(AUDIO_SUFFIXES)}): check the path of the corpus")
    return paths


def decode_audio(path: str, *, decoder: str = "soundfile", start: float = 0.0, stop: float | None = None) -> np.ndarray:
    """Reads audio as the models hear it.

    Args:
      path: any format of libsndfile.
      decoder: `soundfile`, or `tensorflow_io` where it works; both give the same samples of lossless formats.
      start: first second wanted.
      stop: end of what is wanted, in seconds; None for the end of the file.

    Returns:
      [S] int16, mean of the channels, 16 kHz.

    Raises:
      UserError: the file is missing, damaged or empty, or tensorflow-io does not work here.
    """
    _check_decoder(decoder)
    with _readable(path):
        info = soundfile.info(path)
        first = round(start * info.samplerate)
        last = info.frames if stop is None else min(round(stop * info.samplerate), info.frames)
        samples = _DECODE[decoder](path, info.subtype, first, last)  # [S, channels]
    if not len(samples) == last - first > 0:
        raise UserError(f"{path} gives {len(samples)} of {last - first} samples; replace or remove the file")
    return _to_mono_16k(samples, info.samplerate)


# -- finding --


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))


def _audio_file(path: str, folder: str) -> _AudioFile:
    parts = os.path.relpath(path, folder).split(os.sep)
    stem = os.path.splitext(parts[-1])[0]
    return _AudioFile(path, stem, parts[-3] if len(parts) >= 3 else stem.partition("-")[0])


def _read_transcripts(folder: str) -> dict[str, _Transcript]:
    transcripts = {}
    for path in _walk(folder):
        if not path.endswith(TRANSCRIPT_SUFFIX):
            continue
        for line_number, name, text in _transcript_lines(path):
            if not text:
                raise UserError(f"{path}, line {line_number}: {name} has an empty transcript; fill it in or remove it")
            if name in transcripts:
                raise UserError(f"{name} has a transcript in {transcripts[name].path} and in {path}: remove one")
            transcripts[name] = _Transcript(path, text)
    return transcripts


def _transcript_lines(path: str) -> Iterator[tuple[int, str, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from error
    for i in range(len(lines)):
        name, *words = lines[i].split() or [""]
        if name:
            yield i + 1, name, " ".join(words)


def _match_transcripts(files: list[_AudioFile], transcripts: dict[str, _Transcript]) -> list[str]:
    found = {}
    for file in files:
        if file.stem in found:
            raise UserError(f"{found[file.stem]} and {file.path} have the same id: remove one of them")
        if file.stem not in transcripts:
            raise UserError(
                f"{file.path} has no transcript: add a line '{file.stem} TEXT' to a {TRANSCRIPT_SUFFIX} file beside "
                "it, remove the audio, or read the corpus as unlabelled"
            )
        found[file.stem] = file.path
    for name, transcript in transcripts.items():
        if name not in found:
            raise UserError(f"{transcript.path} has a transcript of {name} but there is no such audio: remove the line")
    return [transcripts[file.stem].text for file in files]


# -- lengths and cuts --


def _list_labelled(files, texts, decoder, *, with_seconds: bool) -> list[tuple[Utterance, float]]:
    """Utterances with their lengths; without `with_seconds` no file is opened, and all lengths are 0."""
    return [
        (
            Utterance(file.stem, file.speaker, text, functools.partial(decode_audio, file.path, decoder=decoder)),
            _seconds(file.path) if with_seconds else 0.0,
        )
        for file, text in zip(files, texts, strict=True)
    ]


def _list_unlabelled(files, max_seconds, decoder) -> list[tuple[Utterance, float]]:
    with concurrent.futures.ThreadPoolExecutor() as pool:  # decoding runs outside Python's lock
        cuts = list(pool.map(lambda file: _pieces(file.path, max_seconds), files))
    stems = collections.Counter(file.stem for file in files)
    listed = []
    for file, pieces in zip(files, cuts, strict=True):
        # Libri-Light's file names differ within a book only.
        name = file.stem if stems[file.stem] == 1 else "-".join([file.speaker, _parent(file.path), file.stem])
        for i, (start, stop) in enumerate(pieces):
            load = functools.partial(decode_audio, file.path, decoder=decoder, start=start, stop=stop)
            piece_name = name if len(pieces) == 1 else f"{name}-{i:04d}"
            listed.append((Utterance(piece_name, file.speaker, None, load), stop - start))
    return listed


def _parent(path: str) -> str:
    return os.path.basename(os.path.dirname(path))


def _seconds(path: str) -> float:
    with _readable(path):
        return soundfile.info(path).duration


def _pieces(path: str, max_seconds: float | None) -> list[tuple[float, float]]:
    """Seconds at which pieces of at most `max_seconds` begin and end, one after the other."""
    seconds = _seconds(path)
    if max_seconds is None or seconds <= max_seconds:
        return [(0.0, seconds)]
    loudness = _loudness(path)
    longest = int(max_seconds * _HOPS_PER_SECOND)
    cuts = [0]
    while len(loudness) - cuts[-1] > longest:
        rest = len(loudness) - cuts[-1]
        # Not before half the longest piece, and not so late that only a scrap remains.
        earliest, latest = longest // 2, min(longest, rest - longest // 4)
        quietest = int(np.argmin(loudness[cuts[-1] + earliest : cuts[-1] + latest]))
        cuts.append(cuts[-1] + earliest + quietest)
    times = [cut / _HOPS_PER_SECOND for cut in cuts] + [seconds]
    return list(zip(times[:-1], times[1:], strict=True))


def _loudness(path: str) -> np.ndarray:
    """[seconds * hops] power around each hop, over a stretch so long that a stop consonant is no pause."""
    with _readable(path):
        rate = soundfile.info(path).samplerate
        seconds = soundfile.blocks(path, blocksize=rate, dtype="float32", always_2d=True)
        power = np.concatenate([_hop_power(block.mean(axis=1), rate) for block in seconds])
    return np.convolve(power, np.ones(_PAUSE_HOPS), "same")


def _hop_power(samples: np.ndarray, rate: int) -> np.ndarray:
    starts = np.arange(_HOPS_PER_SECOND) * rate // _HOPS_PER_SECOND
    return np.add.reduceat(np.square(samples), starts[starts < len(samples)])


def _report(folder: str, num_listed: int, num_kept: int, limits: str) -> None:
    if not num_kept:
        raise UserError(f"{folder} has no utterance of {limits}: change the limits on length")
    if num_kept < num_listed:
        logging.warning("%s: %d of %d utterances are not of %s", folder, num_listed - num_kept, num_listed, limits)


# -- decoding --


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, OSError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"Error opening {path!r}: ").rstrip(".")
        raise UserError(f"cannot read audio from {path}: {reason}; replace or remove the file") from error


def _read_by_soundfile(path: str, subtype: str, first: int, last: int) -> np.ndarray:
    # As integers where they are integers: libsndfile would not scale float files to int16.
    dtype = "int16" if subtype == "PCM_16" else "float32"
    return soundfile.read(path, start=first, stop=last, dtype=dtype, always_2d=True)[0]


def _read_by_tensorflow_io(path: str, subtype: str, first: int, last: int) -> np.ndarray:
    audio = _tensorflow_io().audio
    content = tf.io.read_file(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".flac":
        samples = audio.decode_flac(content, dtype=tf.int16)
    elif suffix == ".wav":
        samples = audio.decode_wav(content, dtype=tf.int16)
    elif suffix == ".mp3":
        samples = audio.decode_mp3(content)
    else:
        samples = audio.decode_vorbis(content)
    return samples.numpy()[first:last]


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


_DECODE = {"soundfile": _read_by_soundfile, "tensorflow_io": _read_by_tensorflow_io}


def _check_decoder(decoder: str) -> None:
    if decoder not in _DECODE:
        raise UserError(f"decoder {decoder!r} is none of {', '.join(_DECODE)}: choose one of them")
    if decoder == "tensorflow_io":
        _tensorflow_io()


def _to_mono_16k(samples: np.ndarray, rate: int) -> np.ndarray:
    if samples.dtype == np.int16 and samples.shape[1] == 1 and rate == SAMPLE_RATE:
        return samples[:, 0]
    scale = 32768.0 if samples.dtype == np.int16 else 1.0
    mono = np.mean(samples, axis=1, dtype=np.float32) / np.float32(scale)  # [S]
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
