import dataclasses
import json
import os
import re

import numpy as np
import pytest

from tests.data.record_sets import JOINT, flip, items, read_at, to_records, write, write_factored
from tests.data.test_schema import assert_same, spec
from tf_rnnt_kd import files
from tf_rnnt_kd.arrays import dump_arrays
from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored


def test_all_records_come_back_in_order(work_dir):
    record_set = write(work_dir)
    found = list(record_set.read())
    assert record_set.num_utterances == len(found) == 10
    for a, b in zip(found, to_records(items()), strict=True):
        assert_same(a, b)
    assert record_set.ids == [item.id for item in items()]
    assert len(record_set.shards) == 3 and record_set.targets is None
    assert record_set.seconds == sum(100 + i for i in range(10)) / 16000
    record_set.verify()


def test_the_index_describes_every_record(work_dir):
    record_set = write(work_dir)
    index = record_set.index
    np.testing.assert_array_equal(index.shard, [0] * 4 + [1] * 4 + [2] * 2)
    np.testing.assert_array_equal(index.num_samples, np.arange(100, 110))
    np.testing.assert_array_equal(index.num_labels, np.arange(10) % 4)
    np.testing.assert_array_equal(index.score, -np.arange(10.0))
    assert [a.dtype.name for a in index] == ["int32", "int64", "int64", "int32", "int32", "float32", "int64"]
    for i in (0, 3, 4, 9):
        serialized = read_at(record_set, i)
        assert schema.decode_record(serialized).id == f"u{i}"
        assert len(serialized) + 16 == index.num_bytes[i]


def test_teacher_targets_and_joint_come_back(work_dir):
    record_set = write_factored(work_dir)
    assert record_set.targets == spec()
    for a, b in zip(record_set.read(), to_records(items(), "factored"), strict=True):
        assert_same(a, b)
    np.testing.assert_array_equal(record_set.kernel, JOINT[0])
    np.testing.assert_array_equal(record_set.bias, JOINT[1])


def test_a_set_without_joint_says_so(work_dir):
    with pytest.raises(ValueError, match="holds no factored targets, so no joint"):
        _ = write(work_dir).kernel


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 3), (2, 9), (4, 8), (9, 10), (5, 5), (8, 99)])
def test_a_stretch_of_records_can_be_read(work_dir, start, stop):
    record_set = write(work_dir)
    assert [r.id for r in record_set.read(start, stop)] == record_set.ids[start:stop]


# -- what is refused --


def test_who_wants_to_hear_a_set_of_features_is_told(work_dir):
    record_set = write(work_dir, features=stored.describe("uint8"))
    with pytest.raises(UserError, match="holds features in place of audio, so it can be trained on and no more: leave"):
        next(record_set.read())


def test_features_of_another_front_end_are_refused_by_reader_and_writer(work_dir, monkeypatch):
    write(work_dir, features=stored.describe("uint8"))
    monkeypatch.setitem(stored.FRONT_END, "log_floor", 1e-7)
    with pytest.raises(UserError, match="another front end .log_floor is 1e-05 there and 1e-07 here.: delete it"):
        open_records(str(work_dir))
    with pytest.raises(UserError, match="was begun with other settings .features is"):
        write(work_dir, features=stored.describe("uint8"))


def test_labels_of_another_tokenizer_are_refused(work_dir):
    write(work_dir)
    assert open_records(str(work_dir), tokenizer_hash="a" * 64).num_utterances == 10
    with pytest.raises(UserError, match="was made with tokenizer aaaaaaaaaaaa, not bbbbbbbbbbbb: use the tokenizer"):
        open_records(str(work_dir), tokenizer_hash="b" * 64)


def test_unlabelled_audio_fits_any_tokenizer(work_dir):
    write(work_dir, tokenizer_hash=None)
    assert open_records(str(work_dir), tokenizer_hash="b" * 64).num_utterances == 10


def test_an_absent_folder_is_refused(work_dir):
    with pytest.raises(UserError, match="absent has no manifest.json, so it is no finished record set: run `prepare`"):
        open_records(str(work_dir / "absent"))


def test_another_schema_version_is_refused_by_reader_and_writer(work_dir, monkeypatch):
    write(work_dir)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 4)
    with pytest.raises(UserError, match="manifest.json has schema version 3, this program reads 4: delete .* again"):
        open_records(str(work_dir))
    with pytest.raises(UserError, match="schema_version is 3 there and 4 now"):
        write(work_dir)


def test_a_flipped_byte_anywhere_in_the_manifest_is_noticed(work_dir):
    write(work_dir)
    path = work_dir / "manifest.json"
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        flip(path, position)
        with pytest.raises(UserError, match="manifest.json (is damaged: it|has schema version)|is damaged"):
            open_records(str(work_dir))
        path.write_bytes(original)
    assert open_records(str(work_dir)).num_utterances == 10


@pytest.mark.parametrize("text", ["[]", "null", "", '{"schema_version": 3}', "\xff"])
def test_a_manifest_that_is_none_is_refused(work_dir, text):
    write(work_dir)
    (work_dir / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="manifest.json is damaged: it.*; delete it, and run the command"):
        open_records(str(work_dir))


def test_an_edited_manifest_is_refused(work_dir):
    write(work_dir)
    path = work_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["utterances"] += 1
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    with pytest.raises(UserError, match="manifest.json is damaged: its sha256 does not fit its content"):
        open_records(str(work_dir))


@pytest.mark.parametrize("name", ["records-00001-of-00003.index.npz", "joint.npz"])
def test_a_flipped_byte_in_index_or_joint_is_noticed(work_dir, name):
    write_factored(work_dir)
    path = work_dir / name
    original = path.read_bytes()
    for position in np.linspace(0, len(original) - 1, 40).astype(int):
        flip(path, position)
        with pytest.raises(
            UserError, match=f"{name} is damaged: its sha256 is not the one that was noted; delete it and"
        ):
            open_records(str(work_dir))
        path.write_bytes(original)
    open_records(str(work_dir))


@pytest.mark.parametrize("name", ["records-00001-of-00003.index.npz", "joint.npz", "records-00001-of-00003.tfrecord"])
def test_a_missing_file_is_named(work_dir, name):
    write_factored(work_dir)
    os.remove(work_dir / name)
    with pytest.raises(UserError, match=f"{name} is missing: delete manifest.json beside it, and run"):
        open_records(str(work_dir))


@pytest.mark.parametrize("change", [-1, 1, -100_000])
def test_a_shard_of_another_size_is_refused(work_dir, change):
    path = work_dir / "records-00001-of-00003.tfrecord"
    write(work_dir)
    size = path.stat().st_size
    wrong = max(0, size + change)
    os.truncate(path, wrong)
    message = f"{path} is damaged: it has {wrong} bytes, the manifest says {size}; delete it and manifest.json"
    with pytest.raises(UserError, match=re.escape(message)):
        open_records(str(work_dir))


def test_a_flipped_byte_anywhere_in_a_shard_is_noticed_by_reading_and_by_verifying(work_dir):
    record_set = write(work_dir)
    path = work_dir / "records-00001-of-00003.tfrecord"
    original = path.read_bytes()
    for position in np.linspace(0, len(original) - 1, 25).astype(int):
        flip(path, position)
        with pytest.raises(UserError, match=r"records-00001-of-00003.tfrecord is damaged: record \d cannot be read"):
            list(record_set.read())
        with pytest.raises(UserError, match="records-00001-of-00003.tfrecord is damaged: its sha256 differs"):
            record_set.verify()
        path.write_bytes(original)
    record_set.verify()


def test_a_shard_that_shrinks_or_goes_after_opening_is_noticed(work_dir):
    record_set = write(work_dir)
    path = work_dir / "records-00000-of-00003.tfrecord"
    os.truncate(path, record_set.index.offset[3])  # three whole records: each of them is fine
    with pytest.raises(UserError, match="is damaged: it ends after 3 records"):
        list(record_set.read())
    os.remove(path)
    with pytest.raises(UserError, match="tfrecord is missing: delete manifest.json beside it, and run"):
        list(record_set.read())
    with pytest.raises(UserError, match="tfrecord is missing: delete manifest.json beside it, and run"):
        record_set.verify()


# -- what is signed again by hand --


def sign_again(folder, change):
    """Alters the manifest and signs it as the program does."""
    path = folder / "manifest.json"
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    change(manifest)
    path.write_bytes(files.dump_signed(manifest))


def alter_index(folder, **arrays):
    """Alters the index of the first shard and the manifest that vouches for it."""
    path = folder / "records-00000-of-00003.index.npz"
    with np.load(path) as found:
        path.write_bytes(dump_arrays({**found, **{name: change(found[name]) for name, change in arrays.items()}}))
    sign_again(folder, lambda manifest: manifest["shards"][0].update(index_sha256=files.sha256_of_file(str(path))))


def put(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"num_bytes": put(2, 1 << 40)}, "no shard of .* bytes has records of so many bytes"),
        ({"num_bytes": put(2, -5)}, "no shard of .* bytes has records of so many bytes"),
        ({"num_bytes": put(2, 0)}, "no shard of .* bytes has records of so many bytes"),
        ({"offset": put(2, 1 << 60)}, "its records do not follow each other"),
        ({"offset": put(3, 1 << 60)}, "its records do not follow each other"),
        ({"offset": put(0, 1)}, "its records do not follow each other"),
        ({"offset": put(1, -1)}, "its records do not follow each other"),
        ({"offset": lambda a: a[::-1].copy(), "num_bytes": lambda a: a[::-1].copy()}, "do not follow each other"),
        ({"shard_bytes": lambda a: a + 7}, "its records do not follow each other"),
        ({"shard_bytes": lambda a: a * 0 - 1}, "no shard of -1 bytes"),
        ({"num_labels": put(2, 1 << 30)}, "no such numbers of samples or labels"),
        ({"num_samples": put(2, -1)}, "no such numbers of samples or labels"),
        ({"num_samples": put(2, 1)}, "it does not say of its shard what the manifest says"),
        ({"offset": lambda a: a[:3]}, r"num_bytes has shape \(4,\), expected is \(3,\)"),
        ({"offset": lambda a: a.astype(np.float64)}, "offset is <f8, expected is int64"),
        ({"shard_name": lambda a: np.bytes_("records-00001-of-00003.tfrecord")}, "it is the index of b'records-00001"),
        ({"shard_sha256": lambda a: np.bytes_("0" * 64)}, "it does not say of its shard what the manifest says"),
    ],
)
def test_an_index_that_says_what_cannot_be_is_refused_when_it_is_opened(work_dir, arrays, words):
    """2^40 bytes ended in SIGSEGV, an offset of 2^60 in rows that were not there."""
    write(work_dir)
    alter_index(work_dir, **arrays)
    with pytest.raises(
        UserError, match=f"00000-of-00003.index.npz is damaged: .*{words}.*; delete it and manifest.json"
    ):
        open_records(str(work_dir))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m["shards"][0].update(name="../other/records-00000-of-00003.tfrecord"),
            "shards.0.name is '../other",
        ),
        (lambda m: m["shards"][0].update(name="/etc/passwd"), "shards.0.name is '/etc/passwd', it should be records-0"),
        (
            lambda m: m["shards"].reverse(),
            "shards.0.name is 'records-00002-of-00003.tfrecord', it should be records-0000",
        ),
        (lambda m: m["shards"].pop(), "shards lists 2, 10 items make 3"),
        (lambda m: m.update(items=2**50), "shards lists 3, 1125899906842624 items make"),
        (lambda m: m["shards"][0].update(skipped=1), "shards.0 has not the items that it was made from"),
        (lambda m: m.update(utterances=9), "utterances is 9, its shards make 10"),
        (lambda m: m.update(seconds=1.0), "seconds is 1.0, its shards make 0.0"),
        (lambda m: m.update(joint_sha256="a" * 64), "codec factored has a joint_sha256, and nothing else has"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(work_dir, change, words):
    write(work_dir)
    sign_again(work_dir, change)
    with pytest.raises(UserError, match=f"manifest.json is damaged: {words}.*; delete it, and run the command"):
        open_records(str(work_dir))


def test_a_record_that_is_none_is_one_line(work_dir):
    """A shard of garbage in good frames, its index and its manifest made to fit."""
    make = schema.encode_record

    def short(part):
        return (dataclasses.replace(record, samples=record.samples[:5]) for record in to_records(part))

    whole = make(next(to_records(items()[3:])))
    for i, garbage in enumerate((b"\xff" * 40, whole[:20], whole.replace(b"labels", b"lapels"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schema, "encode_record", lambda record, garbage=garbage: garbage)
            record_set = write(work_dir / str(i), make=short)
        with pytest.raises(UserError, match="00000-of-00003.tfrecord is damaged: a record is none of this set"):
            list(record_set.read())
        with pytest.raises(UserError, match="00000-of-00003.tfrecord is damaged: a record is none of this set"):
            record_set.verify()
