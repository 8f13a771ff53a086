"""What is written down of audio, in which form and where, and what a terminal shows while it grows."""

import io
import json
import os
import types

import numpy as np
import pytest
import soundfile

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.serving import transcription
from tf_rnnt_kd.serving.transcription import find_sources, transcribe_sources
from tf_rnnt_kd.text.transcript import Transcript

_PIECES = ["", " ONE", " TWO", " É"]


class _Counter:
    """Hears a word a chunk, in turn; a recognizer without a network."""

    streaming, sample_rate = True, 16_000

    def stream(self, chunks):
        transcript = Transcript(_PIECES, 0.04)
        for i, chunk in enumerate(chunks):
            assert chunk.dtype == np.float32 and len(chunk) <= 1_600
            transcript.extend([1 + i % 3], [2 * i], [-0.5], -1.0)
            yield transcript


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    (folder / "deep").mkdir(parents=True)
    for name, seconds in (("a.wav", 0.3), ("deep/b.flac", 0.1)):
        soundfile.write(folder / name, np.zeros([int(16_000 * seconds)]), 16_000)
    return folder


def _run(capsys, *arguments, **options):
    transcribe_sources(_Counter(), find_sources(list(map(str, arguments))), chunk_ms=100, **options)
    return capsys.readouterr().out


def test_text_is_a_line_a_file(audio, capsys):
    assert _run(capsys, audio) == f"{audio}/a.wav: ONE TWO É\n{audio}/deep/b.flac: ONE\n"


def test_json_is_a_line_a_file_with_words(audio, capsys):
    first, second = map(json.loads, _run(capsys, audio, form="json").splitlines())
    assert first == {
        "audio": f"{audio}/a.wav",
        "text": "ONE TWO É",
        "score": -3.0,
        "words": [
            {"word": "ONE", "start": 0.0, "end": 0.04, "confidence": 0.6065},
            {"word": "TWO", "start": 0.08, "end": 0.12, "confidence": 0.6065},
            {"word": "É", "start": 0.16, "end": 0.2, "confidence": 0.6065},
        ],
    }
    assert second["text"] == "ONE"


def test_subtitles_of_one_file_are_printed(audio, capsys):
    assert _run(capsys, audio / "a.wav", form="srt") == "1\n00:00:00,000 --> 00:00:01,000\nONE TWO É\n\n"
    assert _run(capsys, audio / "a.wav", form="vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nONE TWO É\n")


def test_a_folder_of_output_has_the_tree_of_the_input(audio, tmp_path, capsys):
    for form, ending in (("text", "txt"), ("srt", "srt"), ("vtt", "vtt"), ("json", "json")):
        folder = tmp_path / form
        _run(capsys, audio, form=form, output=str(folder))
        written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert written == [f"a.{ending}", f"deep/b.{ending}"]
        assert "ONE" in (folder / f"a.{ending}").read_text(encoding="utf-8")
    assert (tmp_path / "text" / "a.txt").read_text(encoding="utf-8") == "ONE TWO É\n"


def test_standard_input_is_raw_samples(audio, tmp_path, capsys, monkeypatch):
    samples = io.BytesIO(np.zeros([4_000], "<i2").tobytes())
    monkeypatch.setattr(transcription.sys, "stdin", types.SimpleNamespace(buffer=samples))
    assert _run(capsys, "-") == "-: ONE TWO É\n"
    samples.seek(0)
    _run(capsys, "-", output=str(tmp_path / "out"))
    assert (tmp_path / "out" / "stdin.txt").read_text(encoding="utf-8") == "ONE TWO É\n"


@pytest.mark.parametrize(
    ("content", "heard", "message"),
    [
        (bytes(8_001), "-: ONE TWO É\n", "standard input has 8001 bytes, an odd number"),
        (bytes(1), "", "standard input has no samples"),
        (b"", "", "standard input has no samples"),
    ],
)
def test_standard_input_that_is_no_samples_is_told(capsys, monkeypatch, content, heard, message):
    monkeypatch.setattr(transcription.sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(UserError, match=message):
        _run(capsys, "-")
    assert capsys.readouterr().out == heard


def test_a_bad_file_keeps_no_other_from_being_heard(audio, tmp_path, capsys):
    (audio / "broken.wav").write_bytes(b"no audio")
    samples = np.zeros([1_600], np.float32)
    samples[9] = np.nan
    soundfile.write(audio / "deep" / "a.wav", samples, 16_000, subtype="FLOAT")
    strange = os.fsdecode(os.fsencode(audio) + b"/caf\xe9.wav")
    soundfile.write(audio / "x.wav", np.zeros([1_600]), 16_000)
    os.rename(audio / "x.wav", strange)
    with pytest.raises(UserError) as caught:
        _run(capsys, audio, tmp_path / "no.wav")
    assert capsys.readouterr().out == f"{audio}/a.wav: ONE TWO É\n{audio}/deep/b.flac: ONE\n"
    message = caught.value.message
    assert message.startswith("6 sources: 4 problems: (1) cannot read audio from ") and "\n" not in message
    assert f"{audio}/broken.wav: it is no audio of a known format; replace" in message
    assert f"{audio}/deep/a.wav: its samples are not finite; replace" in message
    assert f"{audio}/caf\\xe9.wav: its name is not UTF-8: rename it" in message
    assert f"{tmp_path}/no.wav: No such file or directory" in message


def test_what_cannot_be_heard_is_told_with_its_file(audio, capsys):
    class Deaf(_Counter):
        def stream(self, chunks):
            raise UserError("the sound is too long")

    with pytest.raises(UserError, match=rf"2 sources: 2 problems: \(1\) {audio}/a.wav: the sound is too long; \(2\)"):
        transcribe_sources(Deaf(), find_sources([str(audio)]), chunk_ms=100)


def test_output_that_cannot_be_spelled_is_one_line(audio, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(transcription.sys, "stdout", output)
    with pytest.raises(UserError, match=r"standard output is ascii and can't hold '\\xc9': set PYTHONIOENCODING=utf-8"):
        transcribe_sources(_Counter(), find_sources([str(audio / "a.wav")]), chunk_ms=100)


def test_folders_are_searched_as_corpora_are(audio, tmp_path):
    os.symlink("..", audio / "deep" / "up")
    (audio / ".Trash-1000").mkdir()
    soundfile.write(audio / ".Trash-1000" / "deleted.wav", np.zeros([1_600]), 16_000)
    assert [source.name for source in find_sources([str(audio)])] == ["a", "deep/b"]


def test_options_that_do_not_go_together_are_refused(audio, tmp_path):
    with pytest.raises(UserError, match="2 files do not make one srt file.*--output"):
        transcribe_sources(_Counter(), find_sources([str(audio)]), form="srt")
    with pytest.raises(UserError, match="only JSON holds several hypotheses"):
        transcribe_sources(_Counter(), find_sources([str(audio)]), nbest=3)
    with pytest.raises(UserError, match="searches for one hypothesis, not 3: export a SavedModel with --beam 3"):
        transcribe_sources(_Counter(), find_sources([str(audio)]), chunk_ms=100, nbest=3, form="json")
    twice = [str(audio / "a.wav"), str(audio)]
    with pytest.raises(UserError, match=r"a\.wav and .*b/a\.flac would both be written to a\.txt"):
        sources = [*find_sources(twice[:1]), transcription.Source("b/a.flac", "a")]
        transcribe_sources(_Counter(), sources, output=str(tmp_path / "out"))


def test_terminal_shows_the_end_of_the_text_in_one_line(audio, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(transcription.sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "8")
    transcribe_sources(_Counter(), find_sources([str(audio / "a.wav")]), chunk_ms=100)
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines == ["", "ONE", "ONE TWO", "E TWO É", f"{audio}/a.wav: ONE TWO É\n"]
