import errno
import os

import pytest
import tensorflow as tf

from tests.data.record_sets import content, write
from tf_rnnt_kd import files
from tf_rnnt_kd.data import schema, shards


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
    flush = files._flush_to_disk

    def failing(path):
        if victim in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush_to_disk", failing)
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
