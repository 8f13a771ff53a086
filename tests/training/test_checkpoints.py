import os

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training.checkpoints import TrainingCheckpoint
from tf_rnnt_kd.training.step import ReducedAdamW

FEATURES = np.random.default_rng(0).standard_normal([1, 16, 80]).astype(np.float32)


class Run:
    """A model with dropout, an optimizer with moments, and their checkpoint."""

    def __init__(self, folder, seed=0, **model):
        self.model = tiny.transducer(seed=seed, **{"dropout": 0.3, **model})
        self.optimizer = ReducedAdamW(1e-3)
        self.optimizer.build(self.model.trainable_variables)
        self.checkpoint = TrainingCheckpoint(str(folder), self.model, self.optimizer)

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
    return run, states


def data_file(folder, step):
    return next(folder / name for name in os.listdir(folder) if name.startswith(f"ckpt-{step}.data"))


def test_a_fresh_folder_is_at_step_0(work_dir):
    assert Run(work_dir).checkpoint.restore() == 0


def test_everything_that_decides_the_next_step_comes_back_exactly(saved, work_dir):
    run, states = saved
    other = Run(work_dir, seed=7)
    assert any(np.any(a != b) for a, b in zip(other.state(), states[6], strict=True))
    assert other.checkpoint.restore() == 6
    assert float(other.checkpoint.seconds.numpy()) == 9.0
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


def test_two_checkpoints_are_kept(saved, work_dir):
    saved[0].checkpoint.save(9, 0.0)
    steps = sorted(name for name in os.listdir(work_dir) if name.endswith(".index"))
    assert steps == ["ckpt-6.index", "ckpt-9.index"]


@pytest.mark.parametrize("model", [{"joint_width": 13}, {"num_blocks": 2}, {"width": 20}])
def test_another_architecture_is_refused_by_name_and_left_as_it_is(saved, work_dir, model):
    other = Run(work_dir, **model)
    before = other.state()
    with pytest.raises(UserError, match="is of another architecture: .* there, .* here; delete the folder or restore"):
        other.checkpoint.restore()
    assert_same(other.state(), before)


def test_a_model_with_less_at_its_end_is_refused_by_number(saved, work_dir):
    run = saved[0]
    layout = run.checkpoint._layout
    run.checkpoint._layout = layout[:-1]
    with pytest.raises(UserError, match=rf"{len(layout)} variables there, {len(layout) - 1} here"):
        run.checkpoint.restore()


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


DAMAGES = {
    "flipped data": lambda folder, step: flip(data_file(folder, step), 4_321),
    "short data": lambda folder, step: os.truncate(data_file(folder, step), 5_000),
    "empty data": lambda folder, step: os.truncate(data_file(folder, step), 0),
    "no data": lambda folder, step: data_file(folder, step).unlink(),
    "flipped index": lambda folder, step: flip(folder / f"ckpt-{step}.index", 100),
    "short index": lambda folder, step: os.truncate(folder / f"ckpt-{step}.index", 500),
    "empty index": lambda folder, step: os.truncate(folder / f"ckpt-{step}.index", 0),
    "no index": lambda folder, step: (folder / f"ckpt-{step}.index").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before(saved, work_dir, damage, capsys):
    DAMAGES[damage](work_dir, 6)
    other = Run(work_dir, seed=7)
    assert other.checkpoint.restore() == 3
    assert_same(other.state(), saved[1][3])
    if damage != "no index":  # without it TensorFlow does not list the checkpoint at all
        assert "ckpt-6 is damaged and left aside" in capsys.readouterr().out


def test_training_goes_on_from_a_fallback_and_writes_the_newest_anew(saved, work_dir):
    DAMAGES["flipped data"](work_dir, 6)
    other = Run(work_dir, seed=7)
    other.checkpoint.restore()
    other.advance(6)
    other.checkpoint.save(6, 9.0)
    third = Run(work_dir, seed=8)
    assert third.checkpoint.restore() == 6
    assert_same(third.state(), saved[1][6])


def test_when_all_are_damaged_the_folder_is_named(saved, work_dir):
    for step in (3, 6):
        DAMAGES["flipped data"](work_dir, step)
    with pytest.raises(UserError, match="no checkpoint in .* can be read: delete the folder"):
        Run(work_dir, seed=7).checkpoint.restore()


@pytest.mark.parametrize("content", ["", "{", "[[1"])
def test_a_damaged_layout_is_refused_by_name(saved, work_dir, content):
    (work_dir / "layout.json").write_text(content)
    with pytest.raises(UserError, match=r"layout\.json"):
        Run(work_dir).checkpoint.restore()


def test_a_missing_layout_is_refused_by_name(saved, work_dir):
    (work_dir / "layout.json").unlink()
    with pytest.raises(UserError, match=r"layout\.json"):
        Run(work_dir).checkpoint.restore()
