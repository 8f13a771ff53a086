"""Subtitles: their clocks, where they break, and that they never overlap."""

import numpy as np
import pytest

from tf_rnnt_kd.text.subtitles import format_srt, format_vtt, make_cues
from tf_rnnt_kd.text.transcript import Word


def _spoken(text, start=0.0, seconds=0.3, gap=0.1):
    times = start + np.arange(len(text.split())) * (seconds + gap)
    return [Word(word, float(t), float(t + seconds), 1.0) for word, t in zip(text.split(), times, strict=True)]


def test_subrip_is_numbered_with_commas_and_blank_lines():
    words = [*_spoken("ONE TWO"), *_spoken("THREE", start=3_723.0006)]
    assert format_srt(words) == (
        "1\n00:00:00,000 --> 00:00:01,000\nONE TWO\n\n2\n01:02:03,001 --> 01:02:04,001\nTHREE\n\n"
    )


def test_webvtt_has_a_head_points_and_escapes():
    assert format_vtt(_spoken("A<B & C", start=59.9996)) == (
        "WEBVTT\n\n00:01:00.000 --> 00:01:01.100\nA&lt;B &amp; C\n\n"
    )


@pytest.mark.parametrize("form", [format_srt, format_vtt])
def test_a_day_of_audio_has_more_hours(form):
    assert "100:00:00" in form(_spoken("LATE", start=360_000.0))


def test_nothing_said_is_an_empty_file():
    assert format_srt([]) == "" and format_vtt([]) == "WEBVTT\n\n"


def test_a_pause_ends_a_cue():
    words = [*_spoken("ONE TWO"), *_spoken("THREE", start=0.7 + 0.81)]
    assert [cue.text for cue in make_cues(words)] == ["ONE TWO", "THREE"]
    words = [*_spoken("ONE TWO"), *_spoken("THREE", start=0.7 + 0.79)]
    assert [cue.text for cue in make_cues(words)] == ["ONE TWO THREE"]


def test_cues_hold_every_word_in_short_lines_and_do_not_overlap():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 14, 80)
        text = " ".join("W" * length for length in lengths)
        words = _spoken(text, seconds=rng.uniform(0.01, 0.4), gap=rng.uniform(0, 0.5))
        cues = make_cues(words)
        assert " ".join(cue.text for cue in cues).split() == text.split()
        lines = [cue.text.split("\n") for cue in cues]
        assert max(map(len, lines)) == 2 and max(len(line) for cue in lines for line in cue) <= 42
        assert all(earlier.end <= later.start for earlier, later in zip(cues[:-1], cues[1:], strict=True))
        assert all(0 < cue.end - cue.start <= 6.0 + 1e-9 for cue in cues)


def test_a_word_longer_than_a_line_is_not_cut():
    long = "L" * 100
    assert [cue.text for cue in make_cues(_spoken(f"A {long} B"))] == [f"A\n{long}", "B"]
