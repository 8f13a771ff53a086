"""Damage to bytes and to files, as disks, networks and people do it."""

import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np

Rng = np.random.Generator


def damage_bytes(rng: Rng, data: bytes, first: int = 0) -> tuple[str, bytes]:
    """One kind of damage at a random place, from byte `first` on: what was done, and the result."""
    kind = _BYTES[rng.integers(len(_BYTES))]
    what, tail = kind(rng, data[first:])
    return f"{kind.__name__.strip('_')} {what}", data[:first] + tail


def _flip(rng: Rng, data: bytes) -> tuple[str, bytes]:
    place, bit = _place(rng, data), int(rng.integers(8))
    return f"bit {bit} of byte {place}", _patched(data, place, bytes([data[place] ^ 1 << bit]) if data else b"")


def _flips(rng: Rng, data: bytes) -> tuple[str, bytes]:
    changed = bytearray(data)
    places = rng.integers(max(len(data), 1), size=8)
    for place in places[: len(data)]:
        changed[place] ^= int(rng.integers(1, 256))
    return f"bytes {places.tolist()}", bytes(changed)


def _cut(rng: Rng, data: bytes) -> tuple[str, bytes]:
    size = _place(rng, data)
    return f"to {size} of {len(data)} bytes", data[:size]


def _behead(rng: Rng, data: bytes) -> tuple[str, bytes]:
    size = _place(rng, data)
    return f"by {size} bytes", data[size:]


def _extend(rng: Rng, data: bytes) -> tuple[str, bytes]:
    size = int(2 ** rng.integers(1, 12))
    return f"by {size} random bytes", data + rng.bytes(size)


def _pad(rng: Rng, data: bytes) -> tuple[str, bytes]:
    size = int(2 ** rng.integers(1, 12))
    return f"by {size} zeros", data + bytes(size)


def _repeat(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return "the whole", data + data


def _zero(rng: Rng, data: bytes) -> tuple[str, bytes]:
    place, size = _place(rng, data), int(2 ** rng.integers(1, 10))
    return f"{size} bytes from {place}", _patched(data, place, bytes(min(size, len(data) - place)))


def _garble(rng: Rng, data: bytes) -> tuple[str, bytes]:
    place, size = _place(rng, data), int(2 ** rng.integers(1, 10))
    return f"{size} bytes from {place}", _patched(data, place, rng.bytes(min(size, len(data) - place)))


def _lose(rng: Rng, data: bytes) -> tuple[str, bytes]:
    place, size = _place(rng, data), int(2 ** rng.integers(0, 10))
    return f"{size} bytes from {place}", data[:place] + data[place + size :]


def _double(rng: Rng, data: bytes) -> tuple[str, bytes]:
    place, size = _place(rng, data), int(2 ** rng.integers(0, 10))
    return f"{size} bytes from {place}", data[: place + size] + data[place:]


def _exchange(rng: Rng, data: bytes) -> tuple[str, bytes]:
    a, b, c = sorted(_place(rng, data) for _ in range(3))
    return f"bytes {a} to {b} and {b} to {c}", data[:a] + data[b:c] + data[a:b] + data[c:]


def _random(rng: Rng, data: bytes) -> tuple[str, bytes]:
    return f"{len(data)} bytes", rng.bytes(len(data))


_BYTES = (
    _flip, _flip, _flip, _flip, _flips, _cut, _cut, _behead, _extend, _pad, _repeat, _zero, _garble, _lose, _double,
    _exchange, _random,
)  # fmt: skip


def _place(rng: Rng, data: bytes) -> int:
    return int(rng.integers(max(len(data), 1)))


def _patched(data: bytes, place: int, patch: bytes) -> bytes:
    return data[:place] + patch + data[place + len(patch) :]


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage_file(rng: Rng, path: pathlib.Path) -> str:
    """Damages the bytes of a file."""
    what, data = damage_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {what}"


def misplace(rng: Rng, path: pathlib.Path, others: Sequence[pathlib.Path]) -> str:
    """Removes a file, or puts something else in its place; `others` are its neighbours."""
    kind = _FILES[rng.integers(len(_FILES))]
    other = others[rng.integers(len(others))] if others else path
    kind(rng, path, other)
    return f"{path.name}: {kind.__name__.strip('_')} (other: {other.name})"


def _remove(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.unlink()


def _empty(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.write_bytes(b"")


def _folder(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling_link(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.unlink()
    path.symlink_to("nothing-there")


def _link_to_itself(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _link_to_folder(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.unlink()
    path.symlink_to("..")


def _link_to_other(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    if path != other:
        path.unlink()
        path.symlink_to(other)


def _copied_over(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    if path != other:
        shutil.copyfile(other, path)


def _swapped(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    aside = path.with_name("aside")
    os.rename(path, aside)
    if other.exists():
        os.rename(other, path)
    os.rename(aside, other)


def _renamed(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    path.rename(path.with_name(f"{path.name}.bak"))


def _linked_elsewhere(rng: Rng, path: pathlib.Path, other: pathlib.Path) -> None:
    """Harmless: the same bytes behind a link."""
    moved = path.with_name(f"moved-{path.name}")
    os.rename(path, moved)
    path.symlink_to(moved.name)


_FILES: tuple[Callable[[Rng, pathlib.Path, pathlib.Path], None], ...] = (
    _remove, _empty, _folder, _dangling_link, _link_to_itself, _link_to_folder, _link_to_other, _copied_over, _swapped,
    _renamed, _linked_elsewhere,
)  # fmt: skip
