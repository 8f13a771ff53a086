"""Files of audio for tests, in formats that people have."""

import numpy as np
import soundfile

RATE = 16000


def tone(seconds, rate=RATE, hertz=440.0, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def random_samples(seconds=0.5):
    return np.random.default_rng(0).integers(-20000, 20000, round(seconds * RATE)).astype(np.int16)


def add_audio(path, samples=None, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, random_samples() if samples is None else samples, rate, **options)
    return path


def changing(seconds, rate=RATE):
    """Noise that is loud, then quiet, then half as loud, so that frames of MP3 differ in size."""
    noise = np.random.default_rng(1).standard_normal(round(seconds * rate))
    level = np.repeat([0.3, 0.0, 0.15], [len(noise) // 7, len(noise) - 2 * (len(noise) // 7), len(noise) // 7])
    return (noise * level).astype(np.float32)


def without_info(mp3):
    """An MP3 file's bytes without the first frame, which counts the others."""
    code = mp3[2] >> 4
    kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[code]
    return mp3[72 * kbps * 1000 // RATE + (mp3[2] >> 1 & 1) :]


def without_length(flac):
    """A FLAC file's bytes as an encoder leaves them that writes into a pipe."""
    content = bytearray(flac)
    content[18:26] = (int.from_bytes(content[18:26], "big") >> 36 << 36).to_bytes(8, "big")
    content[26:42] = bytes(16)
    return bytes(content)


def encode(path, samples, codec, *, rate=RATE, container=None, options=None):
    """Writes [S] samples by PyAV, whose formats soundfile does not write."""
    import av

    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        context = stream.codec_context
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        for even in av.AudioResampler(format=context.format, layout="mono", rate=rate).resample(frame):
            fifo.write(even)
        size = context.frame_size or 1024
        while fifo.samples:
            for packet in stream.encode(fifo.read(min(size, fifo.samples))):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return path
