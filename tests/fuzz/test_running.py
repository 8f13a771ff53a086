"""The fuzzers themselves: every verdict is reached, and nothing but the case is lost by a crash or a hang."""

import os
import signal

import pytest

from tests.fuzz import running
from tests.fuzz.core import VERDICTS, Case, Door, Inconsistent, Outcome, make_case
from tf_rnnt_kd.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children use no thread of ours


class _Fake(Door):
    """A door whose case n does the nth of these things."""

    name, cases = "fake", 9

    def build(self):
        (self.folder / "made").write_text("once")

    def open(self):
        assert (self.folder / "made").read_text() == "once"
        return "right"

    def case(self, rng, number):
        return Case(f"case {number}", number, forged=number == 3, excused=number == 4, allowed=("as good",))

    def enter(self, given):
        if given == 0:
            raise UserError("mend it")
        if given == 6:
            raise KeyError("nobody expected that")
        if given == 8:
            os.kill(os.getpid(), signal.SIGSEGV)
        while given == 9:
            pass
        if given == 10:
            raise UserError("what nobody reads " * 10_000)
        if given == 11:
            raise Inconsistent("half of it")
        return {1: "right", 2: "as good"}.get(given, "another")


def test_every_verdict_is_reached_and_the_others_go_on(tmp_path):
    results = running.run_door(_Fake, tmp_path, cases=13, seed=0, limit=5.0)
    assert [result.number for result in results] == list(range(13))
    assert [result.verdict for result in results] == [
        "clear", "correct", "correct", "accepted", "excused", "silent", "traceback", "silent", "crash", "hang",
        "traceback", "silent", "silent",
    ]  # fmt: skip
    assert set(VERDICTS) == {result.verdict for result in results}
    assert "nobody expected that" in results[6].detail and "Segmentation fault" in results[8].detail
    assert results[11].detail == "half of it"


def test_the_table_counts_and_the_list_names_a_reproduction(tmp_path):
    results = running.run_door(_Fake, tmp_path, cases=7, seed=0)
    table = running.format_table(results).splitlines()
    assert table[1].split() == ["fake", "7", "1", "2", "1", "1", "1", "1", "0", "0"]
    assert table[2].split()[1:] == table[1].split()[1:]
    assert "fake: 1 x traceback" in running.list_faults(results) and "--case 6: case 6" in running.list_faults(results)


def test_a_door_that_cannot_be_opened_is_an_error(tmp_path):
    class Broken(_Fake):
        def build(self):
            raise OSError("no room")

    with pytest.raises(RuntimeError, match="(?s)fake can't be opened.*no room"):
        running.run_door(Broken, tmp_path, cases=1, seed=0)


def test_a_case_depends_on_seed_and_number_alone(tmp_path):
    class Random(_Fake):
        def case(self, rng, number):
            return Case("", rng.integers(1 << 60))

    first, again, other = (make_case(Random(tmp_path), seed, 7) for seed in (1, 1, 2))
    assert first == again != other


def test_an_outcome_is_compared_with_that_of_its_name():
    assert Outcome("a", 1) == Outcome("a", 1) != Outcome("b", 1)
