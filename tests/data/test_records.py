import json
import os
import re

import numpy as np
import pytest

from tests.data.record_sets import JOINT, flip, items, read_at, to_records, write, write_factored
from tests.data.test_schema import assert_same, spec
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
    with pytest.raises(UserError, match="absent has no manifest.json, so it is no finished record set: run"):
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
