import io
import os
import resource
import zipfile

import numpy as np
import pytest

from tf_rnnt_kd import files
from tf_rnnt_kd.arrays import Array, dump_arrays, read_arrays

WANTED = {"a": Array("int64", ("N",)), "b": Array("float32", ("N", 2)), "id": Array("bytes", ("N",))}
GOOD = {
    "a": np.arange(3, dtype=np.int64),
    "b": np.ones([3, 2], np.float32),
    "id": np.array([b"x", b"yy", b""], np.bytes_),
}


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(shape, descr="<i8", data=b""):
    """A `.npy` that says to be of this shape, whatever it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def archive(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def good(**changes):
    return [(f"{name}.npy", changes.get(name, npy(array))) for name, array in GOOD.items()]


def bomb():
    """A few kilobytes that would be a gigabyte."""
    huge = header((1 << 27,)) + bytes(1 << 24) * 64
    return archive(good(a=huge), zipfile.ZIP_DEFLATED)


def overlapping():
    """Members that say to be larger than the file."""
    content = bytearray(archive(good()))
    size = np.frombuffer(np.array([1 << 30], "<u4").tobytes(), np.uint8).tobytes()
    place = content.rindex(b"PK\x01\x02")
    content[place + 20 : place + 28] = size * 2
    return bytes(content)


def test_what_is_written_comes_back(work_dir):
    path = work_dir / "a.npz"
    path.write_bytes(dump_arrays(GOOD))
    found = read_arrays(str(path), WANTED, sha256=files.sha256_of_file(str(path)))
    for name, array in GOOD.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert dump_arrays(GOOD) == dump_arrays(GOOD)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: b"", "cannot be read"),
        (lambda: archive(good())[:-30], "cannot be read"),
        (lambda: archive(good()[:2]), "it has 2 arrays, 3 are expected, and differs in 'id.npy'"),
        (lambda: archive([*good(), ("more.npy", b"")]), "it has 4 arrays, 3 are expected, and differs in 'more.npy'"),
        (bomb, "a.npy is compressed, which this program never writes"),
        (overlapping, "it says to hold more than it has bytes|is compressed"),
        (lambda: archive(good(a=npy(np.arange(3, dtype=np.int32)))), "a is <i4, expected is int64"),
        (lambda: archive(good(a=npy(np.arange(3, dtype=">i8")))), "a is >i8, expected is int64"),
        (lambda: archive(good(a=npy(np.array([None, 1, 2], object)))), "a is .O, expected is int64"),
        (lambda: archive(good(a=header((3,), [("x", "<i8")]))), r"a is \|V8, expected is int64"),
        (lambda: archive(good(b=npy(np.ones([4, 2], np.float32)))), r"b has shape \(4, 2\), expected is \(3, 2\)"),
        (lambda: archive(good(b=npy(np.ones([3], np.float32)))), r"b has shape \(3,\), expected is \('N', 2\)"),
        (lambda: archive(good(b=npy(np.ones([2, 3], np.float32).T))), "b is <f4, expected is float32"),
        (lambda: archive(good(a=header((1 << 60,)))), r"a of shape \(1152921504606846976,\) has 0 bytes"),
        (lambda: archive(good(a=header((3,)))), r"a of shape \(3,\) has 0 bytes"),
        (lambda: archive(good(a=header((3,), data=bytes(32)))), r"a of shape \(3,\) has 32 bytes"),
        (lambda: archive(good(a=b"\x93NUMPY\x01\x00\x08\x00" + b"(" * 8)), "cannot be read"),
        (lambda: archive(good(a=b"\x93NUMPY\x03\x00\x08\x00" + b" " * 8)), "an array has version .3, 0."),
        (lambda: archive(good(b=npy(np.full([3, 2], np.nan, np.float32)))), "b holds values that are not finite"),
        (lambda: archive(good(b=npy(np.full([3, 2], np.inf, np.float32)))), "b holds values that are not finite"),
    ],
)
def test_what_is_not_as_wanted_is_one_line(work_dir, content, words):
    path = work_dir / "a.npz"
    path.write_bytes(content())
    with pytest.raises(files.Damaged, match=rf"a.npz is damaged: .*({words}).*; restore it"):
        read_arrays(str(path), WANTED)


def test_nothing_is_unpacked_of_what_is_larger_than_it_looks(work_dir):
    """What was 14 MB took 7 GB; this is a megabyte that would be one gigabyte."""
    path = work_dir / "weights.npz"
    path.write_bytes(bomb())
    assert path.stat().st_size < 1.2e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(files.Damaged, match="a.npy is compressed"):
        read_arrays(str(path), {**WANTED, "a": Array("int64", (1 << 27,))})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_file_with_another_hash_is_refused_before_it_is_opened(work_dir):
    path = work_dir / "a.npz"
    path.write_bytes(b"anything")
    with pytest.raises(files.Damaged, match="its sha256 is not the one that was noted"):
        read_arrays(str(path), WANTED, sha256="a" * 64)


def test_a_missing_file_is_told_apart(work_dir):
    with pytest.raises(files.Missing, match="a.npz is missing: write it"):
        read_arrays(os.path.join(work_dir, "a.npz"), WANTED, remedy="write it")
