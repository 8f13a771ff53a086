"""Errors a person can act on, and the frame around every command that shows them."""

import contextlib
import errno
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging

_DEBUG = flags.DEFINE_bool("debug", False, "Show the Python traceback of an error.")

# A full disk, a closed one, and a path of an option that is a file where a folder should be.
_EXPECTED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)

_MUTED = threading.Lock()

_LONGEST_WORD = 400  # characters; a path without spaces may have some

_CLOSED_PIPE = 128 + signal.SIGPIPE  # what a shell says of a program that the signal ended


class UserError(Exception):
    """Something the person at the keyboard can mend.

    The message is one line and names what is wrong, where (file, option, utterance) and what to do.
    Commands print it as `error: …` and exit with code 2; nothing that was finished is lost.

    Attributes:
      mistakes: one line each; of several, the message only counts them.
    """

    def __init__(self, message: str, mistakes: Sequence[str] = ()):
        message, *mistakes = map(_cropped, (message, *mistakes))
        super().__init__("\n".join([message, *(f"  {mistake}" for mistake in mistakes)]))
        self.message, self.mistakes = message, tuple(mistakes) or (message,)

    @classmethod
    def of(cls, where: str, mistakes: Sequence[str]) -> "UserError":
        """One error of all mistakes that were found in `where`."""
        if len(mistakes) == 1:
            return cls(mistakes[0])
        return cls(f"{len(mistakes)} mistakes in {where}:", mistakes)


def _cropped(message: str) -> str:
    """The message with what nobody would read, as a name of a million letters from a damaged file, cut to its ends."""
    message = re.sub(rf"\s{{{_LONGEST_WORD},}}", " ", message)
    return re.sub(
        rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:200]}…{word[0][-50:]} ({len(word[0])} characters)", message
    )


class Problems(UserError):
    """Everything that is wrong somewhere, in one line: a single problem as it is, of many the first ones.

    Attributes:
      problems: all of them.
    """

    def __init__(self, problems: Sequence[str], where: str, *, shown: int = 10):
        first = "; ".join(f"({i + 1}) {problem}" for i, problem in enumerate(problems[:shown]))
        more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        super().__init__(problems[0] if len(problems) == 1 else f"{where}: {len(problems)} problems: {first}{more}")
        self.problems = problems


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags, calls `main(argv)`, and turns expected failures into one line and exit code 2."""
    app.run(lambda argv: _guard(main, argv), flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv), known_only=False)
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: Flag --\w+ must have a value other than None", str(error))
        said = f"--{missing[1]} is missing: give it" if missing else str(error)
        _fail(UserError(f"{said} (--help lists the options)"))


def _guard(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        _load_tensorflow_quietly()
        main(argv)
    except UserError as error:
        _fail(error)
    except BrokenPipeError:
        if not _is_unheard():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so once more at its end
        sys.exit(_CLOSED_PIPE)
    except OSError as error:
        if error.errno not in _EXPECTED:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _fail(
            UserError(
                f"{os.strerror(error.errno)}{where}: make room or grant access, then start the same command again"
            )
        )
    except KeyboardInterrupt:
        print("\ninterrupted: start the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        _fail_without_memory(error)
        raise


def _fail_without_memory(error: Exception) -> None:
    """One line where Python, or a device of TensorFlow, has no memory left; nothing for other errors."""
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(error, MemoryError) or (tensorflow and isinstance(error, tensorflow.errors.ResourceExhaustedError)):
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
        reason = next((line for line in lines if "OOM" in line), lines[0] if lines else type(error).__name__)
        _fail(UserError(f"out of memory ({reason[:200]}): give it less at once, or a machine with more memory"))


def _is_unheard() -> bool:
    """Whether whoever read the output has gone, as `head` does; another pipe that breaks is a fault."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _load_tensorflow_quietly() -> None:
    """Imports TensorFlow without the lines that its libraries print about missing accelerators.

    They are written before any log level applies, straight to file descriptor 2.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with muted_stderr():
        import tensorflow as tf  # takes seconds: only after the flags are found to be right

        tf.config.list_physical_devices()


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Drops what anybody in this process writes to file descriptor 2, by one thread at a time.

    For libraries that print there whatever they are told. Keep it around the call itself: other threads are muted too.
    """
    with _MUTED:
        sys.stderr.flush()
        stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(null)


def _fail(error: UserError) -> None:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
        traceback.print_exc()
    print("error: " + " ".join(error.message.split()), file=sys.stderr)
    for mistake in error.mistakes if len(error.mistakes) > 1 else ():
        print("  " + " ".join(mistake.split()), file=sys.stderr)
    sys.exit(2)
