"""Words with times as subtitles: SubRip and WebVTT."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tf_rnnt_kd.text.transcript import Word

_COLUMNS, _LINES = 42, 2  # what is usual on television
_LONGEST, _SHORTEST = 6.0, 1.0  # seconds that a cue is shown, if the next one leaves it so long
_PAUSE = 0.8  # seconds of silence that end a cue


class Cue(NamedTuple):
    """What is shown at once: text of at most two lines from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def make_cues(words: Sequence[Word]) -> list[Cue]:
    """Cues that end at pauses, or when they are full in lines or seconds; one never begins before another's end."""
    groups = list(_group(words))
    followings = [*(group[0].start for group in groups[1:]), float("inf")]
    cues = []
    for group, following in zip(groups, followings, strict=False):  # where nothing is said, nothing follows
        end = max(group[-1].end, group[0].start + _SHORTEST)
        cues.append(Cue(group[0].start, min(end, following), "\n".join(_wrap(group))))
    return cues


def format_srt(words: Sequence[Word]) -> str:
    """SubRip."""
    return "".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n\n"
        for number, cue in enumerate(make_cues(words), 1)
    )


def format_vtt(words: Sequence[Word]) -> str:
    """WebVTT."""
    cues = [f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_escape(cue.text)}\n\n" for cue in make_cues(words)]
    return "WEBVTT\n\n" + "".join(cues)


def _group(words: Sequence[Word]) -> Iterator[list[Word]]:
    group: list[Word] = []
    for word in words:
        if group and not _belongs(word, group):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _belongs(word: Word, group: list[Word]) -> bool:
    near = word.start - group[-1].end < _PAUSE and word.end - group[0].start <= _LONGEST
    return near and len(_wrap([*group, word])) <= _LINES


def _wrap(words: Sequence[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, _COLUMNS, break_long_words=False, break_on_hyphens=False)


def _clock(seconds: float, point: str) -> str:
    """`3661.5 -> 01:01:01,500`; more than 99 hours have more digits."""
    minutes, milliseconds = divmod(round(1_000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1_000)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
