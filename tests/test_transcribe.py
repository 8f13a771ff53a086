"""What `transcribe` shows while a stream grows."""

import io

from tf_rnnt_kd import transcribe


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _shown(monkeypatch, stream):
    monkeypatch.setattr(transcribe.sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "8")
    assert transcribe._grow(["ONE", "ONE TWO", "ONE TWO THREE"]) == "ONE TWO THREE"
    return stream.getvalue()


def test_terminal_shows_the_end_of_the_text_in_one_line(monkeypatch):
    lines = _shown(monkeypatch, _Terminal()).split("\r\x1b[K")
    assert lines == ["", "ONE", "ONE TWO", "O THREE", ""]


def test_pipe_shows_nothing_on_the_way(monkeypatch):
    assert _shown(monkeypatch, io.StringIO()) == ""
