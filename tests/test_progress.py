import io
import sys
import time

import pytest

from tf_rnnt_kd import progress
from tf_rnnt_kd.progress import Progress, format_seconds, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(75, "01:15"), (3_700, "1:01:40"), (0.4, "00:00"), (59.6, "01:00"), (-3, "00:00")]
)
def test_seconds_read_like_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_said_lines_are_printed_as_they_are(capsys):
    say("  a line")
    assert capsys.readouterr() == ("  a line\n", "")


def test_lines_come_at_intervals_with_the_time_left(clock, capsys):
    with Progress("train x", 100, "steps") as bar:
        for done in range(0, 50):
            clock.now += 1.0
            bar.update(done + 1, "loss 1.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  train x: 20/100 steps, 01:20 left  loss 1.5",
        "  train x: 40/100 steps, 01:00 left  loss 1.5",
    ]


def test_work_of_an_earlier_run_counts_towards_the_total_but_not_the_speed(clock, capsys):
    with Progress("train x", 100, "steps", done=80) as bar:
        clock.now += 30.0
        bar.update(90)
    assert capsys.readouterr().out == "  train x: 90/100 steps, 00:30 left\n"


def test_a_job_may_have_a_line_for_every_update(clock, capsys):
    with Progress("train x", 100, "steps", interval=0.0) as bar:
        for done in (50, 100):
            clock.now += 1.0
            bar.update(done, "loss 1.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  train x: 50/100 steps, 00:01 left  loss 1.5", "  train x: 100/100 steps, 00:00 left  loss 1.5"]


def test_no_speed_is_no_guess(clock, capsys):
    with Progress("train x", 100, "steps", done=5) as bar:
        clock.now += 30.0
        bar.update(5)
    assert "? left" in capsys.readouterr().out


def test_a_terminal_shows_a_bar_with_name_count_and_note(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("label y", 10, "utterances", done=2) as bar:
        time.sleep(0.15)  # tqdm draws ten times a second at most
        bar.update(6, "loss 2")
    shown = sys.stderr.getvalue()
    assert all(part in shown for part in ("label y", "2/10", "6/10", "loss 2"))
    assert capsys.readouterr().out == ""


def test_a_childs_bar_is_below_its_parents(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv(progress.BAR_POSITION, "2")
    with Progress("z", 10, "steps"):
        pass
    assert sys.stderr.getvalue().startswith("\n\n")


def test_the_bar_ends_when_the_work_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError), Progress("z", 10, "steps"):
        raise ZeroDivisionError
    assert sys.stderr.getvalue().endswith("\r")  # the line is wiped
