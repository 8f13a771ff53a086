import io
import os
import pickle
import re
import shutil
import sys
import types

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from absl import logging

from tf_rnnt_kd.data import corpora
from tf_rnnt_kd.data.corpora import decode_audio, read_librispeech
from tf_rnnt_kd.errors import UserError

RATE = 16000


def tone(seconds, rate=RATE, hertz=440.0, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def random_samples(seconds=0.5):
    return np.random.default_rng(0).integers(-20000, 20000, round(seconds * RATE)).astype(np.int16)


def add_audio(path, samples=None, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, random_samples() if samples is None else samples, rate, **options)
    return path


@pytest.fixture
def corpus(work_dir):
    """Two speakers, three chapters, five utterances, in a folder as LibriSpeech unpacks."""
    root = work_dir / "LibriSpeech" / "dev-clean"
    for chapter, count in (("84-121", 2), ("84-99", 1), ("1272-7", 2)):
        folder = root / chapter.split("-")[0] / chapter.split("-")[1]
        lines = []
        for i in range(count):
            add_audio(folder / f"{chapter}-{i:04d}.flac", random_samples(0.5 + i))
            lines.append(f"{chapter}-{i:04d} IT'S  LINE {'AB'[i]}\n")
        (folder / f"{chapter}.trans.txt").write_text("".join(lines))
    return root


# -- labelled corpora --


def test_utterances_come_with_speaker_and_text_in_order_of_their_ids(corpus):
    found = read_librispeech(str(corpus))
    assert [(u.id, u.speaker, u.text) for u in found] == [
        ("1272-7-0000", "1272", "IT'S LINE A"),
        ("1272-7-0001", "1272", "IT'S LINE B"),
        ("84-121-0000", "84", "IT'S LINE A"),
        ("84-121-0001", "84", "IT'S LINE B"),
        ("84-99-0000", "84", "IT'S LINE A"),
    ]
    np.testing.assert_array_equal(found[1].load(), random_samples(1.5))


@pytest.mark.parametrize("folder", ["..", ".", "84", "84/121"])
def test_any_folder_of_a_corpus_is_one(corpus, folder):
    found = read_librispeech(str(corpus / folder))
    assert {u.speaker for u in found} <= {"84", "1272"}
    assert "84-121-0001" in [u.id for u in found]


def test_a_flat_folder_is_a_corpus(work_dir):
    add_audio(work_dir / "anna-1.wav")
    (work_dir / "all.trans.txt").write_text("\nanna-1 HELLO\n\n")
    (utterance,) = read_librispeech(str(work_dir))
    assert (utterance.id, utterance.speaker, utterance.text) == ("anna-1", "anna", "HELLO")


def test_linked_folders_are_read_and_hidden_files_are_not(corpus, work_dir):
    (corpus / "84" / "121" / "._84-121-0000.flac").write_bytes(b"of macOS")
    os.symlink(corpus, work_dir / "linked")
    assert len(read_librispeech(str(work_dir / "linked"))) == 5


def test_limits_on_length_leave_utterances_out_and_say_so(corpus, monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    assert len(read_librispeech(str(corpus))) == 5 and messages == []
    assert [u.id for u in read_librispeech(str(corpus), min_seconds=1.0)] == ["1272-7-0001", "84-121-0001"]
    assert len(read_librispeech(str(corpus), max_seconds=1.0)) == 3
    assert [message.removeprefix(f"{corpus}: ") for message in messages] == [
        "3 of 5 utterances are not of 1 to inf s",
        "2 of 5 utterances are not of 0 to 1 s",
    ]


def test_listing_without_limits_opens_no_audio(corpus, monkeypatch):
    monkeypatch.setattr(soundfile, "info", None)
    assert len(read_librispeech(str(corpus))) == 5


def test_utterances_can_be_sent_to_other_processes(corpus):
    utterance = read_librispeech(str(corpus))[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(utterance)).load(), utterance.load())


def test_a_missing_folder_is_refused(work_dir):
    with pytest.raises(UserError, match=f"there is no folder {work_dir}/no: check the path of the corpus"):
        read_librispeech(str(work_dir / "no"))


@pytest.mark.parametrize("labelled", [True, False])
def test_an_empty_corpus_is_refused(work_dir, labelled):
    (work_dir / "1.trans.txt").write_text("1 A\n")
    with pytest.raises(UserError, match=rf"{work_dir} has no audio \(.flac .wav .ogg .opus .mp3\): check the path"):
        read_librispeech(str(work_dir), labelled=labelled)


def test_limits_that_nothing_fits_are_refused(corpus):
    with pytest.raises(UserError, match=f"{corpus} has no utterance of 9 to inf s: change the limits on length"):
        read_librispeech(str(corpus), min_seconds=9.0)


def test_audio_without_transcript_is_named(corpus):
    path = add_audio(corpus / "84" / "121" / "84-121-0002.flac")
    message = (
        f"{path} has no transcript: add a line '84-121-0002 TEXT' to a .trans.txt file beside it, remove the audio"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read_librispeech(str(corpus))
    assert len(read_librispeech(str(corpus), labelled=False)) == 6


def test_a_transcript_without_audio_is_named(corpus):
    os.remove(corpus / "84" / "121" / "84-121-0001.flac")
    path = corpus / "84" / "121" / "84-121.trans.txt"
    with pytest.raises(UserError, match=f"{path} has a transcript of 84-121-0001 but there is no such audio: remove"):
        read_librispeech(str(corpus))


def test_an_empty_transcript_is_named(corpus):
    path = corpus / "84" / "121" / "84-121.trans.txt"
    path.write_text("84-121-0000 A\n84-121-0001 \n")
    with pytest.raises(
        UserError, match=f"{path}, line 2: 84-121-0001 has an empty transcript; fill it in or remove it"
    ):
        read_librispeech(str(corpus))


def test_two_transcripts_of_one_utterance_are_named(corpus):
    (corpus / "more.trans.txt").write_text("84-121-0001 B\n")
    with pytest.raises(
        UserError, match="84-121-0001 has a transcript in .*/more.trans.txt and in .*/84-121.trans.txt: remove one"
    ):
        read_librispeech(str(corpus))


def test_two_files_of_one_utterance_are_named(corpus):
    folder = corpus / "84" / "121"
    add_audio(folder / "84-121-0001.wav")
    message = f"{folder}/84-121-0001.flac and {folder}/84-121-0001.wav have the same id: remove one of them"
    with pytest.raises(UserError, match=re.escape(message)):
        read_librispeech(str(corpus))


def test_a_transcript_that_is_no_text_is_named(corpus):
    path = corpus / "84" / "121" / "84-121.trans.txt"
    path.write_bytes(b"84-121-0000 \xff\n")
    with pytest.raises(UserError, match=f"{path} is not UTF-8 text .invalid start byte at byte 12.: convert it"):
        read_librispeech(str(corpus))


def test_unreadable_audio_is_named_when_listed_with_limits(corpus):
    path = corpus / "84" / "121" / "84-121-0001.flac"
    path.write_bytes(b"no flac")
    with pytest.raises(UserError, match=f"cannot read audio from {path}: .*; replace or remove the file"):
        read_librispeech(str(corpus), max_seconds=5.0)


# -- unlabelled corpora --


def test_unlabelled_speech_ignores_transcripts(corpus):
    (corpus / "84" / "121" / "84-121.trans.txt").write_bytes(b"\xff")
    found = read_librispeech(str(corpus), labelled=False)
    assert [u.id for u in found] == [
        "1272-7-0000",
        "1272-7-0001",
        "84-121-0000",
        "84-121-0001",
        "84-99-0000",
    ]
    assert {u.text for u in found} == {None}
    np.testing.assert_array_equal(found[1].load(), random_samples(1.5))


def test_equal_file_names_of_two_books_stay_apart(work_dir):
    for book in "emma", "persuasion":
        add_audio(work_dir / "small" / "100" / book / "chapter_01.flac")
    add_audio(work_dir / "small" / "100" / "emma" / "chapter_02.flac")
    found = read_librispeech(str(work_dir), labelled=False)
    assert [u.id for u in found] == ["100-emma-chapter_01", "100-persuasion-chapter_01", "chapter_02"]
    assert {u.speaker for u in found} == {"100"}


def speech_with_pauses(pauses, seconds, rate=RATE):
    """A tone that is quiet for 0.3 s around each of `pauses`, on a floor of noise."""
    samples = tone(seconds, rate)
    for pause in pauses:
        samples[round((pause - 0.15) * rate) : round((pause + 0.15) * rate)] = 0.0
    return samples + np.random.default_rng(0).normal(0, 1e-3, len(samples)).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 22050])
def test_long_files_are_cut_at_their_pauses(work_dir, rate):
    pauses = [7.0, 13.5, 21.0, 28.0, 33.0]
    path = add_audio(work_dir / "9" / "book" / "long.flac", speech_with_pauses(pauses, 40.0, rate), rate)
    found = read_librispeech(str(work_dir), labelled=False, max_seconds=10.0)
    pieces = [utterance.load() for utterance in found]
    ends = np.cumsum([len(piece) for piece in pieces]) / RATE
    np.testing.assert_allclose(ends, [*pauses, 40.0], atol=0.06)
    assert [u.id for u in found] == [f"long-{i:04d}" for i in range(6)]
    whole = decode_audio(str(path))
    assert abs(sum(map(len, pieces)) - len(whole)) <= len(pieces)
    if rate == RATE:
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("seconds", [5.01, 5.5, 7.0, 7.49, 7.51, 12.0, 23.4])
def test_pieces_of_speech_without_pauses_are_short_enough_and_no_scraps(work_dir, seconds):
    add_audio(work_dir / "a" / "b" / "steady.flac", tone(seconds))
    found = read_librispeech(str(work_dir), labelled=False, max_seconds=5.0)
    lengths = np.array([len(utterance.load()) for utterance in found]) / RATE
    assert lengths.max() <= 5.0 and lengths.min() >= 1.2
    np.testing.assert_allclose(lengths.sum(), seconds, atol=1e-3)


def test_cuts_are_the_same_each_time(work_dir):
    for i in range(5):
        samples = np.random.default_rng(i).normal(0, 0.1, RATE * 12)
        add_audio(work_dir / "a" / "b" / f"{i}.flac", samples)
    first, second = (read_librispeech(str(work_dir), labelled=False, max_seconds=3.0) for _ in range(2))
    assert [(u.id, u.load.keywords) for u in first] == [(u.id, u.load.keywords) for u in second]


def test_pieces_that_are_too_short_are_left_out_and_keep_their_numbers(work_dir):
    add_audio(work_dir / "a" / "b" / "long.flac", speech_with_pauses([6.0], 15.5))
    add_audio(work_dir / "a" / "b" / "short.flac", tone(0.5))
    found = read_librispeech(str(work_dir), labelled=False, max_seconds=10.0, min_seconds=7.0)
    assert [u.id for u in found] == ["long-0001"]


def test_only_long_files_are_read_to_be_listed(work_dir, monkeypatch):
    add_audio(work_dir / "a" / "b" / "short.flac", tone(2.0))
    monkeypatch.setattr(soundfile, "blocks", None)
    monkeypatch.setattr(soundfile, "read", None)
    assert len(read_librispeech(str(work_dir), labelled=False, max_seconds=2.0)) == 1


def test_a_damaged_long_file_is_named(work_dir):
    path = add_audio(work_dir / "a" / "b" / "long.flac", tone(12.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}"):
        for utterance in read_librispeech(str(work_dir), labelled=False, max_seconds=5.0):
            utterance.load()


# -- decoding --


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "A.FLAC"])
def test_lossless_16_bit_audio_is_bit_exact(work_dir, name):
    path = add_audio(work_dir / name)
    samples = decode_audio(str(path))
    assert samples.dtype == np.int16
    np.testing.assert_array_equal(samples, random_samples())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "ULAW"}),
    ],
)
def test_every_format_gives_the_same_sound(work_dir, name, options):
    path = add_audio(work_dir / name, tone(1.0), **options)
    samples = decode_audio(str(path)) / 32768.0
    assert len(samples) == pytest.approx(RATE, abs=RATE // 10)
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert np.argmax(spectrum) * RATE / 12000 == pytest.approx(440, abs=3)
    assert np.std(samples[2000:14000]) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    assert read_librispeech(str(work_dir), labelled=False)[0].load().tobytes() == decode_audio(str(path)).tobytes()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(work_dir, rate):
    samples = decode_audio(str(add_audio(work_dir / "a.flac", tone(1.0, rate), rate)))
    assert abs(len(samples) - RATE) <= 1
    expected = tone(1.0) * 32768
    np.testing.assert_allclose(samples[1000:15000], expected[1000:15000], atol=60)


def test_channels_are_averaged(work_dir):
    left, right = tone(0.5, level=0.4), tone(0.5, hertz=1000, level=0.4)
    path = add_audio(work_dir / "a.wav", np.stack([left, right], 1), subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(str(path)), (left + right) / 2 * 32768, atol=0.51)


def test_overflow_is_clipped(work_dir):
    path = add_audio(work_dir / "a.wav", np.array([1.5, -1.5, 1.0, -1.0] * 10, np.float32), subtype="FLOAT")
    np.testing.assert_array_equal(decode_audio(str(path)), [32767, -32768, 32767, -32768] * 10)


def test_a_stretch_can_be_decoded(work_dir):
    path = str(add_audio(work_dir / "a.flac"))
    np.testing.assert_array_equal(decode_audio(path, start=0.1, stop=0.2), random_samples()[1600:3200])
    np.testing.assert_array_equal(decode_audio(path, start=0.4, stop=9.0), random_samples()[6400:])


@pytest.mark.parametrize("content", [b"", b"no audio at all", None])
def test_what_is_no_audio_is_named(work_dir, content):
    path = work_dir / "a.flac"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^cannot read audio from {path}: .*; replace or remove the file$"):
        decode_audio(str(path))


@pytest.mark.parametrize("name", ["a.flac", "a.wav"])
def test_audio_without_samples_is_named(work_dir, name):
    path = add_audio(work_dir / name, np.zeros(0, np.int16))
    with pytest.raises(UserError, match=f"{path}.*; replace or remove the file"):
        decode_audio(str(path))


def test_a_truncated_flac_is_named(work_dir):
    path = add_audio(work_dir / "a.flac", random_samples(5.0))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{path}.*; replace or remove the file"):
        decode_audio(str(path))


# -- tensorflow-io --


def fake_tensorflow_io(decode_wav):
    audio = types.SimpleNamespace(
        decode_wav=decode_wav,
        decode_flac=lambda content, dtype: read_bytes(content, "int16"),
        decode_vorbis=lambda content: read_bytes(content, "float32"),
        decode_mp3=lambda content: read_bytes(content, "float32"),
    )
    return types.SimpleNamespace(audio=audio)


def read_bytes(content, dtype):
    return tf.constant(soundfile.read(io.BytesIO(content.numpy()), dtype=dtype, always_2d=True)[0])


@pytest.fixture
def tensorflow_io(monkeypatch):
    def install(decode_wav):
        monkeypatch.setitem(sys.modules, "tensorflow_io", fake_tensorflow_io(decode_wav))
        corpora._tensorflow_io.cache_clear()

    yield install
    corpora._tensorflow_io.cache_clear()


def test_the_probe_is_a_wav_file_of_one_sample(tensorflow_io):
    seen = []
    tensorflow_io(lambda content, dtype: seen.append(content))
    corpora._tensorflow_io()
    samples, rate = tf.audio.decode_wav(seen[0])
    assert samples.shape == [1, 1] and rate == RATE


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.ogg", "a.mp3"])
def test_tensorflow_io_decodes_when_asked(work_dir, tensorflow_io, name):
    calls = []

    def decode_wav(content, dtype):
        calls.append(content)
        return read_bytes(content, "int16") if isinstance(content, tf.Tensor) else None

    tensorflow_io(decode_wav)
    path = add_audio(work_dir / name, tone(0.5))
    (utterance,) = read_librispeech(str(work_dir), labelled=False, decoder="tensorflow_io")
    np.testing.assert_array_equal(utterance.load(), decode_audio(str(path)))
    assert len(calls) == (2 if name.endswith("wav") else 1)  # the probe, and the file


def test_tensorflow_io_that_loads_but_does_not_work_is_refused(work_dir, tensorflow_io):
    def decode_wav(content, dtype):
        raise NotImplementedError("unable to open file: libtensorflow_io.so\nundefined symbol: _ZN3tsl")

    tensorflow_io(decode_wav)
    path = add_audio(work_dir / "a.flac")
    message = (
        "tensorflow-io does not work here (unable to open file: libtensorflow_io.so undefined symbol: _ZN3tsl): keep"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        decode_audio(str(path), decoder="tensorflow_io")


def test_absent_tensorflow_io_is_refused_before_listing(work_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    corpora._tensorflow_io.cache_clear()
    with pytest.raises(UserError, match=r"tensorflow-io does not work here .*pip install tf_rnnt_kd\[tfio\]"):
        read_librispeech(str(work_dir), decoder="tensorflow_io")


def test_an_unknown_decoder_is_refused(work_dir):
    with pytest.raises(UserError, match="decoder is 'ffmpeg': none of soundfile, tensorflow_io"):
        read_librispeech(str(work_dir), decoder="ffmpeg")


@pytest.mark.corpus
def test_a_real_corpus_is_listed_and_decoded(corpus_dir):
    found = read_librispeech(str(corpus_dir))
    assert [u.id for u in found] == sorted({u.id for u in found})
    for utterance in found[:: max(1, len(found) // 20)]:
        samples = utterance.load()
        assert samples.dtype == np.int16 and len(samples) > RATE // 10 and np.abs(samples).max() > 100
        assert utterance.text == utterance.text.upper() != ""


def test_copies_of_a_corpus_are_equal(corpus, work_dir):
    shutil.copytree(corpus, work_dir / "copy")
    pairs = zip(read_librispeech(str(corpus)), read_librispeech(str(work_dir / "copy")), strict=True)
    assert all((a.id, a.text) == (b.id, b.text) for a, b in pairs)
