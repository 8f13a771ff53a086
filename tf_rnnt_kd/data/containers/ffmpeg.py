"""The sound of m4a, mp4, WebM, Matroska, WMA and others, decoded by FFmpeg through PyAV, which is an extra.

PyAV's wheels hold FFmpeg with parts under the GPL, so nothing else here needs them.
"""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tf_rnnt_kd.data.containers.streams import Damaged, Foreign

_MISSING_SECONDS = 0.25  # more than what encoders add and decoders drop at both ends


class Decoded(NamedTuple):
    """A block of samples.

    Attributes:
      samples: [S, C] float32.
      rate: in Hz.
    """

    samples: np.ndarray
    rate: int


def decode(path: str, form: Foreign) -> Iterator[Decoded]:
    """The sound of a file, block by block; of several sounds the one that FFmpeg holds for the best.

    Raises:
      Damaged: PyAV is not installed, there is no sound, it is damaged, or it is shorter than the file says.
    """
    av = _load(form)
    # From an open file and as this format alone: FFmpeg would open what a playlist names, be it elsewhere.
    with open(path, "rb") as file:
        try:
            with av.open(file, format=form.demuxer, metadata_errors="ignore") as container:
                stream = container.streams.best("audio")
                if stream is None or stream.codec_context is None:
                    raise Damaged(f"it is {form.name} without sound that FFmpeg can decode")
                yield from _blocks(av, container, stream, form)
        except (av.FFmpegError, ValueError) as error:
            raise Damaged(f"FFmpeg finds it damaged ({' '.join(str(error).split())})") from error


def _load(form: Foreign) -> ModuleType:
    try:
        return importlib.import_module("av")
    except ImportError:
        advice = "pip install tf_rnnt_kd[av], convert the file to FLAC, or remove it"
        raise Damaged(f"it is {form.name}, which needs PyAV", advice) from None


def _blocks(av: ModuleType, container: Any, stream: Any, form: Foreign) -> Iterator[Decoded]:
    resampler = av.AudioResampler(format="fltp")  # of the same rate and channels
    # Elsewhere it is an estimate, or the end of the pictures.
    promised = float(stream.duration * stream.time_base) if form.demuxer == "mov" and stream.duration else 0.0
    begin, seconds = None, 0.0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise Damaged("a part of it is damaged")
        if begin is None:
            begin = frame.time
        seconds += frame.samples / frame.sample_rate
        if frame.time is not None and begin is not None:
            promised = max(promised, frame.time - begin)
        for even in resampler.resample(frame):
            yield Decoded(even.to_ndarray().T, even.sample_rate)
    if seconds < promised - _MISSING_SECONDS:
        raise Damaged(f"parts of it are missing, {seconds:.2f} of {promised:.2f} seconds are there")
