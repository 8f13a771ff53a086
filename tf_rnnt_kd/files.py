"""Files of ours: the one place that writes, replaces, hashes and reads them.

A file is written under a name that nobody can guess and then renamed, so that what has its final name is whole. What is
read is looked at first: a file that is too large, deeply nested, or other than its declared type says, is one line that
names the file and the field, before anything is made of it.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, NoReturn, TypeVar

import pydantic
import pydantic_core

from tf_rnnt_kd.errors import UserError

T = TypeVar("T")

# For `pydantic.with_config` of a TypedDict: a document without fields beyond its own, and one that may hold more.
CLOSED = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
OPEN = pydantic.ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Count = Annotated[int, pydantic.Field(ge=0, lt=2**53)]
Positive = Annotated[int, pydantic.Field(ge=1, lt=2**53)]
Amount = Annotated[float, pydantic.Field(ge=0.0, le=1e15)]
Name = Annotated[str, pydantic.Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]

_MOST_JSON = 1 << 28  # bytes; the manifest of a million shards has fewer
_MOST_TEXT = 1 << 24
RENEW = "restore it, or delete it and run the command that wrote it again"
_SIGNATURE = "sha256"  # the field of a signed document
_SHOWN = 3  # mistakes in one line


class Missing(UserError):
    """A file that should be there."""

    def __init__(self, path: str, remedy: str = RENEW):
        super().__init__(f"{path} is missing: {remedy}")
        self.path = path


class Damaged(UserError):
    """A file that is not what was written; `what` says why."""

    def __init__(self, path: str, what: str, remedy: str = RENEW):
        super().__init__(f"{path} is damaged: {what}; {remedy}")
        self.what = what


# -- writing --


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Gives the name of an empty file beside `path`; on success it becomes `path`, durably, else it is removed.

    Nobody can guess the name, and an existing file or link is never opened: in a folder that others may write to, a
    link cannot lead the writer elsewhere.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name[-40:]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        _flush_to_disk(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_atomically(path: str, content: bytes) -> None:
    """Makes `path` hold `content`, or leaves it as it was."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: str, text: str) -> None:
    """Makes `path` hold `text` as UTF-8, or leaves it as it was."""
    write_atomically(path, text.encode())


def write_json(path: str, content: dict[str, Any]) -> None:
    """Makes `path` hold `content` as JSON, or leaves it as it was; equal contents give equal bytes."""
    write_atomically(path, dump_json(content))


def dump_json(content: dict[str, Any]) -> bytes:
    """JSON in ASCII; equal contents give equal bytes, and what is no number raises ValueError."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def dump_signed(content: dict[str, Any]) -> bytes:
    """JSON that also holds the sha256 of the rest of it."""
    return dump_json({**content, _SIGNATURE: sha256_of(dump_json(content))})


def remove_temporaries(folder: str) -> None:
    """Removes what killed writers left; nobody else may be writing."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(".tmp"):
            os.remove(os.path.join(folder, name))


def _flush_to_disk(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- hashes --


def sha256_of(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- reading --


@contextlib.contextmanager
def opened(path: str, remedy: str = RENEW) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises:
      Missing: there is none.
      Damaged: something else is in its place, or it can't be read.
    """
    try:
        # Without O_NONBLOCK a pipe in place of the file would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "no regular file", path)
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(path, remedy) from None
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})", remedy) from error


def read_bytes(path: str, most: int, *, remedy: str = RENEW) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
      Missing: there is none.
      Damaged: it is larger, or can't be read.
    """
    with opened(path, remedy) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Damaged(path, f"it has more than {most} bytes", remedy)
    return content


def read_text(path: str, *, remedy: str = RENEW, most: int = _MOST_TEXT) -> str:
    """The text of a UTF-8 file, without a byte order mark, its lines ended by line feeds alone.

    Raises:
      Missing: there is none.
      Damaged: it is larger, can't be read, or is no such text.
    """
    try:
        text = read_bytes(path, most, remedy=remedy).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Damaged(path, f"it is no UTF-8 text ({error.reason} at byte {error.start})", remedy) from error
    if "\0" in text:  # as in UTF-16
        raise Damaged(path, f"it is no UTF-8 text (NUL at character {text.index(chr(0))})", remedy)
    return text.replace("\r\n", "\n")


def read_json(path: str, kind: type[T], *, remedy: str = RENEW, most: int = _MOST_JSON) -> T:
    """A JSON file as the declared type.

    Args:
      path: of the file.
      kind: any type that pydantic knows, of strict fields; see `CLOSED` and `OPEN`.
      remedy: what the reader of an error is told to do.
      most: bytes that the file may have.

    Raises:
      Missing: there is no file.
      Damaged: it is too large or no JSON, a field is missing, unknown or of another type, one comes twice, a number is
        not finite, or it is nested too deep.
    """
    content = read_bytes(path, most, remedy=remedy)
    _parse(path, content, remedy)
    return _validate(path, content, kind, remedy)


def read_signed(path: str, kind: type[T], *, remedy: str = RENEW, most: int = _MOST_JSON) -> T:
    """`read_json` of what `dump_signed` made: no changed byte passes, not even one in white space."""
    content = read_bytes(path, most, remedy=remedy)
    document = _parse(path, content, remedy)
    if not isinstance(document, dict) or content != _sign_again(document):
        raise Damaged(path, "its sha256 does not fit its content", remedy)
    return _validate(path, content, kind, remedy)


def _sign_again(document: dict[str, Any]) -> bytes:
    return dump_signed({key: value for key, value in document.items() if key != _SIGNATURE})


def _parse(path: str, content: bytes, remedy: str) -> Any:
    """What is in the file, of any type; pydantic's parser is asked first, as it has a limit of depth."""
    try:
        pydantic_core.from_json(content, allow_inf_nan=False)
        return json.loads(content, object_pairs_hook=_once, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"it is not readable as JSON ({_first_line(error)})", remedy) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _refuse_number(text)


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind)


def _validate(path: str, content: bytes, kind: type[T], remedy: str) -> T:
    try:
        return _adapter(kind).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        raise Damaged(path, _tell(error), remedy) from error


def _tell(error: pydantic.ValidationError) -> str:
    mistakes = [_tell_one(mistake) for mistake in error.errors(include_url=False)]
    more = [f"and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else []
    return ", ".join([*mistakes[:_SHOWN], *more])


def _tell_one(mistake: Any) -> str:
    where = ".".join(map(str, mistake["loc"])) or "it"
    if mistake["type"] == "missing":
        return f"{where} is missing"
    if mistake["type"] == "extra_forbidden":
        return f"{where} is unknown"
    found = repr(mistake["input"])
    shown = found if len(found) <= 40 else found[:37] + "..."
    return f"{where} is {shown} ({_first_line(mistake['msg'])})"


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0][:200]
