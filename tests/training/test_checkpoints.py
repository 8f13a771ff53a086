import errno
import json
import os
import pathlib
import re
import resource
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training import checkpoint_files, checkpoints
from tf_rnnt_kd.training.checkpoint_files import Damaged, find_steps, verify_checkpoint
from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint
from tf_rnnt_kd.training.step import ReducedAdamW

FEATURES = np.random.default_rng(0).standard_normal([1, 16, 80]).astype(np.float32)


class Run:
    """A model with dropout, an optimizer with moments, and their checkpoint."""

    def __init__(self, folder, seed=0, keep=2, **model):
        self.model = tiny.transducer(seed=seed, **{"dropout": 0.3, **model})
        self.optimizer = ReducedAdamW(1e-3)
        self.optimizer.build(self.model.trainable_variables)
        self.checkpoint = TrainingCheckpoint(str(folder), self.model, self.optimizer, keep=keep)

    def advance(self, seed):
        """A step with random gradients, and one draw of every dropout."""
        rng = np.random.default_rng(seed)
        gradients = [tf.constant(rng.standard_normal(v.shape), tf.float32) for v in self.model.trainable_variables]
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return self.noisy()

    def noisy(self):
        outputs = self.model(FEATURES, np.array([16]), np.array([[1, 2]], np.int32), training=True)
        return [output.numpy() for output in outputs]

    def state(self):
        return [v.numpy() for v in (*self.model.variables, *self.optimizer.variables)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def saved(work_dir):
    """A run with checkpoints of steps 3 and 6, and its state at both."""
    run, states = Run(work_dir), {}
    for step in (3, 6):
        run.advance(step)
        run.checkpoint.save(step, step * 1.5)
        states[step] = run.state()
    run.checkpoint.wait()
    return run, states


def data_file(folder, step):
    return folder / f"ckpt-{step}.data"


def header_file(folder, step):
    return folder / f"ckpt-{step}.json"


def test_a_fresh_folder_is_at_step_0(work_dir):
    assert Run(work_dir).checkpoint.restore() == 0


def test_everything_that_decides_the_next_step_comes_back_exactly(saved, work_dir):
    run, states = saved
    other = Run(work_dir, seed=7)
    assert any(np.any(a != b) for a, b in zip(other.state(), states[6], strict=True))
    assert other.checkpoint.restore() == 6
    assert other.checkpoint.seconds == 9.0
    assert_same(other.state(), states[6])
    # Also the next draw of every dropout, and the step after.
    assert_same(other.advance(1), run.advance(1))
    assert_same(other.state(), run.state())


def test_dropout_seeds_and_moments_are_part_of_the_state(saved):
    run, states = saved
    names = [v.path for v in (*run.model.variables, *run.optimizer.variables)]
    seeds = [i for i, name in enumerate(names) if "seed_generator" in name]
    moments = [i for i, name in enumerate(names) if "momentum" in name or "velocity" in name]
    assert len(seeds) >= 5 and len(moments) == 2 * len(run.model.trainable_variables)
    assert all(np.any(states[3][i] != states[6][i]) for i in moments)
    assert any(np.any(states[3][i] != states[6][i]) for i in seeds)


def save_all(run, wers):
    """Steps 1, 2, … with these word error rates; None where the step was not evaluated."""
    for step, wer in enumerate(wers, 1):
        run.advance(step)
        run.checkpoint.save(step, 0.0, wer)
    run.checkpoint.wait()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_of_the_newest_checkpoints_are_kept(work_dir, keep):
    save_all(Run(work_dir, keep=keep), [None] * 5)
    assert find_steps(str(work_dir)) == list(range(6 - keep, 6))
    assert len(os.listdir(work_dir)) == 2 * keep


def test_the_best_on_development_stays_besides_the_newest_through_restarts(work_dir):
    run = Run(work_dir, keep=1)
    save_all(run, [30.0, 20.0, None, 20.0, 25.0])
    assert find_steps(str(work_dir)) == [2, 5]  # of two that are equal the first
    other = Run(work_dir, seed=7, keep=1)
    assert other.checkpoint.restore() == 5
    assert [other.checkpoint.is_best(wer) for wer in (None, 20.0, 19.9)] == [False, False, True]
    other.checkpoint.save(6, 0.0, 21.0)
    other.checkpoint.wait()
    assert find_steps(str(work_dir)) == [2, 6]
    other.checkpoint.save(7, 0.0, 10.0)
    assert other.checkpoint.restore_best() == (10.0, 7)
    assert find_steps(str(work_dir)) == [7]


def test_the_best_comes_back_exactly(work_dir):
    run = Run(work_dir)
    run.advance(1)
    run.checkpoint.save(1, 1.0, 5.0)
    best = run.state()
    for step in (2, 3):
        run.advance(step)
        run.checkpoint.save(step, 2.0, 6.0)
    assert run.checkpoint.restore_best() == (5.0, 1)
    assert_same(run.state(), best)


def test_a_best_that_is_missing_or_damaged_is_refused_by_name(saved, work_dir):
    run = saved[0]
    with pytest.raises(UserError, match="no checkpoint in .* was evaluated"):
        run.checkpoint.restore_best()
    run.checkpoint.save(9, 0.0, 5.0)
    run.checkpoint.wait()
    flip(data_file(work_dir, 9), 77)
    with pytest.raises(UserError, match=r"ckpt-9\.data, the best, is damaged \(the sha256 of .* does not fit\)"):
        run.checkpoint.restore_best()


def test_what_is_saved_is_the_state_at_the_call_while_training_goes_on(work_dir, monkeypatch):
    run, may_write = Run(work_dir), threading.Event()

    def write_late(*args, **about):
        assert may_write.wait(30)
        checkpoint_files.write_checkpoint(*args, **about)

    monkeypatch.setattr(checkpoints, "write_checkpoint", write_late)
    run.advance(1)
    run.checkpoint.save(1, 0.0)
    state = run.state()
    run.advance(2)
    assert any(np.any(a != b) for a, b in zip(run.state(), state, strict=True)) and not find_steps(str(work_dir))
    may_write.set()
    run.checkpoint.wait()
    other = Run(work_dir, seed=7)
    assert other.checkpoint.restore() == 1
    assert_same(other.state(), state)


def test_a_run_that_ends_by_an_error_still_ends_its_write(work_dir):
    run = Run(work_dir)
    with pytest.raises(ZeroDivisionError), run.checkpoint:
        run.checkpoint.save(1, 0.0)
        raise ZeroDivisionError
    assert find_steps(str(work_dir)) == [1]


def fail(error):
    def failing(*_):
        raise error

    return failing


def test_a_full_disk_is_told_at_the_next_save_and_nothing_is_lost(saved, work_dir, monkeypatch):
    run, states = saved
    before = sorted(os.listdir(work_dir))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        run.checkpoint.save(9, 0.0)
        with pytest.raises(UserError, match=r"no checkpoint of step 9 in .*: No space left on device; mend that"):
            run.checkpoint.save(12, 0.0)
        with pytest.raises(UserError, match="No space left"), run.checkpoint:
            pass
    assert sorted(os.listdir(work_dir)) == before
    other = Run(work_dir, seed=7)
    assert other.checkpoint.restore() == 6
    assert_same(other.state(), states[6])


def test_a_file_that_may_not_grow_is_one_line_and_nothing_is_lost(saved, work_dir):
    before, limits = sorted(os.listdir(work_dir)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        saved[0].checkpoint.save(9, 0.0)
        with pytest.raises(UserError, match="no checkpoint of step 9 in .*: File too large"):
            saved[0].checkpoint.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(work_dir)) == before and Run(work_dir, seed=7).checkpoint.restore() == 6


@pytest.mark.parametrize("part", ["data", "json"])
def test_a_disk_that_garbles_is_found_when_the_checkpoint_is_written(saved, work_dir, monkeypatch, part):
    before, fsync, garbled = sorted(os.listdir(work_dir)), os.fsync, []

    def garble(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if f".{part}." in path and not garbled:
            flip(pathlib.Path(path), 1_000)
            garbled.append(path)
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", garble)
        saved[0].checkpoint.save(9, 0.0)
        with pytest.raises(UserError, match=r"garbled the checkpoint of step 9 \(.*; earlier checkpoints are whole"):
            saved[0].checkpoint.wait()
    assert sorted(os.listdir(work_dir)) == before and Run(work_dir, seed=7).checkpoint.restore() == 6


@pytest.mark.parametrize("model", [{"joint_width": 13}, {"num_blocks": 2}, {"width": 20}])
def test_another_architecture_is_refused_by_name_and_left_as_it_is(saved, work_dir, model):
    other = Run(work_dir, **model)
    before = other.state()
    with pytest.raises(UserError, match="is of another architecture: .* there, .* here; delete the folder or restore"):
        other.checkpoint.restore()
    assert_same(other.state(), before)


def test_an_optimizer_with_less_at_its_end_is_refused_by_number(saved):
    run = saved[0]
    count = len(run.checkpoint._names)
    run.checkpoint._names, run.checkpoint._variables = run.checkpoint._names[:-1], run.checkpoint._variables[:-1]
    with pytest.raises(UserError, match=rf"{count} variables there, {count - 1} here"):
        run.checkpoint.restore()


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


DAMAGES = {
    "flipped data": lambda folder, step: flip(data_file(folder, step), 4_321),
    "short data": lambda folder, step: os.truncate(data_file(folder, step), 5_000),
    "long data": lambda folder, step: os.truncate(data_file(folder, step), 10**6),
    "empty data": lambda folder, step: os.truncate(data_file(folder, step), 0),
    "no data": lambda folder, step: data_file(folder, step).unlink(),
    "flipped header": lambda folder, step: flip(header_file(folder, step), 100),
    "short header": lambda folder, step: os.truncate(header_file(folder, step), 500),
    "empty header": lambda folder, step: os.truncate(header_file(folder, step), 0),
    "no header": lambda folder, step: header_file(folder, step).unlink(),
}


def test_no_flipped_bit_passes(saved, work_dir):
    verify_checkpoint(str(work_dir), 6)
    rng = np.random.default_rng(3)
    for path, count in ((data_file(work_dir, 6), 400), (header_file(work_dir, 6), 1_000)):
        content = path.read_bytes()
        positions = {0, len(content) - 1, *rng.integers(0, len(content), count).tolist()}
        for position in positions:
            changed = bytearray(content)
            changed[position] ^= 1 << rng.integers(8)
            path.write_bytes(changed)
            with pytest.raises(Damaged):
                verify_checkpoint(str(work_dir), 6)
        path.write_bytes(content)
    verify_checkpoint(str(work_dir), 6)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(saved, work_dir, damage, capsys):
    DAMAGES[damage](work_dir, 6)
    other = Run(work_dir, seed=7)
    assert other.checkpoint.restore() == 3
    assert_same(other.state(), saved[1][3])
    if damage != "no header":  # without it there is no checkpoint
        assert re.search(r"ckpt-6.data is damaged \(.*\) and left aside\n", capsys.readouterr().out)


def test_training_goes_on_from_a_fallback_and_writes_the_newest_anew(saved, work_dir):
    DAMAGES["flipped data"](work_dir, 6)
    other = Run(work_dir, seed=7)
    other.checkpoint.restore()
    other.advance(6)
    other.checkpoint.save(6, 9.0)
    other.checkpoint.wait()
    third = Run(work_dir, seed=8)
    assert third.checkpoint.restore() == 6
    assert_same(third.state(), saved[1][6])


def test_when_all_are_damaged_the_folder_is_named(saved, work_dir):
    for step in (3, 6):
        DAMAGES["flipped data"](work_dir, step)
    with pytest.raises(UserError, match="no checkpoint in .* can be read: delete the folder"):
        Run(work_dir, seed=7).checkpoint.restore()


def test_what_a_killed_writer_left_is_removed(saved, work_dir):
    for step in (2, 9):  # killed while the old one was removed, and before the header of a new one
        shutil.copy(data_file(work_dir, 3), data_file(work_dir, step))
    shutil.copy(data_file(work_dir, 3), work_dir / ".ckpt-12.data.123.tmp")
    other = Run(work_dir, seed=7, keep=1)
    assert other.checkpoint.restore() == 6
    assert sorted(os.listdir(work_dir)) == ["ckpt-6.data", "ckpt-6.json"]  # killed before the rest was removed


def test_a_damaged_checkpoint_is_replaced(saved, work_dir):
    DAMAGES["flipped data"](work_dir, 6)
    other = Run(work_dir, seed=7)
    assert other.checkpoint.restore() == 3 and data_file(work_dir, 6).exists()
    for step in (4, 5):
        other.checkpoint.save(step, 0.0)
    other.checkpoint.wait()
    assert sorted(os.listdir(work_dir)) == ["ckpt-4.data", "ckpt-4.json", "ckpt-5.data", "ckpt-5.json"]


def test_a_checkpoint_under_the_name_of_another_step_is_left_aside(saved, work_dir, capsys):
    for name in (data_file, header_file):
        name(work_dir, 6).rename(name(work_dir, 20))
    other = Run(work_dir, seed=7)
    assert other.checkpoint.restore() == 3
    assert_same(other.state(), saved[1][3])
    assert "ckpt-20.data is damaged (it is the checkpoint of step 6 under another name)" in capsys.readouterr().out


def test_exchanged_checkpoints_are_refused(saved, work_dir):
    for name in (data_file, header_file):
        name(work_dir, 3).rename(work_dir / "spare")
        name(work_dir, 6).rename(name(work_dir, 3))
        (work_dir / "spare").rename(name(work_dir, 6))
    with pytest.raises(UserError, match="no checkpoint in .* can be read: delete the folder"):
        Run(work_dir, seed=7).checkpoint.restore()


@pytest.mark.parametrize("shape", [[2**40], [2**20, 2**20, 2**20]])
def test_a_tensor_that_says_to_be_larger_than_the_data_is_refused_before_it_is_read(saved, work_dir, shape):
    header = json.loads(header_file(work_dir, 6).read_text())
    header["tensors"][0][1] = shape
    del header["sha256"]
    header_file(work_dir, 6).write_bytes(files.dump_signed(header))
    with pytest.raises(Damaged, match=r"it has \d+ bytes of \d{13}"):
        verify_checkpoint(str(work_dir), 6)
