"""Damage to text: what editors, tables, other systems and other alphabets leave in it."""

from collections.abc import Sequence

import numpy as np

Rng = np.random.Generator

# Characters that are no letters, which people do not see.
UNSEEN = (
    "\x00", "\x01", "\x07", "\x0b", "\x0c", "\x1b", "\x1c", "\x1f", "\x7f", "\x85", "\u2028", "\u2029",
    "\ufffe", "\uffff",
)  # fmt: skip
_HARMLESS = ("\u200b", "\u00a0", "\u00ad", "\u200e", "\ufeff", "\u3000", "\u0301", "\ue000", "\U0001f600")


def damage_text(rng: Rng, data: bytes) -> tuple[str, bytes, bool]:
    """One kind of damage: what was done, the result, and whether it might be somebody's text (`excused`)."""
    kind = _KINDS[rng.integers(len(_KINDS))]
    what, changed = kind(rng, data)
    return f"{kind.__name__.strip('_')} {what}", changed, kind not in _TOLD


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")


def _any(rng: Rng, values: Sequence) -> int:
    return int(rng.integers(max(len(values), 1)))


def _inserted(rng: Rng, data: bytes, part: bytes) -> bytes:
    """`part` between two characters."""
    text = data.decode()
    place = int(rng.integers(len(text) + 1))
    return text[:place].encode() + part + text[place:].encode()


def _mark(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "at the start", b"\xef\xbb\xbf" + data


def _unseen(rng: Rng, data: bytes) -> tuple[str, bytes]:
    character = UNSEEN[_any(rng, UNSEEN)]
    return repr(character), _inserted(rng, data, character.encode())


def _odd(rng: Rng, data: bytes) -> tuple[str, bytes]:
    character = _HARMLESS[_any(rng, _HARMLESS)]
    return repr(character), _inserted(rng, data, character.encode())


def _invalid(rng: Rng, data: bytes) -> tuple[str, bytes]:
    part = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf", b"\x80")[_any(rng, range(6))]
    return repr(part), _inserted(rng, data, part)


def _carriage_returns(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "before each line's end", data.replace(b"\n", b"\r\n")


def _carriage_return(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "somewhere", _inserted(rng, data, b"\r")


def _wide(rng: Rng, data: bytes) -> tuple[str, bytes]:
    name = ("utf-16", "utf-16-le", "utf-32")[_any(rng, range(3))]
    return name, data.decode().encode(name)


def _lost_line(rng: Rng, data: bytes) -> tuple[str, bytes]:
    lines = _lines(data)
    i = _any(rng, lines[:-1])
    return str(i + 1), b"\n".join(lines[:i] + lines[i + 1 :])


def _doubled_line(rng: Rng, data: bytes) -> tuple[str, bytes]:
    lines = _lines(data)
    i = _any(rng, lines[:-1])
    return str(i + 1), b"\n".join(lines[: i + 1] + lines[i:])


def _exchanged_lines(rng: Rng, data: bytes) -> tuple[str, bytes]:
    lines = _lines(data)
    i, j = _any(rng, lines[:-1]), _any(rng, lines[:-1])
    lines[i], lines[j] = lines[j], lines[i]
    return f"{i + 1} and {j + 1}", b"\n".join(lines)


def _joined_lines(rng: Rng, data: bytes) -> tuple[str, bytes]:
    lines = _lines(data)
    i = _any(rng, lines[:-2])
    return str(i + 1), b"\n".join([*lines[:i], b" ".join(lines[i : i + 2]), *lines[i + 2 :]])


def _broken_line(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "", _inserted(rng, data, b"\n")


def _blank_lines(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "everywhere", data.replace(b"\n", b"\n\n")


def _trailing_spaces(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "", data.replace(b"\n", b"  \n")


def _without_last_end(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "", data.rstrip(b"\n")


def _long_line(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "of 1e6 letters", _inserted(rng, data, b"A" * 1_000_000)


def _many_lines(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "1e5 of them", data + b"x\n" * 100_000


def _many_fields(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "1e5 of them", _inserted(rng, data, b"\t" * 100_000)


def _lost_field(rng: Rng, data: bytes) -> tuple[str, bytes]:
    words = data.split(b" " if b"\t" not in data else b"\t")
    i = _any(rng, words)
    return str(i), (b" " if b"\t" not in data else b"\t").join(words[:i] + words[i + 1 :])


def _letter(rng: Rng, data: bytes) -> tuple[str, bytes]:
    places = [i for i, byte in enumerate(data) if chr(byte).isalnum()]
    i = places[_any(rng, places)]
    other = b"0" if data[i : i + 1].isdigit() else b"Q"
    return f"{i} is {other}", data[:i] + other + data[i + 1 :]


def _cut(rng: Rng, data: bytes) -> tuple[str, bytes]:
    size = _any(rng, data)
    return f"to {size} of {len(data)} bytes", data[:size]


_KINDS = (
    _mark, _unseen, _unseen, _unseen, _odd, _odd, _invalid, _invalid, _carriage_returns, _carriage_return, _wide,
    _lost_line, _doubled_line, _exchanged_lines, _joined_lines, _broken_line, _blank_lines, _trailing_spaces,
    _without_last_end, _long_line, _many_lines, _many_fields, _lost_field, _letter, _cut, _cut,
)  # fmt: skip
# What changes nothing, or what no reader may take for text: another outcome without a word is a fault everywhere.
_TOLD = {_mark, _unseen, _invalid, _carriage_returns, _wide, _blank_lines, _trailing_spaces, _without_last_end}
