import numpy as np
import tensorflow as tf

from tf_rnnt_kd.training.stopwatch import Stopwatch

BUCKET = np.array([0, 0, 1, 0, 1, 1, 0, 0])


class Metric:
    """A result; asking for it takes as long as the device is behind."""

    def __init__(self, clock, behind):
        self.clock, self.behind = clock, behind

    def numpy(self):
        self.clock.now += self.behind
        return np.zeros([1])


def take(watch, clock, step, stop, seconds, behind=0.0):
    def call():
        clock.now += seconds
        return {"loss": Metric(clock, behind)}

    return watch.time(call, step, stop)


def test_each_bucket_has_the_mean_of_its_steps_without_the_first(clock):
    watch = Stopwatch(BUCKET, (1.5, 3.0))
    for step, seconds in enumerate((50.0, 2.0, 70.0, 4.0, 5.0, 9.0)):
        take(watch, clock, step, step + 1, seconds)
    assert watch.lap() == (140.0, {"bucket_1.5s": 3.0, "bucket_3s": 7.0})
    take(watch, clock, 6, 7, 6.0)
    assert watch.lap() == (6.0, {"bucket_1.5s": 6.0})
    assert watch.lap() == (0.0, {})


def test_a_call_of_several_steps_counts_if_they_are_of_one_bucket(clock):
    watch = Stopwatch(BUCKET, (1.5, 3.0))
    take(watch, clock, 0, 3, 10.0)
    take(watch, clock, 3, 5, 10.0)  # both
    take(watch, clock, 6, 8, 10.0)
    assert watch.lap() == (30.0, {"bucket_1.5s": 5.0})


def test_pauses_are_no_training(clock):
    watch = Stopwatch(BUCKET, (1.5, 3.0))
    take(watch, clock, 0, 1, 2.0)
    with watch.pausing():
        clock.now += 100.0
    take(watch, clock, 1, 2, 3.0)
    assert watch.lap() == (5.0, {"bucket_1.5s": 3.0})


def test_an_accelerator_is_waited_for_once_a_lap(clock, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"] if kind == "GPU" else [])
    watch = Stopwatch(BUCKET, (1.5, 3.0))
    take(watch, clock, 0, 1, 1.0, behind=9.0)
    watch.lap()
    take(watch, clock, 0, 1, 1.0, behind=3.0)
    for _ in range(3):
        take(watch, clock, 1, 2, 1.0, behind=100.0)
    assert watch.lap() == (7.0, {"bucket_1.5s": 4.0})
