import pathlib

import pytest
import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training.profiling import Profiler, Steps, parse_steps


def test_two_steps_are_read():
    assert parse_steps("10,20") == Steps(10, 20) and parse_steps(" 3 , 3 ") == Steps(3, 3)
    assert parse_steps(None) is None


@pytest.mark.parametrize("text", ["", "10", "20,10", "0,5", "-3,5", "a,b", "1,2,3", "1.5,2"])
def test_anything_else_is_refused_in_a_line(text):
    with pytest.raises(UserError, match="give the first and the last step to trace, as in --profile 10,20") as refused:
        parse_steps(text)
    assert "\n" not in refused.value.message and f"--profile {text}:" in refused.value.message


@pytest.fixture
def calls(monkeypatch):
    """What TensorFlow's profiler is told."""
    found = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: found.append(f"start {folder}"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: found.append("stop"))
    return found


def walk(steps, stops, calls, folder="there"):
    """Takes steps up to each stop; returns after which ones the trace began and ended."""
    with Profiler(folder, steps) as profiler:
        for step, stop in zip(stops, stops[1:], strict=False):
            profiler.before(step, stop)
            calls.append(stop)
            profiler.after(stop, {"loss": tf.zeros([stop - step])})
    return calls


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], [1, "start there", 2, 3, "stop", 4, 5]),
        ([0, 2, 4, 6], ["start there", 2, 4, "stop", 6]),  # whole calls
        ([0, 1, 9, 12], [1, "start there", 9, "stop", 12]),
        ([2, 3, 4], ["start there", 3, "stop", 4]),  # a restart among them
        ([3, 4, 5], [4, 5]),  # and after them
        ([0, 1, 2], [1, "start there", 2, "stop"]),  # ends before
    ],
)
def test_the_calls_that_hold_the_steps_are_traced(stops, expected, calls):
    assert walk(Steps(2, 3), stops, calls) == expected


def test_who_asks_for_nothing_or_writes_nothing_traces_nothing(calls):
    assert walk(None, [0, 1, 2, 3], calls) == [1, 2, 3]
    calls.clear()
    assert walk(Steps(1, 2), [0, 1, 2, 3], calls, folder=None) == [1, 2, 3]


def test_a_trace_ends_with_what_it_traces(calls):
    with pytest.raises(ZeroDivisionError), Profiler("there", Steps(1, 5)) as profiler:
        profiler.before(0, 1)
        raise ZeroDivisionError
    assert calls == ["start there", "stop"]


def test_a_trace_lies_where_tensorboard_looks(work_dir, capsys):
    with Profiler(str(work_dir), Steps(1, 1)) as profiler:
        profiler.before(0, 1)
        profiler.after(1, {"loss": tf.matmul(tf.ones([1, 8]), tf.ones([8, 1]))})
    (trace,) = pathlib.Path(work_dir).glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 100
    assert capsys.readouterr().out == f"  traced steps 1 to 1: {work_dir}/plugins/profile\n"
