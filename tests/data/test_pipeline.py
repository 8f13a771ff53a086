import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.data import schema
from tf_rnnt_kd.data.pipeline import (
    Augmentation,
    Buckets,
    Share,
    check_divisible,
    common_targets,
    make_schedule,
    read_batches,
    utterance_ids,
)
from tf_rnnt_kd.data.records import RecordIndex, RecordSet, write_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features import stored
from tf_rnnt_kd.features.log_mel import RANGE, log_mel, num_log_mel_frames

BUCKETS = Buckets((1.0, 2.0, 4.0), batch_seconds=8.0)  # 8, 4 and 2 rows
OFF = Augmentation(num_frequency_masks=0, num_time_masks=0)


# -- the schedule, from indexes alone --


def index_only(num_samples, num_labels):
    """A record set that has nothing but an index."""
    zeros = np.zeros(len(num_samples), np.int64)
    index = RecordIndex(zeros, zeros, zeros, np.asarray(num_samples), np.asarray(num_labels), zeros)
    return RecordSet("nowhere", {"utterances": len(num_samples)}, ("one",), index, "")


def random_set(count, seed=0, longest=4.0):
    rng = np.random.default_rng(seed)
    return index_only(rng.integers(8_000, int(16_000 * longest), count), rng.integers(1, 8, count))


def plan(labelled, pseudo=(), *, num_steps=60, fraction=0.25, seed=0, buckets=BUCKETS):
    return make_schedule(labelled, pseudo, buckets, num_steps=num_steps, labelled_fraction=fraction, seed=seed)


def members(schedule):
    """(bucket, rows) of every step."""
    sizes = [schedule.buckets.batch_size(k) for k in schedule.bucket]
    return [(int(k), row[:n].tolist()) for k, row, n in zip(schedule.bucket, schedule.rows, sizes, strict=True)]


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


def test_a_bucket_below_all_labelled_speech_goes_without():
    labelled = index_only([60_000, 61_000], [3, 3])
    pseudo = index_only([12_000] * 8 + [60_000] * 8, [3] * 16)
    schedule = plan([labelled], [pseudo], fraction=0.5, num_steps=20)
    short = [rows for k, rows in members(schedule) if k == 0]
    assert short and all(min(rows) >= 2 for rows in short)


def test_a_share_that_leaves_no_room_for_the_teachers_speech_is_refused():
    with pytest.raises(UserError, match="labelled_fraction"):
        plan([random_set(10)], [random_set(10, seed=1)], fraction=1.0)


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


# -- reading --


def make_records(count, codec, seed):
    """Records of noise; a tenth of a second more each."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        samples = rng.integers(-3_000, 3_000, 4_000 + 1_600 * i).astype(np.int16)
        labels = rng.integers(1, 5, 1 + i % 4).astype(np.int32)
        frames = num_log_mel_frames(len(samples)) // 4
        targets = {
            None: {},
            "factored": {"encoded": random(rng, frames, 3), "predicted": random(rng, len(labels) + 1, 3)},
            "lattice": {"logits": random(rng, frames, len(labels) + 1, 5).astype(np.float16)},
        }[codec]
        yield schema.Record(f"{seed}-{i}", "", "", samples, labels, source=int(codec is not None), **targets)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def write_set(folder, count=9, codec=None, seed=0, teacher="a" * 64, features=None):
    width, dtype = (3, "float32") if codec == "factored" else (0, "float16")
    spec = schema.TargetsSpec(codec, dtype, width, 5, 0, teacher) if codec else None
    manifest = {
        "tokenizer_hash": None,
        "sample_rate": 16_000,
        "targets": dataclasses.asdict(spec) if spec else None,
        "source": "noise",
        **({"features": stored.describe(features)} if features else {}),
    }
    joint = (np.ones([3, 5], np.float32), np.zeros(5, np.float32)) if codec == "factored" else None
    items = list(make_records(count, codec, seed))
    return write_records(str(folder), items, lambda part: part, manifest=manifest, records_per_shard=4, joint=joint)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A labelled set and one for each codec."""
    folder = tmp_path_factory.mktemp("sets")
    codecs = (None, "factored", "lattice")
    return {codec: write_set(folder / str(codec), codec=codec, seed=i) for i, codec in enumerate(codecs)}


SMALL = Buckets((0.6, 1.2), batch_seconds=2.4)  # 4 and 2 rows


def read(
    sets, schedule, *, first_step=0, augmentation=OFF, seed=3, with_teacher=True, num_parallel=2, options=None, **more
):
    dataset = read_batches(
        sets,
        schedule,
        first_step=first_step,
        augmentation=augmentation,
        seed=seed,
        with_teacher=with_teacher,
        num_parallel=num_parallel,
        **more,
    ).with_options(options or tf.data.Options())
    return [tf.nest.map_structure(lambda value: value.numpy(), batch) for batch in dataset]


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
            np.testing.assert_array_equal(x, y)


def schedule_of(sets, codec, num_steps=9):
    return plan([sets[None]], [sets[codec]], fraction=0.5, num_steps=num_steps, buckets=SMALL)


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
