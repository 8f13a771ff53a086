import dataclasses
import errno
import fcntl
import glob
import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from tests.data.test_schema import assert_same, record, spec
from tf_rnnt_kd.data import records, schema, shards
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored

MANIFEST = {"tokenizer_hash": "a" * 64, "sample_rate": 16000, "targets": None, "source": "test"}
JOINT = (np.arange(15, dtype=np.float32).reshape(3, 5), np.ones(5, np.float32))


@dataclasses.dataclass(frozen=True)
class Item:
    id: str


def items(count=10):
    return [Item(f"u{i}") for i in range(count)]


def to_records(part, codec=None):
    for item in part:
        i = int(item.id[1:])
        yield record(num_labels=i % 4, num_frames=i + 1, codec=codec, num_samples=100 + i, id=item.id, score=-float(i))


def write(
    folder, part=None, make=to_records, records_per_shard=4, joint=None, measured=None, on_progress=None, **manifest
):
    return records.write_records(
        str(folder),
        items() if part is None else part,
        make,
        manifest={**MANIFEST, **manifest},
        records_per_shard=records_per_shard,
        joint=joint,
        measured=measured,
        on_progress=on_progress,
    )


def write_factored(folder):
    targets = dataclasses.asdict(spec())
    return write(folder, make=lambda part: to_records(part, "factored"), joint=JOINT, targets=targets)


def content(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x20
    path.write_bytes(data)


def read_at(record_set, i):
    """The record of utterance i by its byte offset, as a pipeline reads it."""

    def read(offset):
        path = record_set.shards[record_set.index.shard[i]]
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=0, byte_offsets=[offset]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(1)

    (serialized,) = tf.data.Dataset.from_tensors(record_set.index.offset[i]).flat_map(read).as_numpy_iterator()
    return serialized


# -- what is written --


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
    assert [a.dtype.name for a in index] == ["int32", "int64", "int64", "int32", "int32", "float32"]
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


def test_items_may_be_left_out(work_dir):
    def odd(part):
        return (r for r in to_records(part) if len(r.samples) % 2)

    record_set = write(work_dir, make=odd)
    assert record_set.ids == ["u1", "u3", "u5", "u7", "u9"]
    assert (record_set.manifest["utterances"], record_set.manifest["skipped"]) == (5, 5)


def test_a_shard_of_which_nothing_is_left_is_empty_but_there(work_dir):
    def first_shard_only(part):
        return (r for r in to_records(part) if len(r.samples) < 104)

    record_set = write(work_dir, make=first_shard_only)
    assert record_set.ids == ["u0", "u1", "u2", "u3"]
    assert len(record_set.shards) == 3
    assert len(list(record_set.read())) == 4


def test_the_same_items_give_the_same_bytes_and_hash(work_dir):
    first, second = write_factored(work_dir / "a"), write_factored(work_dir / "b")
    assert content(work_dir / "a") == content(work_dir / "b")
    assert first.hash == second.hash != write(work_dir / "c").hash


def test_progress_counts_items(work_dir):
    calls = []
    write(work_dir, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_only_files_of_the_set_are_left(work_dir):
    write_factored(work_dir)
    shard_files = [f"records-0000{i}-of-00003.{end}" for i in range(3) for end in ("index.npz", "tfrecord")]
    assert sorted(os.listdir(work_dir)) == sorted([*shard_files, "joint.npz", "manifest.json", "plan.json"])


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 3), (2, 9), (4, 8), (9, 10), (5, 5), (8, 99)])
def test_a_stretch_of_records_can_be_read(work_dir, start, stop):
    record_set = write(work_dir)
    assert [r.id for r in record_set.read(start, stop)] == record_set.ids[start:stop]


# -- going on after a stop --


class Counting:
    """`to_records` that knows which items it was asked for, and fails where it is told to."""

    def __init__(self, fail_at=None, error=None):
        self.asked, self.fail_at, self.error = [], fail_at, error or RuntimeError("stop")

    def __call__(self, part):
        for item, made in zip(part, to_records(part), strict=True):
            if item.id == self.fail_at:
                raise self.error
            self.asked.append(item.id)
            yield made


def test_a_finished_set_is_not_written_again(work_dir):
    first = write(work_dir)
    make = Counting()
    assert write(work_dir, make=make).hash == first.hash
    assert make.asked == []


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_stopped_writer_leaves_whole_shards_and_goes_on(work_dir, error):
    with pytest.raises(type(error)):
        write(work_dir / "a", make=Counting(fail_at="u5", error=error))
    assert sorted(os.listdir(work_dir / "a")) == [
        "plan.json",
        "records-00000-of-00003.index.npz",
        "records-00000-of-00003.tfrecord",
    ]
    make = Counting()
    write(work_dir / "a", make=make)
    assert make.asked == [f"u{i}" for i in range(4, 10)]
    write(work_dir / "b")
    assert content(work_dir / "a") == content(work_dir / "b")


def test_a_killed_writer_leaves_nothing_half_and_goes_on(work_dir):
    script = textwrap.dedent("""
        import os, sys
        from tests.data.test_records import items, to_records, write

        def dying(part):
            for i, made in enumerate(to_records(part)):
                if made.id == "u6":
                    os._exit(9)
                yield made

        write(sys.argv[1], make=dying)
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(work_dir / "a")], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    assert len(glob.glob(str(work_dir / "a" / ".*.tmp"))) == 1  # where it died
    with pytest.raises(UserError, match="has no manifest.json, so it is no finished record set"):
        records.open_records(str(work_dir / "a"))
    make = Counting()
    write(work_dir / "a", make=make)
    assert make.asked == [f"u{i}" for i in range(4, 10)]
    write(work_dir / "b")
    assert content(work_dir / "a") == content(work_dir / "b")


@pytest.mark.parametrize("stage", ["shard without index", "index of another shard", "torn index", "no manifest"])
def test_any_stage_of_a_stop_ends_in_the_same_set(work_dir, stage):
    write(work_dir / "b")
    write(work_dir / "a")
    os.remove(work_dir / "a" / "manifest.json")
    index = work_dir / "a" / "records-00001-of-00003.index.npz"
    if stage == "shard without index":
        os.remove(index)
    elif stage == "index of another shard":
        index.write_bytes((work_dir / "a" / "records-00000-of-00003.index.npz").read_bytes())
    elif stage == "torn index":
        index.write_bytes(index.read_bytes()[:200])
    make = Counting()
    write(work_dir / "a", make=make)
    assert make.asked == ([] if stage == "no manifest" else ["u4", "u5", "u6", "u7"])
    assert content(work_dir / "a") == content(work_dir / "b")


@pytest.mark.parametrize("victim", ["records-00001-of-00003.tfrecord", "manifest.json", "joint.npz"])
def test_a_deleted_file_of_a_finished_set_is_made_again(work_dir, victim):
    write_factored(work_dir / "b")
    write_factored(work_dir / "a")
    os.remove(work_dir / "a" / victim)
    write_factored(work_dir / "a")
    assert content(work_dir / "a") == content(work_dir / "b")


def test_a_full_disk_is_an_os_error_and_leaves_no_half_shard(work_dir, monkeypatch):
    class FullDisk(tf.io.TFRecordWriter):
        def write(self, payload):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    write(work_dir / "b")
    with monkeypatch.context() as patch:
        patch.setattr(tf.io, "TFRecordWriter", FullDisk)
        with pytest.raises(OSError, match="No space left on device") as caught:
            write(work_dir / "a")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.endswith("records-00000-of-00003.tfrecord")
    assert os.listdir(work_dir / "a") == ["plan.json"]
    write(work_dir / "a")
    assert content(work_dir / "a") == content(work_dir / "b")


def test_tensorflow_reports_a_real_full_device_as_expected():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with tf.io.TFRecordWriter("/dev/full") as writer:
        with pytest.raises(OSError) as caught, shards._disk_errors("/dev/full"):
            writer.write(b"x" * 10)
            writer.flush()
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("victim", ["index.npz", "manifest.json"])
def test_a_disk_that_fills_at_a_small_file_leaves_it_out(work_dir, monkeypatch, victim):
    flush = shards._flush_to_disk

    def failing(path):
        if victim in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_flush_to_disk", failing)
        with pytest.raises(OSError, match="No space left"):
            write(work_dir)
    assert not [name for name in os.listdir(work_dir) if victim in name]
    assert write(work_dir).num_utterances == 10


def test_bytes_lost_without_an_error_are_noticed(work_dir, monkeypatch):
    class Forgetful(tf.io.TFRecordWriter):
        def write(self, payload):
            super().write(payload[:-1])

    monkeypatch.setattr(tf.io, "TFRecordWriter", Forgetful)
    with pytest.raises(OSError, match="fewer bytes on disk than written"):
        write(work_dir)
    assert os.listdir(work_dir) == ["plan.json"]


def test_strays_of_dead_writers_are_removed(work_dir):
    stray = work_dir / ".records-00000-of-00003.tfrecord.4711.tmp"
    stray.write_bytes(b"half")
    write(work_dir)
    assert not stray.exists()


def test_two_writers_do_not_share_a_folder(work_dir):
    handle = os.open(work_dir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"another process is writing {work_dir}: wait for it"):
            write(work_dir)
    finally:
        os.close(handle)
    write(work_dir)


def test_a_file_system_without_locks_will_do(work_dir, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert write(work_dir).num_utterances == 10


def test_following_the_advice_renews_the_damaged_shard_alone(work_dir):
    write(work_dir / "b")
    record_set = write(work_dir / "a")
    flip(work_dir / "a" / "records-00001-of-00003.tfrecord", 50)
    with pytest.raises(UserError, match="tfrecord is damaged: .*; delete it and manifest.json beside it, and run"):
        record_set.verify()
    os.remove(work_dir / "a" / "records-00001-of-00003.tfrecord")
    os.remove(work_dir / "a" / "manifest.json")
    make = Counting()
    write(work_dir / "a", make=make)
    assert make.asked == ["u4", "u5", "u6", "u7"]
    assert content(work_dir / "a") == content(work_dir / "b")


def test_measured_figures_may_differ_from_run_to_run(work_dir):
    with pytest.raises(RuntimeError):
        write(work_dir, make=Counting(fail_at="u9"), measured={"codec_kl": 0.1})
    assert write(work_dir, measured={"codec_kl": 0.2}).manifest["codec_kl"] == 0.2
    assert write(work_dir, measured={"codec_kl": 0.3}).manifest["codec_kl"] == 0.2


# -- what is refused --


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_hash": "b" * 64}, f"tokenizer_hash is '{'a' * 64}' there and '{'b' * 64}' now"),
        ({"source": "other"}, "source is 'test' there and 'other' now"),
        ({"more": 1}, "more is None there and 1 now"),
        ({"records_per_shard": 5}, "records_per_shard is 4 there and 5 now"),
        ({"part": items(9)}, "items is 10 there and 9 now; items_sha256 is"),
        ({"part": items(11)[1:]}, "items_sha256 is"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_begun_with_other_settings_is_refused(work_dir, changes, message, finished):
    if finished:
        write(work_dir)
    else:
        with pytest.raises(RuntimeError):
            write(work_dir, make=Counting(fail_at="u9"))
    before = content(work_dir)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        write(work_dir, **changes)
    assert str(caught.value).endswith(f"delete {work_dir} or choose another folder")
    assert content(work_dir) == before


def test_another_teacher_is_refused(work_dir):
    write_factored(work_dir)
    with pytest.raises(UserError, match="joint_sha256 is"):
        write(
            work_dir,
            make=lambda part: to_records(part, "factored"),
            joint=(JOINT[0] + 1, JOINT[1]),
            targets=dataclasses.asdict(spec()),
        )


def test_shards_of_unknown_origin_are_refused(work_dir):
    write(work_dir)
    os.remove(work_dir / "plan.json")
    with pytest.raises(UserError, match=f"{work_dir} holds manifest.json but no plan.json: delete {work_dir}"):
        write(work_dir)


def test_nothing_to_write_is_refused(work_dir):
    with pytest.raises(UserError, match="no utterances to write into .*: check the corpus and the limits on length"):
        write(work_dir, part=[])


def test_two_items_of_one_id_are_refused(work_dir):
    with pytest.raises(UserError, match="two utterances have the id 'u1': remove one"):
        write(work_dir, part=[*items(3), Item("u1")])


def test_more_records_than_items_are_refused(work_dir):
    with pytest.raises(ValueError, match="more than 4 records came from 4 items: 'u0' is one too many"):
        write(work_dir, make=lambda part: [*to_records(part), *to_records(part)])
    assert os.listdir(work_dir) == ["plan.json"]


def test_a_record_that_does_not_fit_the_set_is_refused(work_dir):
    with pytest.raises(ValueError, match=r"carries \['encoded', 'predicted'\], its set stores \[\]"):
        write(work_dir, make=lambda part: to_records(part, "factored"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"records_per_shard": 0}, "records_per_shard is 0, must be at least 1"),
        ({"seconds": 3}, "the manifest may not set seconds"),
        ({"measured": {"skipped": 3, "source": ""}}, "the manifest may not set skipped, source"),
        ({"joint": JOINT}, "codec factored needs the joint's kernel and bias, and nothing else has them"),
        ({"targets": dataclasses.asdict(spec())}, "codec factored needs the joint's kernel and bias"),
        ({"targets": dataclasses.asdict(spec(width=4)), "joint": JOINT}, r"are \(\(3, 5\), \(5,\)\), the targets need"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(work_dir, arguments, message):
    with pytest.raises(ValueError, match=message):
        write(work_dir, **arguments)


@pytest.mark.parametrize("key", ["tokenizer_hash", "sample_rate", "targets"])
def test_a_manifest_says_the_essential(work_dir, key):
    manifest = {name: value for name, value in MANIFEST.items() if name != key}
    with pytest.raises(ValueError, match=f"the manifest lacks '{key}'"):
        records.write_records(str(work_dir), items(), to_records, manifest=manifest, records_per_shard=4)


# -- opening, and damage --


def test_features_take_the_place_of_the_audio(work_dir):
    made = [dataclasses.replace(r, samples=np.tile(r.samples, 9)) for r in to_records(items())]
    plain = write(work_dir / "audio", make=lambda part: (made[int(item.id[1:])] for item in part))
    described = stored.describe("uint16")
    record_set = write(work_dir / "features", make=lambda part: (made[int(i.id[1:])] for i in part), features=described)
    assert (plain.features_dtype, record_set.features_dtype) == (None, "uint16")
    assert "features" not in plain.manifest and plain.manifest["schema_version"] == 1
    assert record_set.manifest["features"] == described and record_set.manifest["schema_version"] == 2
    np.testing.assert_array_equal(record_set.index.num_samples, plain.index.num_samples)
    for i, original in enumerate(made):
        parsed = schema.parse_record(tf.constant(read_at(record_set, i)), None, "uint16")
        assert parsed["samples"].shape == [0]
        np.testing.assert_array_equal(parsed["labels"], original.labels)
        quantised = stored.quantise(original.samples, "uint16")
        assert len(quantised) > 0
        np.testing.assert_array_equal(tf.reshape(parsed["features"], [-1, 80]), quantised)
        assert schema.parse_record(tf.constant(read_at(plain, i)), None, "uint16")["features"].shape == [0]


def test_who_wants_to_hear_a_set_of_features_is_told(work_dir):
    record_set = write(work_dir, features=stored.describe("uint8"))
    with pytest.raises(UserError, match="holds features in place of audio, so it can be trained on and no more: leave"):
        next(record_set.read())


def test_features_of_another_front_end_are_refused_by_reader_and_writer(work_dir, monkeypatch):
    write(work_dir, features=stored.describe("uint8"))
    monkeypatch.setitem(stored.FRONT_END, "log_floor", 1e-7)
    with pytest.raises(UserError, match="another front end .log_floor is 1e-05 there and 1e-07 here.: delete it"):
        records.open_records(str(work_dir))
    with pytest.raises(UserError, match="was begun with other settings .features is"):
        write(work_dir, features=stored.describe("uint8"))


def test_labels_of_another_tokenizer_are_refused(work_dir):
    write(work_dir)
    assert records.open_records(str(work_dir), tokenizer_hash="a" * 64).num_utterances == 10
    with pytest.raises(UserError, match="was made with tokenizer aaaaaaaaaaaa, not bbbbbbbbbbbb: use the tokenizer"):
        records.open_records(str(work_dir), tokenizer_hash="b" * 64)


def test_unlabelled_audio_fits_any_tokenizer(work_dir):
    write(work_dir, tokenizer_hash=None)
    assert records.open_records(str(work_dir), tokenizer_hash="b" * 64).num_utterances == 10


def test_an_absent_folder_is_refused(work_dir):
    with pytest.raises(UserError, match="absent has no manifest.json, so it is no finished record set: run"):
        records.open_records(str(work_dir / "absent"))


def test_another_schema_version_is_refused_by_reader_and_writer(work_dir, monkeypatch):
    write(work_dir)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    with pytest.raises(UserError, match="manifest.json has schema version 1, this program reads 2: delete .* again"):
        records.open_records(str(work_dir))
    with pytest.raises(UserError, match="schema_version is 1 there and 2 now"):
        write(work_dir)


def test_a_flipped_byte_anywhere_in_the_manifest_is_noticed(work_dir):
    write(work_dir)
    path = work_dir / "manifest.json"
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        flip(path, position)
        with pytest.raises(UserError, match="manifest.json (is damaged: it|has schema version)|is damaged"):
            records.open_records(str(work_dir))
        path.write_bytes(original)
    assert records.open_records(str(work_dir)).num_utterances == 10


@pytest.mark.parametrize("text", ["[]", "null", "", '{"schema_version": 1}', "\xff"])
def test_a_manifest_that_is_none_is_refused(work_dir, text):
    write(work_dir)
    (work_dir / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="manifest.json is damaged: it.*; delete it, and run the command"):
        records.open_records(str(work_dir))


def test_an_edited_manifest_is_refused(work_dir):
    write(work_dir)
    path = work_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["utterances"] += 1
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    with pytest.raises(UserError, match="manifest.json is damaged: its sha256 does not fit its content"):
        records.open_records(str(work_dir))


@pytest.mark.parametrize("name", ["records-00001-of-00003.index.npz", "joint.npz"])
def test_a_flipped_byte_in_index_or_joint_is_noticed(work_dir, name):
    write_factored(work_dir)
    path = work_dir / name
    original = path.read_bytes()
    for position in np.linspace(0, len(original) - 1, 40).astype(int):
        flip(path, position)
        with pytest.raises(
            UserError, match=f"{name} is damaged: its sha256 differs from the manifest's; delete it and"
        ):
            records.open_records(str(work_dir))
        path.write_bytes(original)
    records.open_records(str(work_dir))


@pytest.mark.parametrize("name", ["records-00001-of-00003.index.npz", "joint.npz", "records-00001-of-00003.tfrecord"])
def test_a_missing_file_is_named(work_dir, name):
    write_factored(work_dir)
    os.remove(work_dir / name)
    with pytest.raises(UserError, match=f"{name} is missing: delete manifest.json beside it, and run"):
        records.open_records(str(work_dir))


@pytest.mark.parametrize("change", [-1, 1, -100_000])
def test_a_shard_of_another_size_is_refused(work_dir, change):
    path = work_dir / "records-00001-of-00003.tfrecord"
    write(work_dir)
    size = path.stat().st_size
    wrong = max(0, size + change)
    os.truncate(path, wrong)
    message = f"{path} is damaged: it has {wrong} bytes, the manifest says {size}; delete it and manifest.json"
    with pytest.raises(UserError, match=re.escape(message)):
        records.open_records(str(work_dir))


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
    with pytest.raises(UserError, match="is damaged: it holds 3 records, the manifest says 4"):
        list(record_set.read())
    os.remove(path)
    with pytest.raises(UserError, match="tfrecord is missing: delete manifest.json beside it, and run"):
        list(record_set.read())
    with pytest.raises(UserError, match="tfrecord is missing: delete manifest.json beside it, and run"):
        record_set.verify()


def test_records_follow_the_documented_framing(work_dir):
    """Length, its checksum, payload, its checksum: what makes offsets known while writing."""
    record_set = write(work_dir)
    data = (work_dir / "records-00000-of-00003.tfrecord").read_bytes()
    for i in range(4):
        start = record_set.index.offset[i]
        length = int.from_bytes(data[start : start + 8], "little")
        assert length + 16 == record_set.index.num_bytes[i]
        assert schema.decode_record(data[start + 12 : start + 12 + length]).id == f"u{i}"
    assert start + length + 16 == len(data)
