"""Labelled corpora: transcripts, and what else lies in their folders."""

import ast
import os
import pathlib
import shutil

import numpy as np
import soundfile

from tests.fuzz.core import Case, Door, Inconsistent, digest, one_of
from tests.fuzz.damage import damage_bytes, files_in, misplace
from tests.fuzz.texts import UNSEEN, damage_text
from tf_rnnt_kd.data.corpora import read_librispeech
from tf_rnnt_kd.text.normalize import spoken_text

_TEXTS = ["ONE TWO", "THREE É FOUR", "FIVE", "SIX SEVEN EIGHT"]


class Corpora(Door):
    """Four utterances of two speakers in the layout of LibriSpeech."""

    name, cases = "corpora", 500

    def build(self):
        for i, text in enumerate(_TEXTS):
            chapter = self.folder / f"{i // 2}" / "7"
            chapter.mkdir(parents=True, exist_ok=True)
            samples = np.random.default_rng(i).uniform(-0.3, 0.3, 800)
            soundfile.write(chapter / f"{i // 2}-7-{i}.wav", samples, 16_000)
            with open(chapter / f"{i // 2}-7.trans.txt", "a", encoding="utf-8") as file:
                file.write(f"{i // 2}-7-{i} {text}\n")

    def case(self, rng, number):
        folder = self.copied()
        what, excused = (self._text, self._text, self._files, self._tree)[number % 4](rng, folder)
        return Case(what, folder, forged=what == "decomposed_name", excused=excused)

    def enter(self, given):
        listed = [(each, spoken_text(each.text)) for each in read_librispeech(str(given))]  # as preparation reads it
        for utterance, text in listed:
            if any(character in text for character in (*UNSEEN, "\n", "\r", "\ufeff")):
                raise Inconsistent(f"the text of {utterance.id} holds what nobody sees: {text[:80]!r}")
        return [(each.id, each.speaker, text, digest(each.load())) for each, text in listed]

    def _text(self, rng, folder):
        path = one_of(rng, sorted(folder.rglob("*.trans.txt")))
        if rng.integers(5):
            what, data, excused = damage_text(rng, path.read_bytes())
            excused |= what.startswith("unseen") and ast.literal_eval(what.split()[1]).isspace()  # between two words
        else:
            what, data = damage_bytes(rng, path.read_bytes())
            excused = True  # a letter in place of another one is a text, too
        path.write_bytes(data)
        return f"{path.name}: {what}", excused

    def _files(self, rng, folder):
        files = files_in(folder)
        path = one_of(rng, files)
        what = misplace(rng, path, [other for other in files if other.suffix == path.suffix])
        return what, path.suffix == ".wav"  # nobody can tell that another one was recorded

    def _tree(self, rng, folder):
        kind = _TREES[rng.integers(len(_TREES))]
        kind(folder)
        return kind.__name__.strip("_"), False


def _hidden_folder(folder: pathlib.Path) -> None:
    shutil.copytree(folder / "0", folder / ".Trash-1000" / "files")


def _hidden_file(folder: pathlib.Path) -> None:
    (folder / "0" / "7" / "._0-7-0.wav").write_bytes(b"x")


def _circle(folder: pathlib.Path) -> None:
    (folder / "1" / "up").symlink_to("..")


def _link_to_speaker(folder: pathlib.Path) -> None:
    (folder / "2").symlink_to("1")


def _other_files(folder: pathlib.Path) -> None:
    (folder / "0" / "7" / "README.txt").write_text("about")
    (folder / "0" / "SPEAKERS").mkdir()


def _unreadable_name(folder: pathlib.Path) -> None:
    shutil.copyfile(folder / "0" / "7" / "0-7-0.wav", os.fsencode(folder / "0" / "7") + b"/caf\xe9.wav")


def _unreadable_folder(folder: pathlib.Path) -> None:
    os.rename(folder / "0" / "7", os.fsencode(folder / "0") + b"/\xff\xfe")


def _decomposed_name(folder: pathlib.Path) -> None:
    chapter = folder / "0" / "7"
    (chapter / "0-7-0.wav").rename(chapter / "0-7-e\u0301.wav")
    path = chapter / "0-7.trans.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("0-7-0", "0-7-\u00e9"), encoding="utf-8")


def _space_in_name(folder: pathlib.Path) -> None:
    (folder / "0" / "7" / "0-7-0.wav").rename(folder / "0" / "7" / "0-7 0.wav")


def _loud_suffix(folder: pathlib.Path) -> None:
    (folder / "0" / "7" / "0-7-0.wav").rename(folder / "0" / "7" / "0-7-0.WAV")


def _two_formats(folder: pathlib.Path) -> None:
    shutil.copyfile(folder / "0" / "7" / "0-7-0.wav", folder / "0" / "7" / "0-7-0.flac")


def _same_twice(folder: pathlib.Path) -> None:
    shutil.copytree(folder / "0", folder / "3")


def _text_twice(folder: pathlib.Path) -> None:
    shutil.copyfile(folder / "0" / "7" / "0-7.trans.txt", folder / "0" / "7" / "again.trans.txt")


def _no_texts(folder: pathlib.Path) -> None:
    for path in folder.rglob("*.trans.txt"):
        path.unlink()


def _no_audio(folder: pathlib.Path) -> None:
    for path in folder.rglob("*.wav"):
        path.unlink()


def _folder_as_audio(folder: pathlib.Path) -> None:
    (folder / "0" / "7" / "9.wav").mkdir()


def _pipe_as_audio(folder: pathlib.Path) -> None:
    os.mkfifo(folder / "0" / "7" / "0-7-9.wav")


_TREES = (
    _hidden_folder, _hidden_file, _circle, _link_to_speaker, _other_files, _unreadable_name, _unreadable_folder,
    _decomposed_name, _space_in_name, _loud_suffix, _two_formats, _same_twice, _text_twice, _no_texts, _no_audio,
    _folder_as_audio, _pipe_as_audio,
)  # fmt: skip
