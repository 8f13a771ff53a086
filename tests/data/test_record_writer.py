import dataclasses
import errno
import fcntl
import glob
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from tests.data.record_sets import (
    JOINT,
    MANIFEST,
    Item,
    content,
    flip,
    items,
    read_at,
    to_records,
    write,
    write_factored,
)
from tests.data.test_schema import spec
from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored

# -- what is written --


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


def test_features_take_the_place_of_the_audio(work_dir):
    made = [dataclasses.replace(r, samples=np.tile(r.samples, 9)) for r in to_records(items())]
    plain = write(work_dir / "audio", make=lambda part: (made[int(item.id[1:])] for item in part))
    described = stored.describe("uint16")
    record_set = write(work_dir / "features", make=lambda part: (made[int(i.id[1:])] for i in part), features=described)
    assert (plain.features_dtype, record_set.features_dtype) == (None, "uint16")
    assert "features" not in plain.manifest
    assert record_set.manifest["features"] == described
    np.testing.assert_array_equal(record_set.index.num_samples, plain.index.num_samples)
    for i, original in enumerate(made):
        parsed = schema.parse_record(tf.constant(read_at(record_set, i)), None, "uint16")
        assert parsed["samples"].shape == [0]
        np.testing.assert_array_equal(parsed["labels"], original.labels)
        quantised = stored.quantise(original.samples, "uint16")
        assert len(quantised) > 0
        np.testing.assert_array_equal(tf.reshape(parsed["features"], [-1, 80]), quantised)
        assert schema.parse_record(tf.constant(read_at(plain, i)), None, "uint16")["features"].shape == [0]


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
        from tests.data.record_sets import items, to_records, write

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
        open_records(str(work_dir / "a"))
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
        write_records(str(work_dir), items(), to_records, manifest=manifest, records_per_shard=4)
