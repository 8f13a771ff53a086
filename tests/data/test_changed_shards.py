"""Shards that change while a training reads them, or are whole and in the wrong place."""

import dataclasses
import os
import shutil

import pytest
import tensorflow as tf

from tests.data.batches import SMALL, plan, read, write_set
from tests.data.record_sets import Item, items, to_records, write
from tests.workers import input_server
from tf_rnnt_kd.data.pipeline import named_shards
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.data.shards import index_path, is_finished
from tf_rnnt_kd.errors import UserError

FIRST, SECOND = "records-00000-of-00003.tfrecord", "records-00001-of-00003.tfrecord"


def read_all(records, **more):
    """Batches that need every record of the set."""
    with named_shards([records]):
        return read([records], plan([records], num_steps=9, buckets=SMALL), with_teacher=False, **more)


def cut_at_a_border(shard, index):
    os.truncate(shard, index.offset[3])


def cut_to_nothing(shard, index):
    os.truncate(shard, 0)


def cut_inside_a_record(shard, index):
    os.truncate(shard, index.offset[3] + 50)


def put_another_in_its_place(shard, index):
    other = write_set(shard.parent.parent / "other", seed=8)
    assert os.path.getsize(other.shards[0]) == shard.stat().st_size
    shutil.copy(other.shards[0], shard)


def exchange_records(shard, index):
    """The same records in another order."""
    content = shard.read_bytes()
    frames = [content[a : a + n] for a, n in zip(index.offset[:4], index.num_bytes[:4], strict=True)]
    shard.write_bytes(b"".join(reversed(frames)))


def remove(shard, index):
    shard.unlink()


CHANGES = [cut_at_a_border, cut_to_nothing, cut_inside_a_record, put_another_in_its_place, exchange_records, remove]


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_under_a_training_is_an_error_of_that_shard(work_dir, change):
    records = write_set(work_dir / "set")
    assert len(read_all(records)) == 9
    change(work_dir / "set" / FIRST, records.index)
    with pytest.raises(UserError, match=rf"{FIRST} is (damaged|missing): .* and run the command that wrote it again"):
        read_all(records)
    with pytest.raises(UserError, match=rf"{FIRST} is (damaged|missing)"):
        list(records.read())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cut_to_nothing, FIRST),
        (put_another_in_its_place, FIRST),
        (cut_inside_a_record, "a shard of .*"),
        (remove, "a shard of"),
    ],
)
def test_a_shard_that_is_whole_again_when_it_is_looked_at_is_one_line_all_the_same(
    work_dir, monkeypatch, change, named
):
    records = write_set(work_dir / "set")
    change(work_dir / "set" / FIRST, records.index)
    monkeypatch.setattr(type(records), "verify", lambda self: None)
    with pytest.raises(UserError, match=f"{named}.* changed while it was read: start the same command again"):
        read_all(records)


def test_an_input_server_tells_of_a_changed_shard_too(work_dir):
    records = write_set(work_dir / "set")
    cut_at_a_border(work_dir / "set" / FIRST, records.index)
    with input_server() as address, pytest.raises(UserError, match=f"{FIRST} is damaged: its sha256 differs"):
        read_all(records, servers=[address])


def test_another_error_stays_what_it_is(work_dir):
    records = write_set(work_dir / "set")
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"), named_shards([records]):
        raise tf.errors.InvalidArgumentError(None, None, "mine")


def exchange(one, other):
    spare = one.with_suffix(".spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


@pytest.fixture
def alike(work_dir):
    """The folder of a set of two shards of the same size."""

    def one_a_shard(part):
        (record,) = to_records([Item("u2")])
        yield dataclasses.replace(record, id=part[0].id, samples=record.samples + int(part[0].id[1:]))

    write(work_dir, items(2), one_a_shard, records_per_shard=1)
    first, second = (work_dir / f"records-0000{i}-of-00002.tfrecord" for i in range(2))
    assert first.stat().st_size == second.stat().st_size
    return work_dir, first, second


def test_exchanged_shards_of_equal_size_are_refused(alike):
    folder, first, second = alike
    exchange(first, second)
    with pytest.raises(UserError, match="00000-of-00002.tfrecord is damaged: it is another shard of the same size"):
        open_records(str(folder))


def test_a_shard_copied_over_another_is_refused(alike):
    folder, first, second = alike
    shutil.copy(first, second)
    with pytest.raises(UserError, match="00001-of-00002.tfrecord is damaged: it is another shard of the same size"):
        open_records(str(folder))


def test_shards_exchanged_with_their_indices_are_refused_by_reader_and_writer(alike):
    folder, first, second = alike
    exchange(first, second)
    exchange(*(folder / os.path.basename(index_path(str(path))) for path in (first, second)))
    with pytest.raises(UserError, match="00000-of-00002.index.npz is damaged: its sha256 is not the one"):
        open_records(str(folder))
    assert not is_finished(str(first)) and not is_finished(str(second))
