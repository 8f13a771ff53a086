import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.data.batches import BUCKETS, SMALL, assert_equal_batches, members, plan, read, schedule_of, write_set
from tf_rnnt_kd.data.batching import make_schedule
from tf_rnnt_kd.data.pipeline import Augmentation, Share, common_targets, read_batches
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.features.log_mel import RANGE, log_mel, num_log_mel_frames


@pytest.mark.parametrize("codec", ["factored", "lattice"])
def test_batches_hold_what_the_schedule_says_and_padded_targets_arrive_intact(sets, codec):
    records = [*sets[None].read(), *sets[codec].read()]
    schedule = schedule_of(sets, codec)
    batches = read([sets[None], sets[codec]], schedule)
    assert len(batches) == 9
    for (k, rows), batch in zip(members(schedule), batches, strict=True):
        frames, labels = SMALL.num_frames(k), schedule.num_labels[k]
        assert batch.features.shape == (len(rows), 4 * frames, 80) and batch.labels.shape == (len(rows), labels)
        for i, row in enumerate(rows):
            assert_row(batch, i, records[row], frames, labels)


def assert_row(batch, i, record, frames, labels):
    u = len(record.labels)
    np.testing.assert_array_equal(batch.labels[i], np.pad(record.labels, (0, labels - u)))
    assert (batch.num_labels[i], batch.source[i]) == (u, record.source)
    assert batch.num_features[i] == num_log_mel_frames(len(record.samples))
    assert batch.teacher.weight[i] == record.source  # here every teacher's hypothesis has its targets
    for name, axes in (("encoded", (frames,)), ("predicted", (labels + 1,)), ("logits", (frames, labels + 1))):
        stored, read_back = getattr(record, name), getattr(batch.teacher, name)[i]
        if stored is None:
            assert not np.any(read_back)
            continue
        assert read_back.shape == (*axes, stored.shape[-1]) and read_back.dtype == stored.dtype
        padding = [(0, size - own) for size, own in zip(axes, stored.shape, strict=False)]
        np.testing.assert_array_equal(read_back, np.pad(stored, [*padding, (0, 0)]))


def test_features_equal_log_mel_of_the_samples_without_masks(sets):
    records = list(sets[None].read())
    schedule = plan([sets[None]], num_steps=6, buckets=SMALL)
    for (_, rows), batch in zip(members(schedule), read([sets[None]], schedule, with_teacher=False), strict=True):
        for i, row in enumerate(rows):
            expected = log_mel(tf.constant(records[row].samples[None] / 32768.0, tf.float32))[0]
            n = batch.num_features[i]
            np.testing.assert_allclose(batch.features[i, :n], expected, atol=2e-4)
            assert not np.any(batch.features[i, n:])


def test_without_teacher_batches_carry_none(sets):
    for batch in read([sets[None], sets["factored"]], schedule_of(sets, "factored", 2), with_teacher=False):
        assert not np.any(batch.teacher.weight)
        assert batch.teacher.encoded.size == batch.teacher.predicted.size == batch.teacher.logits.size == 0


@pytest.fixture(scope="module")
def masked(sets):
    """Nine steps with SpecAugment, read once."""
    return read([sets[None], sets["factored"]], schedule_of(sets, "factored"), augmentation=Augmentation())


@pytest.mark.parametrize("first_step", [1, 8])
def test_resuming_at_step_n_gives_exactly_the_batches_that_come_then(sets, masked, first_step):
    both, schedule = [sets[None], sets["factored"]], schedule_of(sets, "factored")
    resumed = read(both, schedule, augmentation=Augmentation(), first_step=first_step)
    assert_equal_batches(resumed, masked[first_step:])


def test_resuming_at_the_end_gives_nothing(sets):
    assert read([sets[None], sets["factored"]], schedule_of(sets, "factored"), first_step=9) == []


@pytest.mark.parametrize("hosts", [1, 2])
def test_shares_read_their_rows_of_the_same_batches(sets, hosts):
    both = [sets[None], sets["factored"]]
    buckets = dataclasses.replace(SMALL, batch_multiple=4)
    schedule = plan([sets[None]], [sets["factored"]], fraction=0.5, num_steps=6, buckets=buckets)
    whole = read(both, schedule, augmentation=Augmentation())
    each = 4 // hosts
    parts = [
        read(both, schedule, augmentation=Augmentation(), share=Share(host * each, each, 4)) for host in range(hosts)
    ]
    together = [
        tf.nest.map_structure(
            lambda *rows: np.concatenate(rows), *[part for host in parts for part in host[step * each :][:each]]
        )
        for step in range(6)
    ]
    assert_equal_batches(together, whole)


@pytest.mark.parametrize(("num_parallel", "pool"), [(1, None), (8, None), (1, 1), (2, 3), (8, 1), (8, 8)])
def test_the_order_does_not_depend_on_parallelism(sets, masked, num_parallel, pool):
    both, schedule = [sets[None], sets["factored"]], schedule_of(sets, "factored")
    options = tf.data.Options()
    if pool:
        options.threading.private_threadpool_size = pool
    found = read(both, schedule, augmentation=Augmentation(), num_parallel=num_parallel, options=options)
    assert_equal_batches(found, masked)


def test_augmentation_depends_on_seed_and_step_and_touches_features_only(sets, masked):
    both, schedule = [sets[None], sets["factored"]], schedule_of(sets, "factored")
    plain, other = read(both, schedule), read(both, schedule, augmentation=Augmentation(), seed=4)
    hidden = collections.Counter()
    for a, b, c in zip(plain, masked, other, strict=True):
        hidden.update(same=np.array_equal(a.features, b.features), equal_seeds=np.array_equal(b.features, c.features))
        assert_equal_batches([b._replace(features=0)], [a._replace(features=0)])
        assert np.all((b.features == a.features) | (b.features == 0.0))
    assert hidden["same"] == hidden["equal_seeds"] == 0
    masks = [b.features[0, :40] == 0.0 for b in masked]
    assert len({mask.tobytes() for mask in masks}) > 1


@pytest.mark.parametrize("dtype", stored.DTYPES)
def test_stored_features_give_the_batches_of_the_audio_to_half_a_step(sets, work_dir, dtype):
    compact = write_set(work_dir / "compact", codec="factored", seed=1, features=dtype)
    schedule, with_masks = schedule_of(sets, "factored"), {"augmentation": Augmentation()}
    heard = read([sets[None], sets["factored"]], schedule, **with_masks)
    np.testing.assert_array_equal(schedule_of({**sets, "factored": compact}, "factored").rows, schedule.rows)
    restored = read([sets[None], compact], schedule, **with_masks)
    for a, b in zip(heard, restored, strict=True):
        step = (RANGE[1] - RANGE[0]) / np.iinfo(dtype).max
        np.testing.assert_allclose(b.features, a.features, atol=0.5 * step + 4e-5)
        np.testing.assert_array_equal(b.features == 0.0, a.features == 0.0)
        human, teacher = a.source == 0, a.source == 1
        np.testing.assert_array_equal(b.features[human], a.features[human])
        assert np.any(b.features[teacher] != a.features[teacher])
    assert_equal_batches([b._replace(features=0) for b in restored], [a._replace(features=0) for a in heard])
    assert_equal_batches(read([sets[None], compact], schedule, first_step=4, **with_masks), restored[4:])


def test_features_of_two_types_in_one_training_are_refused(sets, work_dir):
    both = [write_set(work_dir / dtype, features=dtype) for dtype in stored.DTYPES]
    with pytest.raises(UserError, match="uint8 and .*uint16 hold features of uint8 and uint16: write them alike"):
        read(both, plan(both, num_steps=1, buckets=SMALL))


def test_every_bucket_has_one_static_shape(sets):
    shapes = collections.defaultdict(set)
    schedule = schedule_of(sets, "lattice")
    for (k, _), batch in zip(members(schedule), read([sets[None], sets["lattice"]], schedule), strict=True):
        shapes[k].add(tuple(value.shape for value in tf.nest.flatten(batch)))
    assert {k: len(found) for k, found in shapes.items()} == {0: 1, 1: 1}


def test_two_teachers_in_one_training_are_refused(sets, work_dir):
    other = write_set(work_dir / "other", codec="factored", teacher="b" * 64)
    with pytest.raises(UserError, match="factored and .*other hold targets of different teachers or codecs"):
        common_targets([sets[None], sets["factored"], other])
    with pytest.raises(UserError, match="different teachers or codecs"):
        common_targets([sets["factored"], sets["lattice"]])
    schedule = plan([sets[None]], [sets["factored"], other], num_steps=2, buckets=SMALL)
    with pytest.raises(UserError, match="different teachers"):
        read([sets[None], sets["factored"], other], schedule)


def test_one_teacher_may_have_labelled_several_sets(sets, work_dir):
    same = write_set(work_dir / "same", codec="factored", seed=7)
    assert common_targets([sets[None], same, sets["factored"]]) == sets["factored"].targets
    assert common_targets([sets[None]]) is None
    schedule = plan([], [sets["factored"], same], fraction=0.0, num_steps=9, buckets=SMALL)
    batches = read([sets["factored"], same], schedule)
    assert all(np.all(batch.teacher.weight == 1.0) for batch in batches)


def test_nothing_is_masked_before_the_first_step_of_augmentation(toy_records):
    schedule = make_schedule([toy_records], [], BUCKETS, num_steps=4, labelled_fraction=0.0, seed=0)

    def features(**settings):
        batches = read_batches(
            [toy_records], schedule, first_step=0, augmentation=Augmentation(**settings), seed=0, with_teacher=False
        )
        return [batch.features.numpy() for batch in batches]

    plain = features(num_frequency_masks=0, num_time_masks=0)
    always, late = features(), features(first_step=2)
    for step in range(4):
        np.testing.assert_array_equal(late[step], plain[step] if step < 2 else always[step])
        assert np.any(always[step] != plain[step])
