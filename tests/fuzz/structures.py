"""Damage that fits its format: JSON whose fields, and NPZ whose arrays, are not what a reader expects."""

import copy
import functools
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tf_rnnt_kd import files

Rng = np.random.Generator

_DEEP, _LONG = "@deep@", "@long@"
_RAW = {f'"{_DEEP}"': "[" * 100_000 + "]" * 100_000, f'"{_LONG}"': "9" * 100_000}
_ODD = (
    None, True, False, "", "text", "..", "/", "../../elsewhere", "\ud800", "\x00", "x" * 100_000, -1, 0, 1, 2, 7, 1.5,
    -0.0, 1e308, -1e308, 2**31, 2**40, 2**63, -(2**63) - 1, 10**300, float("nan"), float("inf"), float("-inf"),
    [], {}, [[]], [None], [1, 2, 3], {"a": 1}, [{}], _DEEP, _LONG,
)  # fmt: skip


def damage_json(rng: Rng, content: Any, sign: Callable[[Any], bytes]) -> tuple[str, bytes]:
    """One field that is missing, of another type, enormous, deep, negative or not a number.

    Args:
      rng: chooses.
      content: of the file.
      sign: makes the file of a content, with whatever vouches for it.
    """
    changed = copy.deepcopy(content)
    places = list(_places(changed))
    holder, key, name = places[rng.integers(len(places))]
    what = _CHANGES[rng.integers(len(_CHANGES))](rng, holder, key)
    data = sign(changed if holder is not None else what[1])
    for marker, raw in _RAW.items():
        data = data.replace(marker.encode(), raw.encode())
    return f"{name} {what[0]}", data


def _places(content: Any, name: str = "") -> Iterator[tuple[Any, Any, str]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key, f"{name}/{key}"
        yield from _places(value, f"{name}/{key}")


def _odd(rng: Rng, holder: Any, key: Any) -> tuple[str, Any]:
    value = _ODD[rng.integers(len(_ODD))]
    holder[key] = value
    return f"is {str(value)[:30]!r}", value


def _missing(rng: Rng, holder: Any, key: Any) -> tuple[str, Any]:
    del holder[key]
    return "is missing", None


def _mistyped(rng: Rng, holder: Any, key: Any) -> tuple[str, Any]:
    value = holder[key]
    kinds = [str(value), [value], {"value": value}, bool(value)]
    holder[key] = kinds[rng.integers(len(kinds))]
    return f"is {str(holder[key])[:30]!r}", None


def _number(rng: Rng, holder: Any, key: Any) -> tuple[str, Any]:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _odd(rng, holder, key)
    holder[key] = [value + 1, value - 1, -value, value * 2, value * 2**20, float(value), value + 0.5][rng.integers(7)]
    return f"is {holder[key]}", None


def _again(rng: Rng, holder: Any, key: Any) -> tuple[str, Any]:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
        return "stands there twice", None
    holder[f"{key}_"] = holder[key]
    return "has a neighbour of a like name", None


_CHANGES = (_odd, _odd, _odd, _missing, _missing, _mistyped, _number, _number, _again)


def damage_json_text(rng: Rng, data: bytes) -> tuple[str, bytes]:
    """Something else altogether where JSON should stand."""
    kinds = {
        "a list": b"[]",
        "null": b"null",
        "a number": b"1",
        "a text": b'"text"',
        "an empty object": b"{}",
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "a long number": b"9" * 100_000,
        "Latin-1": '{"a": "é"}'.encode("latin-1"),
        "UTF-16": data.decode("utf-8", "replace").encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + data,
        "two documents": data + data,
        "a comment": b"// a comment\n" + data,
        "a comma at its end": data.rstrip()[:-1] + b",}",
        "NaN": b"NaN",
        "spaces": b" " * 1000,
    }
    what = list(kinds)[rng.integers(len(kinds))]
    return what, kinds[what]


def sign(content: Any) -> bytes:
    """The document as the project signs it; with what the project does not write, signed in the same way."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "sha256"}
        content["sha256"] = files.sha256_of(plain_json(content))
    return plain_json(content)


def plain_json(content: Any) -> bytes:
    """JSON that nothing vouches for."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


# -- NPZ --


def damage_npz(rng: Rng, data: bytes) -> tuple[str, bytes]:
    """One array that is missing, of another type or shape, not finite, or not what its header says."""
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    name = list(arrays)[rng.integers(len(arrays))]
    kind = _ARCHIVES[rng.integers(len(_ARCHIVES))]
    what, changed = kind(rng, arrays, name)
    return f"{name} {kind.__name__.strip('_')} {what}", changed


def _saved(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _dropped(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    return "", _saved({key: value for key, value in arrays.items() if key != name})


def _added(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    return "", _saved({**arrays, "another": np.zeros(3)})


def _called_otherwise(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    return "", _saved({(key + "_" if key == name else key): value for key, value in arrays.items()})


def _reversed(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    return "order", _saved(dict(reversed(arrays.items())))


def _typed(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    dtypes = ("float64", "float16", "int32", "int8", "bool", "complex64", "U5", "S5", ">f4", "datetime64[s]")
    dtype = dtypes[rng.integers(len(dtypes))]
    with np.errstate(all="ignore"):
        value = _or(lambda: arrays[name].astype(dtype), np.zeros(arrays[name].shape, dtype))
    return dtype, _saved({**arrays, name: value})


def _viewed(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    value = arrays[name]
    dtype = {8: "float64", 4: "int32" if value.dtype.kind == "f" else "float32"}.get(value.dtype.itemsize, "uint8")
    return dtype, _saved({**arrays, name: np.ascontiguousarray(value).reshape(-1).view(dtype).reshape(-1)})


def _objects(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    return "", _saved({**arrays, name: np.array([{"a": 1}, None], object)})


def _valued(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    value = np.array(arrays[name], copy=True)
    flat = value.reshape(-1)
    if value.dtype.kind not in "fiu" or not flat.size:
        return _objects(rng, arrays, name)
    odd = (np.nan, np.inf, -np.inf, 1e30, -1.0) if value.dtype.kind == "f" else (-1, 2**30, 2**40, 2**60, 0, 1)
    chosen = odd[rng.integers(len(odd))]
    with np.errstate(all="ignore"):
        flat[rng.integers(flat.size)] = np.array(chosen).astype(value.dtype)
    return str(chosen), _saved({**arrays, name: value})


def _shaped(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    value = arrays[name]
    kinds = (
        lambda: value[None],
        lambda: value.T.copy(),
        lambda: value[:-1],
        lambda: np.concatenate([value, value]),
        lambda: value.reshape(-1)[:0],
        lambda: value.reshape(-1),
        lambda: value.reshape(-1)[0],
        lambda: np.asfortranarray(value),
    )
    i = int(rng.integers(len(kinds)))
    return str(i), _saved({**arrays, name: _or(kinds[i], value[None])})


def _or(make: Callable[[], np.ndarray], other: np.ndarray) -> np.ndarray:
    try:
        return make()
    except (ValueError, TypeError, IndexError):
        return other


def _promised(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    """A header that claims more than there is."""
    shapes = ((2**40,), (2**31, 2**31), (-1,), (10**25,), (2**62, 4), (0, 2**62))
    shape = shapes[rng.integers(len(shapes))]
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}"
    return str(shape), _zipped(arrays, {f"{name}.npy": _npy(header, b"\0" * 64)})


def _garbled_header(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    headers = (
        "", "{}", "{'descr': 'O', 'fortran_order': False, 'shape': (3,), }", "[" * 5000, "(" * 100,
        "{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
        "{'descr': '<f4,<i4', 'fortran_order': 0, 'shape': ()}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': __import__('os').getpid()}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }", "\x00" * 40, "{'descr': '|V0', "
        "'fortran_order': False, 'shape': (1000000000000,), }",
    )  # fmt: skip
    header = headers[rng.integers(len(headers))]
    return header[:60], _zipped(arrays, {f"{name}.npy": _npy(header, b"\0" * 64)})


def _npy(header: str, data: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


def _zipped(arrays: dict, replaced: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO(_saved(arrays))
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {**members, **replaced}.items():
            archive.writestr(name, data)
    return out.getvalue()


def _bomb(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    """Zeros that unpack to a thousand times their size."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**27},), }}"
    packed, size, checksum = _deflated_zeros(_npy(header, b""), 2**29)
    return "512 MiB", _stored_member(f"{name}.npy", packed, size, checksum)


@functools.cache
def _deflated_zeros(head: bytes, count: int) -> tuple[bytes, int, int]:
    squeeze, piece = zlib.compressobj(1, zlib.DEFLATED, -15), bytes(2**20)
    packed, checksum = [squeeze.compress(head)], zlib.crc32(head)
    for _ in range(count // len(piece)):
        packed.append(squeeze.compress(piece))
        checksum = zlib.crc32(piece, checksum)
    return b"".join([*packed, squeeze.flush()]), len(head) + count, checksum


def _stored_member(name: str, packed: bytes, size: int, checksum: int) -> bytes:
    """A ZIP file of one deflated member."""
    fields = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, checksum, len(packed), size) + struct.pack("<HH", len(name), 0)
    local = b"PK\x03\x04" + fields + name.encode() + packed
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def _packed_oddly(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    """A compression that nobody knows, or a password."""
    data = bytearray(_saved(arrays))
    central = data.find(b"PK\x01\x02")
    field, value = ((10, 99), (8, 1), (10, 12), (10, 14))[rng.integers(4)]
    data[central + field] = value
    data[field - 2] = value
    return f"{field} is {value}", bytes(data)


def _compressed(rng: Rng, arrays: dict, name: str) -> tuple[str, bytes]:
    """Harmless: the same arrays, deflated."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return "", buffer.getvalue()


_ARCHIVES = (
    _dropped, _added, _called_otherwise, _reversed, _typed, _typed, _viewed, _objects, _valued, _valued, _shaped,
    _shaped, _promised, _garbled_header, _bomb, _packed_oddly, _compressed,
)  # fmt: skip
