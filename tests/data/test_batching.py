import dataclasses
import re

import numpy as np
import pytest

from tests.data.batches import BUCKETS, SMALL, members, plan, schedule_of
from tf_rnnt_kd.data.batching import Buckets, check_divisible, utterance_ids
from tf_rnnt_kd.data.records import RecordIndex, RecordSet
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import num_log_mel_frames


def index_only(num_samples, num_labels):
    """A record set that has nothing but an index."""
    zeros = np.zeros(len(num_samples), np.int64)
    index = RecordIndex(zeros, zeros, zeros, np.asarray(num_samples), np.asarray(num_labels), zeros, zeros)
    return RecordSet("nowhere", {"utterances": len(num_samples)}, ("one",), index, "")


def random_set(count, seed=0, longest=4.0):
    rng = np.random.default_rng(seed)
    return index_only(rng.integers(8_000, int(16_000 * longest), count), rng.integers(1, 8, count))


def test_the_schedule_is_a_pure_function_of_its_seed():
    sets = [random_set(30)], [random_set(50, seed=1)]
    first, second, other = plan(*sets), plan(*sets), plan(*sets, seed=1)
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.bucket, second.bucket)
    assert np.any(first.rows != other.rows)


def test_the_schedule_does_not_touch_or_read_global_random_state():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = plan([random_set(30)])
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    np.testing.assert_array_equal(plan([random_set(30)]).rows, first.rows)


def test_a_longer_schedule_begins_with_the_shorter_one():
    sets = [random_set(30)], [random_set(50, seed=1)]
    short, long = plan(*sets, num_steps=20), plan(*sets, num_steps=60)
    np.testing.assert_array_equal(long.rows[:20], short.rows)
    np.testing.assert_array_equal(long.num_labels, short.num_labels)


def test_every_row_of_a_batch_is_filled_and_fits_its_bucket():
    labelled, pseudo = random_set(30), random_set(50, seed=1)
    samples = np.concatenate([labelled.index.num_samples, pseudo.index.num_samples])
    labels = np.concatenate([labelled.index.num_labels, pseudo.index.num_labels])
    schedule = plan([labelled], [pseudo])
    for k, rows in members(schedule):
        assert min(rows) >= 0 and len(rows) == BUCKETS.batch_size(k)
        assert samples[rows].max() <= BUCKETS.num_samples(k) and labels[rows].max() <= schedule.num_labels[k]
    beyond = [row[BUCKETS.batch_size(k) :] for k, row in zip(schedule.bucket, schedule.rows, strict=True)]
    assert set(np.concatenate(beyond)) == {-1}


def in_permutations(stream, group):
    """Whether a stream visits the group in one permutation after the other."""
    chunks = [stream[i : i + len(group)] for i in range(0, len(stream), len(group))]
    whole, rest = chunks[:-1], chunks[-1]
    return all(sorted(c) == sorted(group) for c in whole) and len(set(rest)) == len(rest) and set(rest) <= set(group)


@pytest.mark.parametrize("seed", range(3))
def test_each_utterance_comes_once_an_epoch(seed):
    records = random_set(40, seed)
    schedule = plan([records], seed=seed, num_steps=80)
    limits = [BUCKETS.num_samples(k) for k in range(3)]
    bucket_of = np.searchsorted(limits, records.index.num_samples)
    for k in range(3):
        group = np.flatnonzero(bucket_of == k).tolist()
        stream = [row for bucket, rows in members(schedule) if bucket == k for row in rows]
        assert len(stream) > len(group) and in_permutations(stream, group)


def test_batches_mix_shards_and_every_epoch_mixes_them_anew():
    shard = np.repeat(np.arange(8), 8)  # written in this order
    records = index_only([14_000] * 64, [3] * 64)
    batches = np.array([rows for _, rows in members(plan([records], num_steps=40))])  # 5 epochs of 8 batches of 8
    assert min(len(set(shard[rows])) for rows in batches) >= 4
    epochs = batches.reshape(5, 64)
    assert all(np.mean(a == b) < 0.1 for i, a in enumerate(epochs) for b in epochs[:i])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("batch_seconds", [1.0, 8.0, 24.0])
def test_each_pseudo_labelled_utterance_comes_once_an_epoch_too(fraction, batch_seconds):
    buckets = dataclasses.replace(BUCKETS, batch_seconds=batch_seconds)
    labelled, pseudo = random_set(10), random_set(20, seed=1)
    schedule = plan([labelled], [pseudo], fraction=fraction, num_steps=200, buckets=buckets)
    bucket_of = np.searchsorted([buckets.num_samples(k) for k in range(3)], pseudo.index.num_samples)
    for k in range(3):
        group = (10 + np.flatnonzero(bucket_of == k)).tolist()
        stream = [row for bucket, rows in members(schedule) if bucket == k for row in rows if row >= 10]
        assert in_permutations(stream, group)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1 / 3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("batch_seconds", [1.0, 8.0, 24.0])
def test_the_labelled_share_is_exact_over_any_stretch(fraction, batch_seconds):
    buckets = dataclasses.replace(BUCKETS, batch_seconds=batch_seconds)
    schedule = plan([random_set(30)], [random_set(50, seed=1)], fraction=fraction, num_steps=300, buckets=buckets)
    for k in range(3):
        counts = [sum(row < 30 for row in rows) for bucket, rows in members(schedule) if bucket == k]
        error = np.concatenate([[0.0], np.cumsum(np.array(counts) - fraction * buckets.batch_size(k))])
        assert np.ptp(error) < 1.0 + 1e-6


def test_labelled_rows_are_those_of_the_batchs_bucket_each_once_a_round():
    labelled = random_set(30)
    schedule = plan([labelled], [random_set(50, seed=1)], fraction=0.5, num_steps=100)
    bucket_of = np.searchsorted([BUCKETS.num_samples(k) for k in range(3)], labelled.index.num_samples)
    for k in range(3):
        stream = [row for bucket, rows in members(schedule) if bucket == k for row in rows if row < 30]
        assert in_permutations(stream, np.flatnonzero(bucket_of == k).tolist())


def test_a_bucket_without_labelled_speech_borrows_from_a_shorter_one():
    labelled = index_only([12_000, 13_000], [3, 3])
    pseudo = index_only([12_000] * 8 + [60_000] * 8, [3] * 16)
    schedule = plan([labelled], [pseudo], fraction=0.5, num_steps=20)
    long = [rows for k, rows in members(schedule) if k == 2]
    assert long and all(sum(row < 2 for row in rows) == 1 for rows in long)


def test_buckets_below_all_labelled_speech_are_refused_by_name():
    labelled = index_only([60_000, 61_000, 999_999], [3, 3, 3])
    pseudo = index_only([12_000] * 8 + [25_000] * 5 + [60_000] * 8, [3] * 21)
    words = r"labelled_fraction is 0.5, .* 1 s \(8\), 2 s \(5\); .* that of 4 s, with 2 of 2: take .* out of Buckets"
    with pytest.raises(UserError, match=words):
        plan([labelled], [pseudo], fraction=0.5)
    alone = dataclasses.replace(BUCKETS, seconds=(4.0,))  # what it says helps
    counts = [
        sum(row < 3 for row in rows) for _, rows in members(plan([labelled], [pseudo], fraction=0.5, buckets=alone))
    ]
    assert set(counts) == {1}
    assert all(min(rows) >= 3 for _, rows in members(plan([labelled], [pseudo], fraction=0.0)))


def test_a_bucket_that_no_pseudo_labelled_speech_is_in_needs_no_labelled_speech():
    labelled, pseudo = index_only([60_000], [3]), index_only([60_000] * 8, [3] * 8)
    assert all(k == 2 and min(rows) == 0 for k, rows in members(plan([labelled], [pseudo], fraction=0.5, num_steps=9)))


@pytest.mark.parametrize(
    ("labelled", "words"),
    [
        (
            [index_only([999_999] * 3, [3] * 3)],
            r"of 3 labelled utterances none .*\(3 longer than 4 s, in all sets\): set",
        ),
        ([index_only([], [])], "of 0 labelled utterances none can be trained on: set it to 0"),
        ([], "of 0 labelled utterances none can be trained on: set it to 0"),
    ],
)
def test_a_share_of_nothing_is_refused(labelled, words):
    with pytest.raises(UserError, match=f"labelled_fraction is 0.25, but {words}"):
        plan(labelled, [random_set(10)], fraction=0.25)
    assert len(plan(labelled, [random_set(10)], fraction=0.0).rows) == 60


@pytest.mark.parametrize("seed", range(20))
def test_the_share_holds_in_every_bucket_or_the_plan_is_refused(seed):
    rng = np.random.default_rng(seed)
    labelled, pseudo = (random_set(int(rng.integers(1, 9)), seed + at, rng.uniform(1.0, 6.0)) for at in (50, 90))
    fraction, count = rng.uniform(0.05, 0.95), len(labelled.index.num_samples)
    try:
        schedule = plan([labelled], [pseudo], fraction=fraction, num_steps=400)
    except UserError as error:
        assert "labelled" in error.message
        return
    for k in range(3):
        counts = [sum(row < count for row in rows) for bucket, rows in members(schedule) if bucket == k]
        assert abs(sum(counts) - fraction * BUCKETS.batch_size(k) * len(counts)) < 1.0 + 1e-6


@pytest.mark.parametrize(
    "seconds",
    [(3.1, 2.1, 1.1), (1.0, 1.0), (), (0.0, 1.0), (-1.0, 2.0), (1.0, float("inf")), (1.0, float("nan"), 3.0), 4.0]
    + [("1", "2"), (1.0, None)],
    ids=str,
)
def test_buckets_that_do_not_ascend_are_refused_with_what_was_given(seconds):
    with pytest.raises(UserError, match=f"Buckets.seconds is {re.escape(repr(seconds))}: "):
        Buckets(seconds, batch_seconds=8.0)


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_a_share_that_leaves_no_room_for_the_teachers_speech_is_refused(fraction):
    with pytest.raises(UserError, match=f"labelled_fraction is {fraction:g}: give 0 to below 1"):
        plan([random_set(10)], [random_set(10, seed=1)], fraction=fraction)


def test_without_pseudo_labelled_speech_the_share_has_no_say():
    np.testing.assert_array_equal(plan([random_set(9)], fraction=1.0).rows, plan([random_set(9)], fraction=0.1).rows)


def test_utterances_that_cannot_be_used_are_counted_with_their_reason():
    too_long = [BUCKETS.num_samples(2) + 1] * 2
    records = index_only([*too_long, 16_000, 16_000, 16_000, 800], [3, 3, 0, 25, 24, 1])
    schedule = plan([records], num_steps=5)
    assert schedule.skipped == {"longer than 4 s": 2, "no labels": 1, "more labels than frames": 2}
    assert {row for _, rows in members(schedule) for row in rows} == {4}


def test_nothing_is_counted_where_everything_fits():
    assert plan([random_set(9)], num_steps=1).skipped == {}


def test_a_set_of_which_nothing_fits_is_refused():
    with pytest.raises(UserError, match="utterance can be trained on"):
        plan([index_only([999_999], [3])])
    with pytest.raises(UserError, match="utterance can be trained on"):
        plan([random_set(5)], [index_only([16_000], [0])])


@pytest.mark.parametrize("multiple", [1, 2, 3])
def test_bucket_shapes(multiple):
    buckets = dataclasses.replace(BUCKETS, batch_multiple=multiple)
    for k, seconds in enumerate(buckets.seconds):
        assert num_log_mel_frames(buckets.num_samples(k)) == 4 * buckets.num_frames(k)
        assert num_log_mel_frames(buckets.num_samples(k) - 1) < 4 * buckets.num_frames(k)
        assert buckets.num_samples(k) >= 16_000 * seconds
        size = buckets.batch_size(k)
        assert size % multiple == 0 and (size * seconds <= buckets.batch_seconds or size == multiple)


@pytest.mark.parametrize(("replicas", "accumulation", "parts"), [(3, 1, 3), (2, 2, 4), (1, 4, 4)])
def test_a_bucket_that_does_not_divide_is_refused_by_name(replicas, accumulation, parts):
    check_divisible(SMALL, 2, 1)
    with pytest.raises(UserError, match=f"{replicas} replicas x {accumulation} .*Buckets.batch_multiple = {parts}"):
        check_divisible(SMALL, replicas, accumulation)
    check_divisible(dataclasses.replace(SMALL, batch_multiple=parts), replicas, accumulation)


def test_utterances_of_a_step_are_named(sets):
    both = [sets[None], sets["factored"]]
    schedule = schedule_of(sets, "factored")
    names = [record.id for records in both for record in records.read()]
    for step, (_, rows) in enumerate(members(schedule)):
        assert utterance_ids(both, schedule, step) == [names[row] for row in rows]
