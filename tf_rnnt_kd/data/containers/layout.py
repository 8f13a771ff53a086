"""What a file is, by its content, whatever its name says."""

import os
import stat
from typing import BinaryIO

from tf_rnnt_kd.data.containers import boxes, flac, mp3, ogg, pcm
from tf_rnnt_kd.data.containers.streams import Damaged, Foreign, Stream, end_of_id3, read_at

_FOREIGN = {
    b"\x1aE\xdf\xa3": Foreign("matroska", "Matroska or WebM"),
    b"0&\xb2u\x8ef\xcf\x11": Foreign("asf", "WMA"),
    b"#!AMR": Foreign("amr", "AMR"),
    b"caff": Foreign("caf", "CAF"),
}
_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_HEAD = 1 << 12


def find_streams(path: str) -> list[Stream] | Foreign:
    """The streams of a file of audio for libsndfile, or the format in which only FFmpeg finds them.

    Nothing is decoded, and memory is taken for what is there, not for what a header promises.

    Raises:
      Damaged: the file is not whole, or is no audio.
      OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Damaged("it is no file")
    with open(path, "rb") as file:
        return _find_streams(file, os.path.getsize(path), path.lower().endswith(".mp3"))


def _find_streams(file: BinaryIO, size: int, is_named_mp3: bool) -> list[Stream] | Foreign:
    head = read_at(file, 0, _HEAD)
    pcm_streams, foreign = _find_pcm(file, head, size), _find_foreign(head)
    if foreign:
        boxes.check_whole(file, size, foreign)
    if pcm_streams or foreign:
        return pcm_streams or foreign
    if head.startswith(b"OggS"):
        return ogg.find_ogg_streams(file, size)
    after_tag = end_of_id3(head)
    start = read_at(file, after_tag, _HEAD)
    if start.startswith(b"fLaC"):
        return flac.find_flac_streams(file, size)
    if is_named_mp3 or after_tag or mp3.sniff_mp3(start):
        streams = mp3.find_mp3_streams(file, size)
        if streams:
            return streams
    other = mp3.sniff_other_layers(start)
    if other is None:
        raise Damaged("it is empty" if not size else "it is no audio of a known format")
    return other


def _find_pcm(file: BinaryIO, head: bytes, size: int) -> list[Stream] | None:
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return pcm.find_chunk_streams(file, size)
    if head.startswith(b"riff\x2e\x91\xcf\x11"):
        return pcm.find_w64_streams(file, size)
    if head.startswith(b"FORM") and head[8:12] in (b"AIFF", b"AIFC"):
        return pcm.find_chunk_streams(file, size)
    if head.startswith(b".snd"):
        return pcm.find_au_streams(file, size)
    return pcm.find_sphere_streams(file, size) if head.startswith(b"NIST_1A") else None


def _find_foreign(head: bytes) -> Foreign | None:
    if head[4:8] in _MP4_ATOMS:
        return Foreign("mov", "MP4")
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return Foreign("avi", "AVI")
    return next((form for magic, form in _FOREIGN.items() if head.startswith(magic)), None)
