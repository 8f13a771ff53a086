"""Audio that can't be read: all of it in one report, or left out of its record set, up to as many files as allowed."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from tf_rnnt_kd.data.audio import AudioError, show_name
from tf_rnnt_kd.data.corpora import BadAudio, Utterance
from tf_rnnt_kd.errors import Problems, UserError
from tf_rnnt_kd.files import Damaged, Missing, read_text, write_atomically
from tf_rnnt_kd.nst.plan import Corpus
from tf_rnnt_kd.progress import say

SKIPPED = "skipped.tsv"  # in a record set's folder: each file that was left out, and why
_HEAD = ("file", "reason")
_PROBLEMS = "problems.txt"  # beside the sets: all of what is too much for a line
_IN_A_LINE = 10


class Skipped:
    """The files that a preparation leaves out of its record sets."""

    def __init__(self, folder: str, names: Sequence[str], allowed: int):
        """Reads what earlier starts have left out.

        Args:
          folder: of the preparation.
          names: of the corpora whose record sets are in it.
          allowed: files that may be left out, of all sets together.
        """
        self._folder = folder
        self._allowed = allowed
        self._reasons = {name: _read_table(self._table(name)) for name in names}  # of each corpus, by file

    def list_corpora(self, corpora: Sequence[Corpus]) -> dict[str, list[Utterance]]:
        """The utterances of each corpus, also those whose audio is bad.

        Raises:
          UserError: more files are bad than may be, besides those left out before; it is about those of all corpora.
        """
        listed, problems = {}, []
        for corpus in corpora:
            try:
                listed[corpus.name] = corpus.utterances()
            except BadAudio as error:
                listed[corpus.name] = list(error.utterances)
                known = self._reasons[corpus.name]
                problems.extend(e.message for e in error.errors if show_name(e.path) not in known)
            except Problems as error:
                raise self._all_of(error.problems, f"corpus {corpus.name}") from error
        if len(problems) > self._allowed:
            raise self._too_many(problems, f"corpora {', '.join(listed)}")
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._folder, _PROBLEMS))
        return listed

    def load(
        self, name: str, part: Sequence[Utterance], corpus: Sequence[Utterance]
    ) -> Iterator[tuple[Utterance, np.ndarray]]:
        """The utterances of a part of a corpus with their samples; those with bad audio are left out.

        Raises:
          UserError: more files are bad than may be; it is about those of all the rest of the corpus.
        """
        for utterance in part:
            try:
                yield utterance, utterance.load()
            except AudioError as error:
                self._leave_out(name, error, corpus[corpus.index(utterance) + 1 :])

    def describe(self, name: str) -> str:
        """What there is to say of a finished set, to follow its length."""
        count = len(self._reasons[name])
        return f"; {count} bad files left out, see {self._table(name)}" if count else ""

    def _leave_out(self, name: str, error: AudioError, rest: Sequence[Utterance]) -> None:
        reasons = self._reasons[name]
        if show_name(error.path) in reasons:
            return
        if sum(map(len, self._reasons.values())) >= self._allowed:
            say(f"  {name}: bad audio; the rest is looked through for more")
            raise self._too_many(list(_find_bad(error, rest)), f"corpus {name}")
        reasons[show_name(error.path)] = error.reason
        rows = [_HEAD, *sorted(reasons.items())]
        write_atomically(self._table(name), "".join(f"{file}\t{reason}\n" for file, reason in rows).encode())

    def _too_many(self, problems: Sequence[str], where: str) -> UserError:
        error = self._all_of(problems, where)
        return UserError(f"{error.message} (--skip_bad N leaves out up to N such files, now {self._allowed})")

    def _all_of(self, problems: Sequence[str], where: str) -> UserError:
        error = Problems(problems, where, shown=_IN_A_LINE)
        if len(problems) <= _IN_A_LINE:
            return error
        path = os.path.join(self._folder, _PROBLEMS)
        os.makedirs(self._folder, exist_ok=True)
        write_atomically(path, "".join(f"{problem}\n" for problem in problems).encode())
        return UserError(f"{error.message}; all of them are in {path}")

    def _table(self, name: str) -> str:
        return os.path.join(self._folder, name, SKIPPED)


def _find_bad(first: AudioError, rest: Sequence[Utterance]) -> Iterator[str]:
    yield first.message
    seen = {first.path}
    for utterance in rest:
        try:
            utterance.load()
        except AudioError as error:
            if error.path not in seen:
                yield error.message
            seen.add(error.path)


def _read_table(path: str) -> dict[str, str]:
    remedy = "restore it, or delete it with the record set"
    try:
        rows = [tuple(line.split("\t", 1)) for line in read_text(path, remedy=remedy).split("\n") if line.strip()]
    except Missing:
        return {}
    if rows[:1] != [_HEAD] or any(len(row) != len(_HEAD) for row in rows):
        raise Damaged(path, "its lines are not file and reason", remedy)
    return dict(rows[1:])
