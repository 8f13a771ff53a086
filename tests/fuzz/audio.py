"""Audio files: listed as a corpus without transcripts, and decoded."""

import importlib.util
import io
import pathlib

import numpy as np
import soundfile

from tests.fuzz.core import Case, Door, Outcome, digest, one_of, remove
from tests.fuzz.damage import damage_bytes
from tf_rnnt_kd.data.corpora import read_librispeech
from tf_rnnt_kd.errors import UserError

_RATE, _SECONDS = 16_000, 0.5


def _sound(rate: int = _RATE) -> np.ndarray:
    """[S] float64: two tones and some noise."""
    time = np.arange(int(_SECONDS * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    return 0.2 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 1_300 * time) + 0.01 * noise


def _written(kind: str, subtype: str | None = None, rate: int = _RATE, channels: int = 1) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.stack([_sound(rate)] * channels, 1), rate, format=kind, subtype=subtype)
    return out.getvalue()


def _aac() -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=_RATE, layout="mono")
        # Longer than the others: encoders add, and decoders drop, a quarter of a second, which is let pass.
        sound = np.tile(_sound(), 4).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = _RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return out.getvalue()


_FILES = {
    "wav": lambda: _written("WAV", "PCM_16"),
    "24.wav": lambda: _written("WAV", "PCM_24", 44_100, 2),
    "float.wav": lambda: _written("WAV", "FLOAT"),
    "flac": lambda: _written("FLAC"),
    "stereo.flac": lambda: _written("FLAC", "PCM_16", 22_050, 2),
    "mp3": lambda: _written("MP3"),
    "ogg": lambda: _written("OGG", "VORBIS"),
    "opus": lambda: _written("OGG", "OPUS"),
    "m4a": _aac,
}


class Audio(Door):
    """Files of six formats, and some that nobody can have recorded."""

    name, cases = "audio", 900

    def build(self):
        for name, make in _FILES.items():
            if name != "m4a" or importlib.util.find_spec("av"):
                (self.folder / f"x.{name}").write_bytes(make())

    def open(self):
        self._whole = {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}
        self._samples, found = {}, {}
        for name, data in self._whole.items():
            try:
                self._samples[name] = _hear(self._put(name, data))
                found[name] = digest(self._samples[name])
            except UserError:
                found[name] = None  # a format that is not read: all of its cases are refused
        return found

    def case(self, rng, number):
        if number % 10 == 9:
            kind = list(_MADE)[rng.integers(len(_MADE))]
            return Case(kind, ("x.wav", self._put("x.wav", _MADE[kind]())))
        name = one_of(rng, list(self._whole))
        whole = self._whole[name]
        what, data = damage_bytes(rng, whole, 12 if rng.integers(2) else 0)
        allowed = ()
        if data == whole + whole and name in self._samples:  # files that were joined are heard one after the other
            allowed = (Outcome(name, digest(np.tile(self._samples[name], 2))),)
        given = name, self._put(name, data)
        return Case(f"{name}: {what}", given, excused=_is_excused(name, whole, data), allowed=allowed)

    def enter(self, given):
        name, folder = given
        return Outcome(name, digest(_hear(folder)))

    def fits(self, outcome, reference):
        return outcome.found == reference[outcome.name]

    def _put(self, name: str, data: bytes) -> pathlib.Path:
        remove(self.scratch)
        self.scratch.mkdir()
        (self.scratch / name).write_bytes(data)
        return self.scratch


def _hear(folder: pathlib.Path) -> np.ndarray:
    (utterance,) = read_librispeech(str(folder), labelled=False)
    return utterance.load()


def _is_excused(name: str, whole: bytes, data: bytes) -> bool:
    """Whether only bytes differ, and some of them where the format has nothing to compare them with."""
    if name.endswith("mp3") and _first_difference(whole, data) < _FREE["mp3"](whole)[0][0]:
        return True  # a frame of its own says how many there are; without it, as most files, nobody knows
    if len(whole) != len(data):
        return False
    differ = np.frombuffer(whole, np.uint8) != np.frombuffer(data, np.uint8)
    free = _FREE.get(name.rpartition(".")[2], lambda whole: ())(whole)
    return any(differ[first:last].any() for first, last in free)


def _first_difference(whole: bytes, data: bytes) -> int:
    pairs = zip(whole, data, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(data)))


# From where to where a file has no redundancy: samples of PCM, frames of MP3 behind the first one, packets of AAC and
# with which of their samples the sound begins.
_FREE = {
    "wav": lambda whole: [(whole.index(b"data") + 8, len(whole))],
    "mp3": lambda whole: [(whole.index(whole[:3], 64), len(whole))],
    "m4a": lambda whole: [(whole.index(box) + 4, whole.index(after) - 4) for box, after in _FREE_BOXES],
}
_FREE_BOXES = ((b"mdat", b"moov"), (b"elst", b"mdia"))


def _float_wav(samples: np.ndarray, rate: int = _RATE) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return out.getvalue()


def _with_rate(rate: int) -> bytes:
    """The header of a WAV file says this rate, in both of its places."""
    data = bytearray(_written("WAV", "PCM_16"))
    data[24:32] = rate.to_bytes(4, "little") + (2 * rate % 2**32).to_bytes(4, "little")
    return bytes(data)


def _patched(place: int, value: float) -> np.ndarray:
    samples = _sound()
    samples[place] = value
    return samples


_MADE = {
    "a sample is not a number": lambda: _float_wav(_patched(4_000, np.nan)),
    "the last sample is infinite": lambda: _float_wav(_patched(-1, np.inf)),
    "a sample is enormous": lambda: _float_wav(_patched(0, 1e30)),
    "in the scale of int16": lambda: _float_wav(32_768 * _sound()),
    "all is NaN": lambda: _float_wav(np.nan * _sound()),
    "no sample": lambda: _float_wav(np.zeros(0)),
    "opposite channels": lambda: _float_wav(np.stack([_sound(), -_sound()], 1)),
    "1 Hz": lambda: _with_rate(1),
    "0 Hz": lambda: _with_rate(0),
    "2 GHz": lambda: _with_rate(2_000_000_000),
    "empty file": lambda: b"",
    "header alone": lambda: _written("WAV", "PCM_16")[:44],
    "text": lambda: b"this is no audio at all\n" * 100,
}
