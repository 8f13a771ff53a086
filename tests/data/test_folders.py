"""Which files of a folder are audio of a corpus."""

import os

import pytest

from tests.data.sounds import add_audio
from tf_rnnt_kd.data.folders import find_audio, name_problem


def found(folder):
    return [os.path.relpath(path, folder) for path in find_audio(str(folder))]


def test_hidden_folders_and_files_are_left_out(work_dir):
    for name in ("a.wav", ".b.wav", ".Trash-1000/files/c.wav", "x/.ipynb_checkpoints/d.wav", "x/e.wav"):
        add_audio(work_dir / name)
    assert found(work_dir) == ["a.wav", "x/e.wav"]


def test_folders_linked_in_a_circle_are_entered_once(work_dir):
    add_audio(work_dir / "1" / "2" / "a.wav")
    os.symlink("..", work_dir / "1" / "up")
    os.symlink(work_dir, work_dir / "1" / "2" / "top")
    assert found(work_dir) == ["1/2/a.wav"]


def test_a_folder_and_a_link_to_it_are_one(work_dir):
    add_audio(work_dir / "real" / "a.wav")
    os.symlink(work_dir / "real", work_dir / "also")
    assert found(work_dir) == ["real/a.wav"]
    assert found(work_dir / "also") == ["a.wav"]


def test_a_link_to_nowhere_is_no_folder(work_dir):
    add_audio(work_dir / "a.wav")
    os.symlink(work_dir / "no", work_dir / "folder")
    assert found(work_dir) == ["a.wav"]


@pytest.mark.parametrize("name", ["a.wav", "\u00e9.flac", "my take.WAV"])
def test_good_names(name):
    assert name_problem(name) is None


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"x\xff/a.wav", b"a\tb.wav", b"a\nb.wav"])
def test_names_that_cannot_be_written_down_have_a_problem(name):
    assert name_problem(os.fsdecode(name)).endswith(": rename it")
