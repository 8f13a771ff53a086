"""Transcripts of a corpus: lines `ID TEXT` in `*.trans.txt`."""

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from tf_rnnt_kd.data.folders import walk

TRANSCRIPT_SUFFIX = ".trans.txt"


class Transcript(NamedTuple):
    """What somebody says, and the file that says so."""

    path: str
    text: str


def as_id(name: str) -> str:
    """A name in the form in which ids are compared: file systems and editors spell accents differently."""
    return unicodedata.normalize("NFC", name)


def read_transcripts(folder: str, problems: list[str]) -> dict[str, Transcript]:
    """All transcripts below a folder by their ids; what is wrong with them is added to `problems`."""
    transcripts: dict[str, Transcript] = {}
    for path in walk(folder):
        if not path.lower().endswith(TRANSCRIPT_SUFFIX):
            continue
        for line_number, name, text in _read_lines(path, problems):
            problem = _problem(path, line_number, name, text, transcripts.get(name))
            if problem:
                problems.append(problem)
            transcripts.setdefault(name, Transcript(path, text))
    return transcripts


def _read_lines(path: str, problems: list[str]) -> Iterator[tuple[int, str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            content = file.read()
    except UnicodeDecodeError as error:
        problems.append(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it")
        return
    except OSError as error:
        problems.append(f"{path} cannot be read ({error.strerror}): mend or remove it")
        return
    # Only this ends a line. Others that Unicode knows, and a stray carriage return, are spaces within a transcript.
    lines = content.split("\n" if "\n" in content else "\r")
    for i, line in enumerate(lines):
        name, *words = line.lstrip("\ufeff").split() or [""]  # files with byte order marks were joined
        if name:
            yield i + 1, as_id(name), " ".join(words)


def _problem(path: str, line_number: int, name: str, text: str, other: Transcript | None) -> str | None:
    where = f"{path}, line {line_number}"
    if any(unicodedata.category(letter) == "Cc" for letter in name + text):
        return f"{where}: {ascii(name)[1:-1]} has a control character in its line: remove it"
    if not text:
        return f"{where}: {name} has an empty transcript; fill it in or remove it"
    if other is not None:
        return f"{name} has a transcript in {other.path} and in {path}: remove one"
    return None
