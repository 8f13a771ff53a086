"""Audio of files, folders and standard input, written down as text, subtitles or JSON."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_rnnt_kd import files
from tf_rnnt_kd.data.audio import decode_audio, show_name
from tf_rnnt_kd.data.folders import find_audio, name_problem
from tf_rnnt_kd.errors import Problems, UserError
from tf_rnnt_kd.serving.recognizer import LiteRecognizer, Recognizer, in_chunks
from tf_rnnt_kd.text.subtitles import format_srt, format_vtt
from tf_rnnt_kd.text.transcript import Transcript

FORMATS = ("text", "srt", "vtt", "json")
_STDIN = "-"


class Source(NamedTuple):
    """Audio to transcribe: where it is, and the name of its transcript without ending."""

    path: str
    name: str


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Files as they are, folders as all audio in them, `-` as standard input."""
    sources = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = find_audio(argument)
            sources.extend(Source(path, os.path.splitext(os.path.relpath(path, argument))[0]) for path in found)
        else:
            name = "stdin" if argument == _STDIN else os.path.splitext(os.path.basename(argument))[0]
            sources.append(Source(argument, name))
    return sources


def transcribe_sources(
    recognizer: Recognizer | LiteRecognizer,
    sources: Sequence[Source],
    *,
    chunk_ms: int = 640,
    form: str = "text",
    nbest: int = 0,
    output: str | None = None,
) -> None:
    """Prints or writes one transcript after the other; a terminal shows each as it grows.

    A source that cannot be transcribed does not keep the others from it.

    Args:
      recognizer: what hears.
      sources: of `find_sources`.
      chunk_ms: milliseconds fed to a streaming model at once.
      form: one of `FORMATS`; on standard output text and JSON are one line a source.
      nbest: hypotheses in JSON beside the transcript, by a beam search over the whole; 0 for none.
      output: folder that receives a file for each source; None for standard output.

    Raises:
      UserError: for options that do not go together, two sources of one name, and, when the others are written, all
        audio that cannot be read or heard.
    """
    write = _printer(form, sources) if output is None else _writer(form, sources, output)
    _check_nbest(recognizer, form, nbest)
    size = chunk_ms * recognizer.sample_rate // 1000
    problems: list[str] = []
    for source in sources:
        try:
            chunks = _chunks(source, size, problems)
            heard: list[np.ndarray] = []
            transcript = _transcribe(recognizer, _keep(chunks, heard) if nbest else chunks)
            alternatives = _alternatives(recognizer, heard, nbest) if nbest else None
            text = _format(form, source, transcript, alternatives)
        except UserError as error:
            is_named = show_name(source.path) in error.message
            problems.append(error.message if is_named else f"{show_name(source.path)}: {error.message}")
        else:
            write(source, text)
    if problems:
        raise Problems(problems, f"{len(sources)} sources", shown=len(problems))


def _printer(form: str, sources: Sequence[Source]) -> Callable[[Source, str], None]:
    if form in ("srt", "vtt") and len(sources) > 1:
        raise UserError(f"{len(sources)} files do not make one {form} file: name a folder for theirs by --output")

    def write(source: Source, text: str) -> None:
        _print(f"{show_name(source.path)}: {text}" if form == "text" else text)

    return write


def _writer(form: str, sources: Sequence[Source], folder: str) -> Callable[[Source, str], None]:
    ending, taken = {"text": ".txt"}.get(form, f".{form}"), {}
    for source in sources:
        other = taken.setdefault(source.name, source.path)
        if other != source.path:
            names = f"{show_name(other)} and {show_name(source.path)}"
            raise UserError(f"{names} would both be written to {show_name(source.name)}{ending}: rename one")

    def write(source: Source, text: str) -> None:
        path = os.path.join(folder, source.name + ending)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_text(path, text)
        _print(f"{show_name(path)}\n")

    return write


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except UnicodeEncodeError as error:
        letter, encoding = ascii(error.object[error.start]), error.encoding
        remedy = "set PYTHONIOENCODING=utf-8, or have files written by --output"
        raise UserError(f"standard output is {encoding} and can't hold {letter}: {remedy}") from error


def _to_float(samples: np.ndarray) -> np.ndarray:
    return samples.astype("float32") / 32768.0


def _chunks(source: Source, size: int, problems: list[str]) -> Iterator[np.ndarray]:
    if source.path == _STDIN:
        return _listen(size, problems)
    problem = name_problem(source.name)
    if problem:
        raise UserError(f"{show_name(source.path)}: {problem}")
    return in_chunks(_to_float(decode_audio(source.path)), size)


def _listen(samples_per_chunk: int, problems: list[str]) -> Iterator[np.ndarray]:
    """Chunks of standard input, 16-bit little-endian; half a sample at its end is heard of at the end."""
    count = 0
    while data := sys.stdin.buffer.read(2 * samples_per_chunk):
        count += len(data)
        if len(data) > 1:
            yield _to_float(np.frombuffer(data[: len(data) // 2 * 2], "<i2"))
    if count < 2:
        raise UserError("standard input has no samples: send 16-bit samples at the model's rate")
    if count % 2:
        problems.append(f"standard input has {count} bytes, an odd number: send 16-bit samples, two bytes each")


def _keep(chunks: Iterator[np.ndarray], heard: list[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        heard.append(chunk)
        yield chunk


def _transcribe(recognizer: Recognizer | LiteRecognizer, chunks: Iterator[np.ndarray]) -> Transcript:
    if not recognizer.streaming:
        return recognizer.transcribe(np.concatenate([np.zeros([0], np.float32), *chunks]))
    for transcript in recognizer.stream(chunks):
        if sys.stdout.isatty():  # the end of the text, in one line
            _print("\r\x1b[K" + transcript.text[-(shutil.get_terminal_size().columns - 1) :])
    print("\r\x1b[K" if sys.stdout.isatty() else "", end="")
    return transcript


def _check_nbest(recognizer: Recognizer | LiteRecognizer, form: str, nbest: int) -> None:
    if not nbest:
        return
    if form != "json":
        raise UserError("only JSON holds several hypotheses: add --format json, or leave --nbest out")
    if not isinstance(recognizer, Recognizer) or nbest > recognizer.beam:
        most = f"{recognizer.beam} hypotheses" if isinstance(recognizer, Recognizer) else "one hypothesis"
        raise UserError(f"this export searches for {most}, not {nbest}: export a SavedModel with --beam {nbest}")


def _alternatives(recognizer: Recognizer, heard: Sequence[np.ndarray], nbest: int) -> Sequence[Transcript]:
    return recognizer.nbest(np.concatenate([np.zeros([0], np.float32), *heard]))[:nbest]


def _format(form: str, source: Source, transcript: Transcript, alternatives: Sequence[Transcript] | None) -> str:
    if form == "srt":
        return format_srt(transcript.words)
    if form == "vtt":
        return format_vtt(transcript.words)
    if form == "text":
        return transcript.text + "\n"
    described = {"audio": show_name(source.path), **_describe(transcript)}
    if alternatives is not None:
        described["nbest"] = [_describe(alternative) for alternative in alternatives]
    return json.dumps(described, ensure_ascii=False) + "\n"


def _describe(transcript: Transcript) -> dict[str, Any]:
    words = [
        {"word": text, "start": round(start, 3), "end": round(end, 3), "confidence": round(confidence, 4)}
        for text, start, end, confidence in transcript.words
    ]
    return {"text": transcript.text, "score": round(transcript.score, 4), "words": words}
