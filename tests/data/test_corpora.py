import os
import pickle
import re
import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
from absl import logging

from tests.data.sounds import RATE, add_audio, changing, random_samples, tone, without_info
from tf_rnnt_kd.data import audio
from tf_rnnt_kd.data.audio import decode_audio
from tf_rnnt_kd.data.corpora import BadAudio, read_librispeech
from tf_rnnt_kd.errors import UserError


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
    monkeypatch.setattr(audio, "find_streams", None)
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
    with pytest.raises(UserError, match=rf"{work_dir} has no audio \(.flac .wav .ogg .* .mp2\): check the path"):
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


def write_lines(folder, *lines, encoding="utf-8", name="1-2.trans.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))


def test_everything_that_is_wrong_is_said_at_once(corpus):
    folder = corpus / "84" / "121"
    add_audio(folder / "more.flac")
    add_audio(folder / "my take.flac")
    os.rename(add_audio(folder / "x.flac"), os.fsencode(folder) + b"/caf\xe9.flac")
    write_lines(
        folder, "84-121-0000 A", "84-121-0001 ", "lost WORDS", "84-121-0000 B", "my take ONE", name="84-121.trans.txt"
    )
    (folder / "84-121-0000.flac").write_bytes(b"no flac")
    with pytest.raises(UserError) as caught:
        read_librispeech(str(corpus), max_seconds=9.0)
    problems = caught.value.problems
    assert caught.value.message.startswith(f"{corpus}: {len(problems)} problems: (1) ")
    for part in (
        "caf\\xe9.flac: its name is not UTF-8: rename it",
        "my take.flac: an id has no spaces, rename the file",
        "more.flac has no transcript",
        "line 2: 84-121-0001 has an empty transcript",
        "has a transcript of lost but",
        "84-121-0000 has a transcript in",
        "cannot read audio from",
    ):
        assert sum(part in problem for problem in problems) == 1, part
    assert not any("transcript of my " in problem for problem in problems)


def test_of_many_problems_the_first_are_said_and_how_many_more(work_dir):
    for i in range(25):
        add_audio(work_dir / f"{i:02d}.flac")
    with pytest.raises(UserError, match=r"25 problems: \(1\) .*00.flac.*\(10\) .*09.flac .*; and 15 more$") as caught:
        read_librispeech(str(work_dir))
    assert len(caught.value.problems) == 25


def test_all_audio_that_cannot_be_read_is_told_with_the_whole_corpus(corpus):
    bad = [corpus / "84" / "121" / "84-121-0001.flac", corpus / "84" / "99" / "84-99-0000.flac"]
    bad[0].write_bytes(b"no flac")
    os.truncate(bad[1], bad[1].stat().st_size // 2)
    for labelled in (True, False):
        with pytest.raises(BadAudio) as caught:
            read_librispeech(str(corpus), labelled=labelled, min_seconds=0.1)
        assert [error.path for error in caught.value.errors] == [str(path) for path in bad]
        assert [u.id for u in caught.value.utterances] == [
            *("1272-7-0000", "1272-7-0001", "84-121-0000", "84-121-0001", "84-99-0000")
        ]
        with pytest.raises(UserError, match=f"cannot read audio from {bad[0]}"):
            caught.value.utterances[3].load()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_text(work_dir, encoding):
    for name in ("a", "b"):
        add_audio(work_dir / "1" / "2" / f"{name}.flac")
    write_lines(work_dir / "1" / "2", "a ONE", "\ufeffb TWO", encoding=encoding)  # two files, joined
    assert [(u.id, u.text) for u in read_librispeech(str(work_dir))] == [("a", "ONE"), ("b", "TWO")]


def test_only_a_line_feed_ends_a_line(work_dir):
    for name in "abcd":
        add_audio(work_dir / f"{name}.flac")
    write_lines(work_dir, "a ONE\u2028TWO", "b ONE\u0085TWO", "c ONE\rTWO\r", "d\tONE\x0b\u00a0TWO")
    assert [(u.id, u.text) for u in read_librispeech(str(work_dir))] == [(name, "ONE TWO") for name in "abcd"]
    (work_dir / "1-2.trans.txt").write_bytes(b"a ONE\rb TWO\rc THREE\rd FOUR\r")  # as on a Macintosh
    assert [u.text for u in read_librispeech(str(work_dir))] == ["ONE", "TWO", "THREE", "FOUR"]


@pytest.mark.parametrize("letter", ["\0", "\x07", "\x7f", "\x9d"])
def test_control_characters_in_a_transcript_are_named(work_dir, letter):
    add_audio(work_dir / "a.flac")
    write_lines(work_dir, f"a ON{letter}E")
    with pytest.raises(UserError, match="line 1: a has a control character in its line: remove it"):
        read_librispeech(str(work_dir))


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_ids_are_compared_as_they_look(work_dir, forms):
    of_file, of_line = (unicodedata.normalize(form, "\u00e9-1") for form in forms)
    add_audio(work_dir / "1" / "2" / f"{of_file}.flac")
    write_lines(work_dir / "1" / "2", f"{of_line} ONE")
    (utterance,) = read_librispeech(str(work_dir))
    assert utterance.id == "\u00e9-1" and len(utterance.load()) == RATE // 2
    add_audio(work_dir / "1" / "2" / f"{of_line}.flac")
    with pytest.raises(UserError, match="have the same id"):
        read_librispeech(str(work_dir))


def test_the_ending_of_transcripts_may_be_written_large(work_dir):
    add_audio(work_dir / "a.FLAC", format="FLAC")
    write_lines(work_dir, "a ONE", name="x.TRANS.TXT")
    assert [u.text for u in read_librispeech(str(work_dir))] == ["ONE"]


def test_the_source_changes_with_the_file_and_with_the_piece(work_dir):
    path = add_audio(work_dir / "1" / "2" / "a.flac", tone(4.0))

    def sources(**options):
        return [u.source for u in read_librispeech(str(work_dir), labelled=False, **options)]

    (whole,) = sources()
    assert sources() == [whole] and "1/2/a.flac" in whole
    pieces = sources(max_seconds=2.5)
    assert len(pieces) > 1 and len({whole, *pieces}) == 1 + len(pieces)
    os.utime(path, ns=(1, 1))
    (touched,) = sources()
    assert touched != whole
    add_audio(path, tone(4.5))
    os.utime(path, ns=(1, 1))
    assert sources() != [touched]


# -- unlabelled corpora --


def test_two_files_of_one_id_are_named_in_unlabelled_corpora_too(work_dir):
    add_audio(work_dir / "1" / "2" / "a.flac")
    add_audio(work_dir / "1" / "2" / "a.wav")
    with pytest.raises(UserError, match="two utterances have the id 1-2-a: rename one"):
        read_librispeech(str(work_dir), labelled=False)


def test_two_utterances_of_one_id_in_two_splits_are_named(corpus):
    root = corpus.parent
    shutil.copytree(corpus / "84" / "99", root / "test-clean" / "84" / "99")
    with pytest.raises(UserError, match="two utterances have the id 84-99-0000: rename one"):
        read_librispeech(str(root), splits=["dev-clean", "test-clean"])


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_limits_are_about_true_lengths(work_dir, name):
    path = add_audio(work_dir / "1" / "2" / name, changing(14.0))
    content = path.read_bytes()
    path.write_bytes(without_info(content) if name == "a.mp3" else content * 2)
    assert len(read_librispeech(str(work_dir), labelled=False, min_seconds=13.9, max_seconds=30.0)) == 1
    pieces = read_librispeech(str(work_dir), labelled=False, max_seconds=5.0)
    lengths = [len(u.load()) for u in pieces]
    assert max(lengths) <= 5 * RATE and sum(lengths) == len(decode_audio(str(path)))


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
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    assert len(read_librispeech(str(work_dir), labelled=False, max_seconds=2.0)) == 1


def test_a_damaged_long_file_is_named(work_dir):
    path = add_audio(work_dir / "a" / "b" / "long.flac", tone(12.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}"):
        for utterance in read_librispeech(str(work_dir), labelled=False, max_seconds=5.0):
            utterance.load()


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
