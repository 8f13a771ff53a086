"""Generated speech: espeak-ng speaks digit strings or sentences, with varied voice, rate, pitch, level and noise.

Every utterance is a pure function of its seed, split and number, in whatever order and process it is made. Training,
development and test material share neither voices nor digit strings nor sentences.

espeak-ng is formant synthesis: easier than people, and word error rates on it flatter.
"""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Annotated

import numpy as np
import soxr

from tf_rnnt_kd.data.audio import SAMPLE_RATE
from tf_rnnt_kd.data.corpora import Utterance
from tf_rnnt_kd.data.sentences import read_sentences
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.options import Count, CountOrZero, Finite, NotDescending, OneOf, Seed, Text, checked

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")

# Variants of the English voice. Left out: those with breath, whose samples depend on what was in memory before, and
# those that no human resembles (robosoft and kin). Relatives (Gene, Gene2) stay on one side of the split. "train" is
# ordered so that any first n are mixed.
VOICES = {
    "test": ("Gene", "Andrea", "adam", "linda", "Gene2", "pablo"),
    "dev": ("michel", "belinda", "Lee", "shelby"),
    "train": tuple(
        "m1 f1 Alex Annie klatt anika m4 steph Michael aunty boris f4 m7 grandma klatt3 paul max Jacky m2 steph2 Andy"
        " ed m5 steph3 rob john klatt2 iven Mario grandpa m8 david Denis ian m3 travis gustave Hugo m6 edward quincy"
        " Mike norbert Diogo zac antonio robert benjamin Henrique iven2 klatt4 klatt6 Marco pedro RicishayMax Tweaky"
        " marcelo Nguyen iven3 edward2 mike2 croak RicishayMax2 announcer klatt5 miguel Storm iven4 RicishayMax3"
        " kaukovalta AnxiousAndy".split()
    ),
}
Split = Annotated[str, OneOf(VOICES)]
Decibels = Annotated[tuple[Finite, Finite], NotDescending]  # lowest and highest

_LANGUAGE = "gmw/en"  # by path: by name, espeak-ng would first read the files of all its languages

_NOISES = ("white", "pink", "babble")
_TEST_SHARE = _DEV_SHARE = 0.1  # of the digit strings, and of a file's sentences
_MOST_DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class _Script:
    """All that decides one utterance's samples."""

    words: str
    voice: str
    rate: int  # words a minute
    pitch: int  # 0..99, 50 is the voice's own
    snr_db: float
    noise: str
    peak_db: float
    silence: tuple[float, float]  # seconds before and after
    seed: tuple[int, ...]


@checked
def generate_digits(
    *,
    split: Split,
    num_utterances: Count,
    num_voices: Count,
    snr_db: Decibels,
    seed: Seed,
    min_digits: Count = 3,
    max_digits: Count = 7,
) -> list[Utterance]:
    """Strings of spoken digits; nothing is synthesised until an utterance is loaded.

    Args:
      split: `train`, `dev` or `test`; they share neither voices nor digit strings.
      num_utterances: how many.
      num_voices: the first so many of the split's voices, so that a large set has the voices of a small one.
      snr_db: lowest and highest ratio of speech to noise, in dB.
      seed: same arguments, same samples.
      min_digits: shortest string.
      max_digits: longest string.

    Raises:
      UserError: espeak-ng is not installed, or the split has not so many voices.
    """
    if min_digits > max_digits:
        raise UserError(f"min_digits is {min_digits}, above max_digits, {max_digits}: exchange them")
    voices = _choose_voices(split, num_voices)
    utterances = []
    for number in range(num_utterances):
        rng = _rng("digits", split, seed, number)
        words = " ".join(DIGITS[digit] for digit in _draw_digits(rng, split, min_digits, max_digits))
        utterances.append(_utterance("digits", split, seed, number, words, voices, snr_db, rng))
    return utterances


@checked
def generate_sentences(
    path: Text,
    *,
    split: Split,
    num_utterances: Count,
    num_voices: Count,
    snr_db: Decibels,
    seed: Seed,
    max_words: Count,
) -> list[Utterance]:
    """Spoken sentences of a text file.

    Args:
      path: UTF-8 text with a sentence a line, or `ID<TAB>sentence`. Lines with digits are left out.
      split: `train`, `dev` or `test`: the first 80 %, next 10 % and last 10 % of the file's different sentences.
      num_utterances: how many; sentences come again, by other voices, when there are fewer.
      num_voices: the first so many of the split's voices.
      snr_db: lowest and highest ratio of speech to noise, in dB.
      seed: same arguments and file, same samples.
      max_words: longer sentences are cut after so many words.

    Raises:
      UserError: espeak-ng is not installed, the file has no sentence for the split, or the split has too few voices.
    """
    voices = _choose_voices(split, num_voices)
    sentences = _order(_read_sentences(path, split, max_words), split, seed)
    utterances = []
    for number in range(num_utterances):
        words = sentences[number % len(sentences)]
        rng = _rng("sentences", split, seed, number)
        utterances.append(_utterance("sentences", split, seed, number, words, voices, snr_db, rng))
    return utterances


@checked
def unspoken_sentences(
    path: Text, *, split: Split, num_utterances: CountOrZero, seed: Seed, max_words: Count
) -> list[str]:
    """The sentences, whole, that `generate_sentences` leaves out with the same arguments: text for a language model.

    Raises:
      UserError: the file has no sentence for the split, or all of them are spoken.
    """
    sentences = _read_sentences(path, split, max_words)
    left = _order(sentences, split, seed)[num_utterances:]
    if not left:
        raise UserError(f"all {len(sentences)} sentences of {split!r} in {path} are spoken: give more, or speak fewer")
    return [sentences[cut] for cut in left]


# -- who says what --


def _choose_voices(split: str, num_voices: int) -> Sequence[str]:
    available = VOICES[split]
    if num_voices > len(available):
        raise UserError(f"split {split!r} has {len(available)} voices, not {num_voices}: ask for 1 to {len(available)}")
    _espeak_files()  # an early word when espeak-ng is missing
    return available[:num_voices]


def _rng(kind: str, split: str, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng(_entropy(kind, split, seed, number))


def _entropy(kind: str, split: str, seed: int, number: int) -> tuple[int, ...]:
    name = int.from_bytes(hashlib.sha256(f"{kind}/{split}".encode()).digest()[:8], "little")
    return name, seed, number


def _utterance(kind, split, seed, number, words, voices, snr_db, rng) -> Utterance:
    script = _Script(
        words=words,
        voice=voices[rng.integers(len(voices))],
        rate=int(rng.integers(130, 211)),
        pitch=int(rng.integers(30, 71)),
        snr_db=float(rng.uniform(*snr_db)),
        noise=_NOISES[rng.integers(len(_NOISES))],
        peak_db=float(rng.uniform(-20.0, -1.0)),
        silence=tuple(rng.uniform(0.1, 0.4, 2).tolist()),
        seed=_entropy(f"{kind} noise", split, seed, number),
    )
    name = f"{kind}-{split}-{seed}-{number:06d}"
    return Utterance(name, script.voice, words, functools.partial(_perform, script), repr(script))


def _draw_digits(rng: np.random.Generator, split: str, min_digits: int, max_digits: int) -> list[int]:
    for _ in range(_MOST_DRAWS):
        digits = rng.integers(0, 10, rng.integers(min_digits, max_digits + 1)).tolist()
        if _split_of(digits) == split:
            return digits
    raise UserError(f"split {split!r} has no strings of {min_digits} to {max_digits} digits: allow longer ones")


def _split_of(digits: Sequence[int]) -> str:
    """By the string's own hash, so that no list of strings needs to be kept."""
    share = int.from_bytes(hashlib.sha256(bytes(digits)).digest()[:4], "little") / 2**32
    if share < _TEST_SHARE:
        return "test"
    return "dev" if share < _TEST_SHARE + _DEV_SHARE else "train"


def _read_sentences(path: str, split: str, max_words: int) -> dict[str, str]:
    """The split's sentences, cut -> whole."""
    whole = {}  # a repeated sentence must not land in two splits
    for sentence in read_sentences(path):
        whole.setdefault(" ".join(sentence.split()[:max_words]), sentence)
    sentences = list(whole.items())
    first_dev = round(len(sentences) * (1 - _DEV_SHARE - _TEST_SHARE))
    first_test = round(len(sentences) * (1 - _TEST_SHARE))
    blocks = {"train": slice(0, first_dev), "dev": slice(first_dev, first_test), "test": slice(first_test, None)}
    block = sentences[blocks[split]]
    if not block:
        raise UserError(f"{path} has {len(sentences)} sentences without digits, none for {split!r}: give more of them")
    return dict(block)


def _order(sentences: dict[str, str], split: str, seed: int) -> list[str]:
    """The order in which the cut sentences are spoken."""
    cut = list(sentences)
    return [cut[place] for place in _rng("order", split, seed, 0).permutation(len(cut))]


# -- from script to samples --


def _perform(script: _Script) -> np.ndarray:
    """[S] int16 at 16 kHz: speech between silences, noise over all of it."""
    rng = np.random.default_rng(script.seed)
    spoken, rate = _speak(script.words.lower(), script.voice, script.rate, script.pitch)
    speech = soxr.resample(spoken.astype(np.float32) / 32768.0, rate, SAMPLE_RATE)  # [S']
    power = np.mean(np.square(speech), dtype=np.float64)
    before, after = (round(seconds * SAMPLE_RATE) for seconds in script.silence)
    speech = np.pad(speech, (before, after))  # [S]
    noise = _NOISE_MAKERS[script.noise](rng, len(speech))  # [S]
    gain = np.sqrt(power / np.mean(np.square(noise), dtype=np.float64) / 10 ** (script.snr_db / 10))
    mixed = speech + gain * noise
    peak = 10 ** (script.peak_db / 20) * 32767
    return np.rint(mixed * (peak / np.max(np.abs(mixed)))).astype(np.int16)


def _white(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.standard_normal(length, np.float32)


def _pink(rng: np.random.Generator, length: int) -> np.ndarray:
    return _shaped(rng, length, "pink")


def _babble(rng: np.random.Generator, length: int) -> np.ndarray:
    """Three noises with the long-term spectrum of speech, each rising and falling about four times a second."""
    knots = np.arange(0, length + SAMPLE_RATE, SAMPLE_RATE // 8)
    talkers = []
    for _ in range(3):
        loudness = np.interp(np.arange(length), knots, rng.uniform(0.0, 1.0, len(knots)) ** 2)
        talkers.append(loudness * _shaped(rng, length, "speech"))
    return np.sum(talkers, axis=0)


def _shaped(rng: np.random.Generator, length: int, colour: str) -> np.ndarray:
    size = 1 << max(length - 1, 1).bit_length()  # a power of two: other lengths can be many times slower
    spectrum = np.fft.rfft(rng.standard_normal(size, np.float32)) * _amplitudes(colour, size)
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32)


@functools.lru_cache(maxsize=32)
def _amplitudes(colour: str, size: int) -> np.ndarray:
    hertz = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    if colour == "pink":
        return (1.0 / np.sqrt(np.maximum(hertz, 20.0))).astype(np.float32)
    return (hertz / (hertz + 100.0) / (1.0 + (hertz / 500.0) ** 2) ** 0.75).astype(np.float32)


_NOISE_MAKERS = {"white": _white, "pink": _pink, "babble": _babble}


# -- espeak-ng --

_ONE_AT_A_TIME = threading.Lock()
_SAMPLES_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
# Of speak_lib.h. Without the last, a missing file would end this process.
_SYNCHRONOUS, _RATE, _PITCH, _UTF8, _DO_NOT_EXIT = 2, 1, 3, 1, 0x8000


def _speak(text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, int]:
    """[S'] int16 samples and their rate in Hz."""
    chunks = []

    def keep(samples, count, _):
        if count > 0:
            chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    _check_voice(voice)
    callback = _SAMPLES_CALLBACK(keep)  # must outlive the synthesis
    with _ONE_AT_A_TIME, _fresh_espeak() as (espeak, sample_rate):
        espeak.espeak_SetSynthCallback(callback)
        status = espeak.espeak_SetVoiceByName(f"{_LANGUAGE}+{voice}".encode())
        espeak.espeak_SetParameter(_RATE, rate, 0)
        espeak.espeak_SetParameter(_PITCH, pitch, 0)
        content = text.encode()
        status |= espeak.espeak_Synth(content, ctypes.c_size_t(len(content) + 1), 0, 0, 0, _UTF8, None, None)
    samples = np.frombuffer(b"".join(chunks), np.int16)
    if status or not np.any(samples):
        raise RuntimeError(f"espeak-ng did not say {text!r} by {voice!r}: status {status}, {len(samples)} samples")
    return samples, sample_rate


def _check_voice(voice: str) -> None:
    """espeak-ng itself speaks with its usual voice when it does not know one."""
    if not os.path.exists(os.path.join(_espeak_files()[1], "voices", "!v", voice)):
        raise UserError(f"this espeak-ng has no voice {voice!r}: install espeakng-loader as in constraints.txt")


@contextlib.contextmanager
def _fresh_espeak() -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library as after its first loading.

    espeak-ng keeps positions of its flutter and phase tables between utterances, and no call of its interface resets
    them. Unloading it does, and costs 2 ms.
    """
    path, data = _espeak_files()
    if _is_loaded(path):
        raise UserError("other code in this process holds espeak-ng, so speech would vary: use a process of its own")
    process = ctypes.CDLL(None)
    espeak = ctypes.CDLL(path)
    try:
        sample_rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
        if sample_rate <= 0:
            raise UserError(f"espeak-ng cannot read its data in {data}: install espeakng-loader again")
        process.srand(1)  # its noises are the C library's random numbers
        yield espeak, sample_rate
        espeak.espeak_Terminate()
    finally:
        process.dlclose(ctypes.c_void_p(espeak._handle))


def _is_loaded(path: str) -> bool:
    try:
        found = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(found._handle))  # looking counts as holding
    return True


def _espeak_files() -> tuple[str, str]:
    """Paths of the library and of its data."""
    loader = _espeak_loader()
    return loader.get_library_path(), loader.get_data_path()


@functools.cache
def _espeak_loader() -> ModuleType:
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise UserError("generated speech needs espeak-ng: pip install tf_rnnt_kd[synthesis]") from error
