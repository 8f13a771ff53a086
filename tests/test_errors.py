import errno
import os
import subprocess
import sys

import pytest
from absl import flags

from tf_rnnt_kd.errors import Problems, UserError, muted_stderr, run_command


@pytest.fixture(autouse=True)
def no_required_flags(monkeypatch):
    """Flags are global: those that a command requires must not count because some test imported that command."""
    for name in flags.FLAGS:
        monkeypatch.setattr(flags.FLAGS[name], "validators", [])


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a main function as a command: (main, *arguments) -> exit code, stdout, stderr."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(main)
        return end.value.code, *capsys.readouterr()

    yield call
    flags.FLAGS.unparse_flags()
    flags.FLAGS["debug"].value = False


def failing(error):
    def main(argv):
        raise error

    return main


def test_a_single_problem_is_said_as_it_is_and_of_many_the_first():
    assert Problems(["a is bad"], "place").message == "a is bad"
    assert Problems(["a", "b"], "place").message == "place: 2 problems: (1) a; (2) b"
    many = Problems([str(i) for i in range(14)], "place", shown=2)
    assert many.message == "place: 14 problems: (1) 0; (2) 1; and 12 more" and len(many.problems) == 14


def test_what_libraries_write_to_standard_error_can_be_dropped(capfd):
    with muted_stderr():
        os.write(2, b"noise")
    os.write(2, b"heard")
    with pytest.raises(ValueError, match="x"), muted_stderr():
        raise ValueError("x")
    os.write(2, b" again")
    assert capfd.readouterr().err == "heard again"


def test_a_command_gets_the_arguments_that_are_no_flags(run):
    seen = []
    code, _, error = run(seen.extend, "one", "--nodebug", "two")
    assert (code, error) == (None, "") and seen == ["command", "one", "two"]


def test_a_user_error_is_one_line_and_exit_code_2(run):
    code, out, error = run(failing(UserError("the set is damaged:\n  delete   it")))
    assert (code, out, error) == (2, "", "error: the set is damaged: delete it\n")


def test_several_mistakes_are_counted_and_have_a_line_each(run):
    error = UserError.of("run.gin", ["a is\n  wrong", "b too"])
    assert error.mistakes == ("a is\n  wrong", "b too") and UserError.of("run.gin", ["a"]).mistakes == ("a",)
    code, out, said = run(failing(error))
    assert (code, out, said) == (2, "", "error: 2 mistakes in run.gin:\n  a is wrong\n  b too\n")


def test_a_user_error_shows_its_traceback_on_request(run):
    code, _, error = run(failing(UserError("no room")), "--debug")
    assert code == 2 and "Traceback" in error and error.endswith("error: no room\n")


def test_an_unknown_flag_is_one_line_and_exit_code_2(run):
    code, _, error = run(failing(AssertionError("must not run")), "--debugg")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("error: Unknown command line flag 'debugg'") and "--help lists the options" in error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_full_or_closed_disk_is_one_line_that_names_the_file(run, number):
    code, _, error = run(failing(OSError(number, "whatever", "some/file")))
    assert code == 2 and error.count("\n") == 1
    assert "while writing some/file" in error and "start the same command again" in error


def test_a_full_disk_without_a_name_says_so_without_one(run):
    code, _, error = run(failing(OSError(errno.ENOSPC, "whatever")))
    assert code == 2 and "None" not in error and error.startswith("error: No space left on device: make room")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "broken"),
        BrokenPipeError(errno.EPIPE, "of another"),
        ZeroDivisionError("a bug"),
        ValueError("a bug"),
    ],
)
def test_what_nobody_expected_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(type(error)):
        run_command(failing(error))


def test_an_interrupted_command_says_how_to_go_on(run):
    code, _, error = run(failing(KeyboardInterrupt()))
    assert code == 130 and "interrupted: start the same command again to go on" in error


def test_a_reader_that_has_gone_ends_a_command_in_silence():
    code = "from tf_rnnt_kd.errors import run_command\nrun_command(lambda argv: [print('x' * 99) for _ in range(9999)])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_an_exit_code_passes_through(run):
    assert run(failing(SystemExit(7)))[0] == 7


@pytest.mark.parametrize("error", [MemoryError("array of 7 GB"), "OOM when allocating tensor with shape[9]"])
def test_a_lack_of_memory_is_a_line(run, error):
    if isinstance(error, str):
        import tensorflow as tf

        error = tf.errors.ResourceExhaustedError(None, None, f"Graph execution error:\n\n{error}\n more")
    code, out, line = run(failing(error))
    assert (code, out) == (2, "")
    reason = "array of 7 GB" if isinstance(error, MemoryError) else "OOM when allocating tensor with shape[9]"
    assert line == f"error: out of memory ({reason}): give it less at once, or a machine with more memory\n"


def test_what_nobody_would_read_is_cut():
    error = UserError.of("a.gin", ["there is no " + "x" * 1_000_000, "y" * 399])
    assert error.mistakes == ("there is no " + "x" * 200 + "…" + "x" * 50 + " (1000000 characters)", "y" * 399)
    assert len(str(error)) < 1_000
