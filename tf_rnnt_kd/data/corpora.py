"""Recorded speech in the layout of LibriSpeech and Libri-Light, as a list of utterances that load when asked."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from absl import logging

from tf_rnnt_kd.data.audio import (
    DECODERS,
    AudioError,
    audio_seconds,
    check_decoder,
    decode_audio,
    mono_seconds,
    show_name,
)
from tf_rnnt_kd.data.folders import find_audio, name_problem
from tf_rnnt_kd.data.remembered import recaller
from tf_rnnt_kd.data.transcripts import TRANSCRIPT_SUFFIX, Transcript, as_id, read_transcripts
from tf_rnnt_kd.errors import Problems, UserError
from tf_rnnt_kd.options import Distinct, NotNegative, OneOf, Positive, Text, checked

_HOPS_PER_SECOND = 100  # resolution of cuts
_PAUSE_HOPS = 20  # a cut goes where so many hops together are quietest
# What `_cut` gives depends on it: the number goes up whenever the rule changes, as cuts are remembered.
_CUTS = f"rule 1, {_PAUSE_HOPS} of {_HOPS_PER_SECOND} hops"


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance, not yet read.

    Attributes:
      id: unique in its corpus.
      speaker: who speaks.
      text: the transcript, or None for unlabelled speech.
      load: gives [S] int16 mono samples at 16 kHz, or raises `AudioError`.
      source: what its audio is made from, as text that changes when that changes.
    """

    id: str
    speaker: str
    text: str | None
    load: Callable[[], np.ndarray]
    source: str = ""


class BadAudio(Problems):
    """A corpus with files that are no speech, but nothing else wrong.

    Attributes:
      errors: of all of them.
      utterances: the whole corpus, also those whose `load` will raise such an error; for a caller that leaves them out.
    """

    def __init__(self, errors: Sequence[AudioError], utterances: Sequence[Utterance], where: str):
        super().__init__([error.message for error in errors], where)
        self.errors = errors
        self.utterances = utterances


@dataclasses.dataclass(frozen=True)
class _AudioFile:
    path: str
    stem: str
    speaker: str
    source: str  # see Utterance


class _Listed(NamedTuple):
    utterance: Utterance
    seconds: float | None  # None where its audio can't be read


@dataclasses.dataclass
class _Faults:
    """What was found wrong with a corpus: its layout, and its files of audio."""

    layout: list[str] = dataclasses.field(default_factory=list)
    audio: list[AudioError] = dataclasses.field(default_factory=list)


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
    """Lists a corpus: `speaker/chapter/ID.flac` (or another suffix of `audio`) with `ID TEXT` lines in `*.trans.txt`.

    With limits on length, every file is looked through to know its true length; unlabelled files over `max_seconds`
    are decoded as a whole, once, to find their pauses.

    Args:
      folder: the corpus, or any folder of it. Hidden files and folders are left out.
      splits: the folders below it that are wanted, such as `train-clean-100`; none for all.
      labelled: False ignores transcripts and cuts files over `max_seconds` at pauses into `ID-0000`, `ID-0001`, …
      min_seconds: shorter utterances and pieces are left out.
      max_seconds: longer labelled utterances are left out; None for no limit.
      decoder: see `decode_audio`.

    Returns:
      Utterances in the order of their ids, which are in Unicode's form NFC.

    Raises:
      UserError: no such folder, no audio in it; all names that are no ids, and in a labelled corpus all audio without
        transcript, transcripts without audio, empty transcripts, and two of the same id.
      BadAudio: nothing of that, but audio that can't be read, as far as it was looked through.
    """
    check_decoder(decoder)
    folders = [os.path.join(folder, split) for split in splits] or [folder]
    faults = _Faults()
    kept = [u for path in folders for u in _read_folder(path, labelled, min_seconds, max_seconds, decoder, faults)]
    kept.sort(key=lambda utterance: utterance.id)
    if not faults.layout:
        faults.layout = [f"two utterances have the id {name}: rename one" for name in _twice([u.id for u in kept])]
    if faults.layout:
        raise Problems([*faults.layout, *(error.message for error in faults.audio)], show_name(folder))
    if faults.audio:
        raise BadAudio(faults.audio, kept, show_name(folder))
    return kept


def _look_for_splits(folder: str, *, splits: Sequence[str] = (), **_) -> None:
    """Raises UserError where a folder of `read_librispeech` is missing or has no audio; no file is opened."""
    for split in splits or [""]:
        find_audio(os.path.join(folder, split) if split else folder)


read_librispeech.look = _look_for_splits  # for those who only want to know whether there is something


def _read_folder(folder, labelled, min_seconds, max_seconds, decoder, faults) -> list[Utterance]:
    files = [_audio_file(path, folder, decoder) for path in find_audio(folder)]
    files = [file for file in files if _has_good_name(file, folder, faults)]
    if labelled:
        texts = _match_transcripts(files, read_transcripts(folder, faults.layout), faults)
        with_seconds = min_seconds > 0 or max_seconds is not None
        listed = _list_labelled(files, texts, decoder, faults, with_seconds=with_seconds)
    else:
        listed = _list_unlabelled(files, max_seconds, decoder, faults)
    longest = np.inf if max_seconds is None else max_seconds
    kept = [item.utterance for item in listed if item.seconds is None or min_seconds <= item.seconds <= longest]
    if not faults.layout:
        _report(folder, len(listed), len(kept), f"{min_seconds:g} to {longest:g} s")
    return kept


def _twice(ids: Sequence[str]) -> list[str]:
    """What follows its like in a sorted list."""
    return [name for name, previous in zip(ids[1:], ids, strict=False) if name == previous]


# -- finding --


def _audio_file(path: str, folder: str, decoder: str) -> _AudioFile:
    inner = os.path.relpath(path, folder)
    parts = inner.split(os.sep)
    stem = as_id(os.path.splitext(parts[-1])[0])
    speaker = as_id(parts[-3]) if len(parts) >= 3 else stem.partition("-")[0]
    try:
        status = os.stat(path)
        stamp = f"{status.st_size} bytes, modified at {status.st_mtime_ns} ns"
    except OSError as error:  # a link to nowhere: told when it is read
        stamp = str(error.strerror)
    return _AudioFile(path, stem, speaker, f"{show_name(inner)}, {stamp}, {decoder}")


def _has_good_name(file: _AudioFile, folder: str, faults: _Faults) -> bool:
    problem = name_problem(os.path.relpath(file.path, folder))
    if problem:
        faults.layout.append(f"{show_name(file.path)}: {problem}")
    return not problem


def _match_transcripts(
    files: list[_AudioFile], transcripts: dict[str, Transcript], faults: _Faults
) -> dict[str, Transcript]:
    """The transcripts, after a look whether each has one file and each file has one."""
    found: dict[str, str] = {}
    first_words = set()
    for file in files:
        problem = None
        if len(file.stem.split()) != 1:
            first_words.add((file.stem.split() or [""])[0])
            problem = (
                f"{file.path}: an id has no spaces, rename the file, and the id in its line of {TRANSCRIPT_SUFFIX}"
            )
        elif file.stem in found:
            problem = f"{found[file.stem]} and {file.path} have the same id: remove one of them"
        elif file.stem not in transcripts:
            problem = (
                f"{file.path} has no transcript: add a line '{file.stem} TEXT' to a {TRANSCRIPT_SUFFIX} file beside "
                "it, remove the audio, or read the corpus as unlabelled"
            )
        found[file.stem] = file.path
        faults.layout.extend([problem] if problem else [])
    for name, transcript in transcripts.items():
        if name not in found and name not in first_words:
            faults.layout.append(
                f"{transcript.path} has a transcript of {name} but there is no such audio: remove the line"
            )
    return transcripts


# -- lengths and cuts --


def _list_labelled(files, transcripts, decoder, faults, *, with_seconds: bool) -> list[_Listed]:
    """Utterances with their lengths; without `with_seconds` no file is opened, and all lengths are 0."""
    lengths = _look_through(None, files, faults) if with_seconds else [[0.0]] * len(files)
    return [
        _Listed(
            Utterance(
                file.stem,
                file.speaker,
                transcripts[file.stem].text,
                functools.partial(decode_audio, file.path, decoder=decoder),
                file.source,
            ),
            ends and ends[0],
        )
        for file, ends in zip(files, lengths, strict=True)
        if file.stem in transcripts
    ]


def _list_unlabelled(files, max_seconds, decoder, faults) -> list[_Listed]:
    cuts = _look_through(max_seconds, files, faults)
    stems = collections.Counter(file.stem for file in files)
    listed = []
    for file, pieces in zip(files, cuts, strict=True):
        # Libri-Light's file names differ within a book only.
        name = file.stem if stems[file.stem] == 1 else "-".join([file.speaker, _parent(file.path), file.stem])
        listed.extend(_pieces(file, name, pieces, decoder))
    return listed


def _pieces(file: _AudioFile, name: str, ends: list[float] | None, decoder: str) -> list[_Listed]:
    """A file as one utterance, or as those between its cuts."""
    if ends is None or len(ends) == 1:
        load = functools.partial(decode_audio, file.path, decoder=decoder)
        return [_Listed(Utterance(name, file.speaker, None, load, file.source), ends and ends[0])]
    listed = []
    for i, (start, stop) in enumerate(zip([0.0, *ends[:-1]], ends, strict=True)):
        load = functools.partial(decode_audio, file.path, decoder=decoder, start=start, stop=stop)
        source = f"{file.source}, {start:.2f} to {stop:.2f} s"
        listed.append(_Listed(Utterance(f"{name}-{i:04d}", file.speaker, None, load, source), stop - start))
    return listed


def _look_through(max_seconds: float | None, files: Sequence[_AudioFile], faults: _Faults) -> list[list[float] | None]:
    """Where the pieces of each file end, see `_cut`; None of those that can't be read."""
    recall = recaller()

    def try_to(file):
        key = f"{os.path.abspath(file.path)}, {file.source}, at most {max_seconds} s, {_CUTS}"
        try:
            return recall(ascii(key), functools.partial(_cut, file.path, max_seconds))
        except AudioError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:  # decoding runs outside Python's lock
        found = list(pool.map(try_to, files))
    faults.audio.extend(item for item in found if isinstance(item, AudioError))
    return [None if isinstance(item, AudioError) else item for item in found]


def _parent(path: str) -> str:
    return as_id(os.path.basename(os.path.dirname(path)))


def _cut(path: str, max_seconds: float | None) -> list[float]:
    """Seconds at which pieces of at most `max_seconds` end, one after the other."""
    seconds = audio_seconds(path)
    if max_seconds is None or seconds <= max_seconds:
        return [seconds]
    loudness = _loudness(path)
    longest = int(max_seconds * _HOPS_PER_SECOND)
    cuts = [0]
    while len(loudness) - cuts[-1] > longest:
        rest = len(loudness) - cuts[-1]
        # Not before half the longest piece, and not so late that only a scrap remains.
        earliest, latest = longest // 2, min(longest, rest - longest // 4)
        quietest = int(np.argmin(loudness[cuts[-1] + earliest : cuts[-1] + latest]))
        cuts.append(cuts[-1] + earliest + quietest)
    return [cut / _HOPS_PER_SECOND for cut in cuts[1:]] + [seconds]


def _loudness(path: str) -> np.ndarray:
    """[seconds * hops] power around each hop, over a stretch so long that a stop consonant is no pause."""
    power = np.concatenate([_hop_power(samples, rate) for samples, rate in mono_seconds(path)])
    return np.convolve(power, np.ones(_PAUSE_HOPS), "same")


def _hop_power(samples: np.ndarray, rate: int) -> np.ndarray:
    starts = np.arange(_HOPS_PER_SECOND) * rate // _HOPS_PER_SECOND
    return np.add.reduceat(np.square(samples), starts[starts < len(samples)])


def _report(folder: str, num_listed: int, num_kept: int, limits: str) -> None:
    if not num_kept:
        raise UserError(f"{folder} has no utterance of {limits}: change the limits on length")
    if num_kept < num_listed:
        logging.warning("%s: %d of %d utterances are not of %s", folder, num_listed - num_kept, num_listed, limits)
