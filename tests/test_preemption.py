import os
import signal
import subprocess
import sys

import pytest

from tf_rnnt_kd import preemption
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.preemption import CHILD_CODE, MARKER, Preempted, deferred, go_on, leaving_resumable


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_work_is_left_at_once_with_code_0_and_a_marker(work_dir, capsys):
    with pytest.raises(SystemExit) as end, leaving_resumable(str(work_dir), is_child=False):
        terminate()
        pytest.fail("SIGTERM did not arrive")
    assert end.value.code == 0 and (work_dir / MARKER).read_text().endswith("the same command goes on\n")
    assert capsys.readouterr().out == "  stopped by SIGTERM: the same command goes on\n"


def test_a_start_that_goes_on_removes_the_marker_and_says_so_once(work_dir, capsys):
    (work_dir / MARKER).write_text("stopped\n")
    with leaving_resumable(str(work_dir), is_child=False):
        assert (work_dir / MARKER).exists()  # so far nobody knows whether the run can go on
        for _ in range(2):
            go_on(str(work_dir))
            assert not (work_dir / MARKER).exists()
    assert capsys.readouterr().out == "  SIGTERM stopped this run: it goes on from there\n"


def test_a_child_tells_its_parent_and_leaves_the_marker_to_it(work_dir):
    (work_dir / MARKER).write_text("the parent's\n")
    with pytest.raises(SystemExit) as end, leaving_resumable(str(work_dir), is_child=True):
        terminate()
    assert end.value.code == CHILD_CODE != 0 and (work_dir / MARKER).read_text() == "the parent's\n"


def test_a_step_is_finished_first(work_dir):
    done = []
    with pytest.raises(SystemExit), leaving_resumable(str(work_dir), is_child=False):
        with deferred() as is_preempted:
            assert not is_preempted()
            terminate()
            terminate()  # the group of processes got it, and the parent passed it on
            done.append(is_preempted())
        pytest.fail("the work went on")
    assert done == [True]


def test_an_error_while_the_step_is_finished_is_not_hidden(work_dir):
    with pytest.raises(ZeroDivisionError), leaving_resumable(str(work_dir), is_child=False), deferred():
        terminate()
        raise ZeroDivisionError
    assert not (work_dir / MARKER).exists()


def test_no_handler_of_errors_swallows_it(work_dir):
    with pytest.raises(SystemExit), leaving_resumable(str(work_dir), is_child=False):
        try:
            terminate()
        except Exception:
            pytest.fail("it was swallowed")
    assert not issubclass(Preempted, Exception)


def test_what_was_swallowed_all_the_same_comes_back_at_the_next_training(work_dir):
    with pytest.raises(SystemExit), leaving_resumable(str(work_dir), is_child=False):
        try:
            terminate()
        except BaseException:  # as the interpreter does in a destructor
            pass
        with deferred():
            pytest.fail("it trains")


def test_the_handler_before_is_back_afterwards(work_dir):
    before = signal.getsignal(signal.SIGTERM)
    with leaving_resumable(str(work_dir), is_child=False):
        assert signal.getsignal(signal.SIGTERM) is preemption._receive
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_a_library_sets_is_replaced_on_request(work_dir):
    before = signal.getsignal(signal.SIGTERM)
    preemption.listen()  # nobody wants to hear of it
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit), leaving_resumable(str(work_dir), is_child=False):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminate()
        preemption.listen()
        terminate()
        pytest.fail("SIGTERM did not arrive")


def test_a_marker_that_cannot_be_written_is_one_line(work_dir):
    with pytest.raises(UserError, match="stopped by SIGTERM, but .*resumable can't be written: No such file"):
        with leaving_resumable(str(work_dir / "gone"), is_child=False):
            terminate()


def test_a_process_without_the_frame_ends_as_ever():
    code = "import os, signal; from tf_rnnt_kd import preemption; os.kill(os.getpid(), signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM
