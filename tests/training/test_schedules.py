import pytest
import tensorflow as tf

from tf_rnnt_kd.training.schedules import TransformerDecay, WarmupCosine


def rates(schedule, *updates):
    """Rates of the n-th updates, n from 1."""
    return [float(schedule(n - 1)) for n in updates]


def test_warmup_cosine_at_its_marked_points():
    schedule = WarmupCosine(1.0, steps=1_000, warmup=100, hold_fraction=0.3, final_fraction=0.02)
    assert rates(schedule, 1, 50, 100) == pytest.approx([0.01, 0.5, 1.0])
    assert rates(schedule, 200, 300) == pytest.approx([1.0, 1.0])
    assert rates(schedule, 650) == pytest.approx([0.51])  # half way down: the mean of 1 and 0.02
    assert rates(schedule, 1_000, 2_000) == pytest.approx([0.02, 0.02])


def test_warmup_cosine_never_rises_after_its_warmup():
    schedule = WarmupCosine(3e-3, steps=100, warmup=40, hold_fraction=0.1)
    values = rates(schedule, *range(1, 121))
    assert max(values) == pytest.approx(3e-3) and values.index(max(values)) == 39
    assert all(a < b for a, b in zip(values[:39], values[1:40], strict=True))
    assert all(a >= b for a, b in zip(values[39:], values[40:], strict=False))
    assert min(values) > 0.0


def test_no_warmup_starts_at_the_peak():
    assert rates(WarmupCosine(1.0, steps=10, warmup=0), 1) == [1.0]


def test_a_warmup_as_long_as_the_training_is_finite():
    assert rates(WarmupCosine(1.0, steps=10, warmup=10), 5, 10, 11) == pytest.approx([0.5, 1.0, 0.02])


def test_transformer_decay_at_its_marked_points():
    schedule = TransformerDecay(2.0, warmup=100)
    assert rates(schedule, 1, 50, 100, 400) == pytest.approx([0.02, 1.0, 2.0, 1.0])


@pytest.mark.parametrize("schedule", [WarmupCosine(1.0, 10, 2, 0.5, 0.1), TransformerDecay(1.0, 2)])
def test_a_schedule_comes_back_from_its_config(schedule):
    twin = type(schedule).from_config(schedule.get_config())
    assert rates(twin, 1, 5, 9) == rates(schedule, 1, 5, 9)


@pytest.mark.parametrize("schedule", [WarmupCosine(1.0, 10, 2), TransformerDecay(1.0, 2)])
def test_a_schedule_takes_an_integer_tensor_inside_a_function(schedule):
    traced = tf.function(schedule, autograph=False)
    assert float(traced(tf.constant(4, tf.int64))) == pytest.approx(rates(schedule, 5)[0])
