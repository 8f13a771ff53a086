import json
import os
from typing import Annotated, Literal, NotRequired

import pydantic
import pytest
from typing_extensions import TypedDict

from tf_rnnt_kd import files


@pydantic.with_config(files.CLOSED)
class Part(TypedDict):
    size: files.Count
    share: Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


@pydantic.with_config(files.OPEN)
class Whole(TypedDict):
    kind: Literal["a", "b"]
    parts: list[Part]
    hash: NotRequired[files.Sha256 | None]


GOOD = {"kind": "a", "parts": [{"size": 1, "share": 1}, {"size": 2, "share": 0.5}], "more": "kept"}


@pytest.fixture
def path(work_dir):
    return work_dir / "file.json"


# -- writing --


def test_what_is_written_comes_back_and_equal_contents_are_equal_bytes(path):
    files.write_json(str(path), GOOD)
    assert files.read_json(str(path), Whole) == GOOD
    assert path.read_bytes() == files.dump_json(dict(reversed(GOOD.items())))
    assert os.listdir(path.parent) == ["file.json"]


def test_a_relative_name_will_do(work_dir, monkeypatch):
    monkeypatch.chdir(work_dir)
    files.write_text("a.txt", "é\n")
    assert (work_dir / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_others_may_read_what_the_umask_lets_them(path):
    before = os.umask(0o027)
    try:
        files.write_text(str(path), "text")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_writer_that_fails_leaves_the_file_as_it_was(path):
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(str(path)) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file.json"]


def test_no_two_temporary_names_are_alike_and_the_target_cannot_be_a_trap(path, monkeypatch):
    names = set()
    for _ in range(3):
        with files.replacing(str(path)) as temporary:
            names.add(temporary)
            assert os.path.dirname(temporary) == str(path.parent)
    assert len(names) == 3
    # Whoever did guess a name finds that a link there is not followed.
    victim = path.parent / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    (path.parent / ".file.json.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_text(str(path), "not yours")
    assert victim.read_text() == "mine"


def test_the_longest_name_that_a_folder_holds_can_be_written(work_dir):
    files.write_text(str(work_dir / ("ü" * 127)), "text")
    assert os.listdir(work_dir) == ["ü" * 127]


def test_what_is_no_number_is_not_written(path):
    with pytest.raises(ValueError, match="Out of range float values"):
        files.write_json(str(path), {"wer": float("nan")})
    assert not path.exists()


# -- reading --


def refuse(path, words, read=files.read_json):
    with pytest.raises(files.Damaged, match=words) as caught:
        read(str(path), Whole)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged: ") and "\n" not in message and len(message) < 700
    assert message.endswith("; restore it, or delete it and run the command that wrote it again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not readable as JSON"),
        ("\xff", "not readable as JSON"),
        ("[" * 100_000, "recursion limit exceeded"),
        ('{"kind":' * 100_000, "recursion limit exceeded"),
        ("[" * 900 + "]" * 900, "recursion limit exceeded"),
        ("9" * 5_000, "number out of range"),
        ('{"kind": "a", "parts": [], "kind": "b"}', "'kind' comes twice"),
        ('{"kind": "a", "parts": [], "more": NaN}', "not readable as JSON"),
        ('{"kind": "a", "parts": [], "more": -Infinity}', "not readable as JSON"),
        ('{"kind": "a", "parts": [], "more": 1e999}', "1e999 is no number"),
        ("[]", r"it is \[\] \(Input should be an object\)"),
        ("null", "it is None"),
        ('{"kind": "a"}', "parts is missing"),
        ('{"kind": "c", "parts": []}', "kind is 'c' .Input should be 'a' or 'b'"),
        ('{"kind": "a", "parts": {}}', "parts is {}"),
        ('{"kind": "a", "parts": [{"size": 1, "share": 0.5, "x": 1}]}', "parts.0.x is unknown"),
        ('{"kind": "a", "parts": [{"size": -1, "share": 0.5}]}', "parts.0.size is -1 .* greater than or equal to 0"),
        ('{"kind": "a", "parts": [{"size": 1.0, "share": 0.5}]}', "parts.0.size is 1.0 .*valid integer"),
        ('{"kind": "a", "parts": [{"size": true, "share": 0.5}]}', "parts.0.size is True"),
        ('{"kind": "a", "parts": [{"size": 1180591620717411303424, "share": 0}]}', "less than 9007199254740992"),
        ('{"kind": "a", "parts": [{"size": "1", "share": "0"}]}', "size is '1' .*, parts.0.share is '0'"),
        ('{"kind": "a", "parts": [], "hash": "' + 64 * "a" + '\\n"}', "hash is 'aaaa.*pattern"),
        (json.dumps({"kind": "a", "parts": [{}] * 9}), "parts.1.size is missing, and 15 more"),
        (json.dumps({"kind": "x" * 10_000, "parts": []}), r"kind is 'x{36}\.\.\."),
    ],
)
def test_every_mistake_is_one_line_with_file_field_and_expectation(path, content, words):
    path.write_bytes(content.encode("latin-1"))
    refuse(path, words)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_refused_and_not_waited_for(path, make):
    make(path)
    refuse(path, "it cannot be read")


def test_a_missing_file_is_told_apart(path):
    with pytest.raises(files.Missing, match="file.json is missing: write it"):
        files.read_json(str(path), Whole, remedy="write it")


def test_a_file_that_is_too_large_is_not_read(path):
    files.write_json(str(path), GOOD)
    size = path.stat().st_size
    assert files.read_json(str(path), Whole, most=size) == GOOD
    with pytest.raises(files.Damaged, match=f"it has more than {size - 1} bytes"):
        files.read_json(str(path), Whole, most=size - 1)
    os.truncate(path, 1 << 40)  # a terabyte of nothing
    refuse(path, f"it has more than {1 << 28} bytes")


def test_no_flipped_bit_of_a_signed_document_passes(path):
    content = files.dump_signed(GOOD)
    path.write_bytes(content)
    assert {key: value for key, value in files.read_signed(str(path), Whole).items() if key != "sha256"} == GOOD
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        refuse(path, "its sha256 does not fit its content|not readable as JSON", files.read_signed)


def test_a_document_that_was_never_signed_is_refused(path):
    for content in (GOOD, [], None, "text"):
        path.write_text(json.dumps(content))
        refuse(path, "its sha256 does not fit its content", files.read_signed)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"caf\xe9", "it is no UTF-8 text .* at byte 3"),
        ("text".encode("utf-16-le"), "NUL at character 1"),
        ("text".encode("utf-16"), "at byte 0"),
    ],
)
def test_what_is_no_text_is_refused(path, content, what):
    path.write_bytes(content)
    with pytest.raises(files.Damaged, match=what):
        files.read_text(str(path))


def test_text_is_the_same_from_every_editor(path):
    for content in ("a\né\n", "a\r\né\r\n", "\ufeffa\né\n"):
        path.write_bytes(content.encode())
        assert files.read_text(str(path)) == "a\né\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(files.Damaged, match="Is a directory"):
        files.read_text(str(path))
