"""N-grams as ARPA files, which other tools read and write too. Their words are the tokenizer's labels.

A label is written as its piece, with U+2581 for a space; <s> and </s> are the ends of a sentence. So an outside tool is
given text in which every sentence is the line of its labels, separated by spaces.
"""

import math
import re
from collections.abc import Iterator, Sequence

from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text.ngrams import BOUNDARY, Entry, Ngrams, raised_above_one

_SPACE = "\u2581"
_START, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_NEVER = -99.0  # log10 of a probability of zero; less is no less likely
_ROUNDING = 1e-4  # of a log10 in a file
_HIGHEST = 9.0  # log10 of a back-off weight: what is left of a history's probability is seldom below 1e-7
_COUNT = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LN_10 = math.log(10.0)

_Line = tuple[int, str]


def label_names(pieces: Sequence[str]) -> list[str]:
    """How the labels of a tokenizer are written; that of blank is empty."""
    return [piece.replace(" ", _SPACE) for piece in pieces]


def write_arpa(path: str, ngrams: Ngrams, pieces: Sequence[str]) -> None:
    """Writes n-grams, whole or not at all.

    Args:
      path: of the file.
      ngrams: over ids.
      pieces: [V] of the tokenizer.
    """
    names = label_names(pieces)
    with files.replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        for order, table in enumerate(ngrams, 1):
            file.write(f"ngram {order}={len(table) + (order == 1)}\n")  # the start has a unigram of its own here
        for order, table in enumerate(ngrams, 1):
            file.write(f"\n\\{order}-grams:\n")
            for gram in sorted(table):
                file.writelines(_format(gram, table[gram], names, last=order == len(ngrams)))
        file.write("\n\\end\\\n")


def _format(gram: tuple[int, ...], entry: Entry, names: Sequence[str], *, last: bool) -> Iterator[str]:
    backoff = "" if last else f"\t{entry.backoff / _LN_10:.7g}"
    if gram == (BOUNDARY,):
        yield f"{_NEVER:g}\t{_START}{backoff}\n"
        backoff = "" if last else "\t0"
    words = [names[label] or (_START if place == 0 < len(gram) - 1 else _END) for place, label in enumerate(gram)]
    yield f"{entry.log_prob / _LN_10:.7g}\t{' '.join(words)}{backoff}\n"


def read_arpa(path: str, pieces: Sequence[str]) -> Ngrams:
    """Reads n-grams over the labels of a tokenizer. A label without unigram takes the probability of <unk>.

    Args:
      path: of the file.
      pieces: [V] of the tokenizer.

    Raises:
      UserError: the file is missing, damaged or cut off, its words are not the tokenizer's labels, or a probability is
        above one, by itself or by a back-off weight.
    """
    ids = {name: label for label, name in enumerate(label_names(pieces)) if name}
    try:
        with open(path, encoding="utf-8-sig") as file:
            return _Reader(path, ids).read((number, line.strip()) for number, line in enumerate(file, 1))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read n-grams from {path}: {error}; give an ARPA file") from error


class _Reader:
    """The sections of one file, in turn."""

    def __init__(self, path: str, ids: dict[str, int]):
        self.path, self.ids, self.unknown = path, ids, None
        self.raised: dict[tuple[int, ...], _Line] = {}  # where back-off weights above one stand
        self.marks: set[str] = set()  # of <s>, </s> and <unk> the unigrams that were read

    def read(self, lines: Iterator[_Line]) -> Ngrams:
        lines = ((number, line) for number, line in lines if line)
        if not any(line == "\\data\\" for _, line in lines):
            raise UserError(f"{self.path} has no line \\data\\: give an ARPA file")
        counts, line = self._read_counts(lines)
        ngrams: Ngrams = []
        for order, count in enumerate(counts, 1):
            if line[1] != f"\\{order}-grams:":
                self._refuse(line, f"\\{order}-grams: should stand here")
            table, line = self._read_section(lines, order, order == len(counts), count)
            ngrams.append(table)
        if line[1] != "\\end\\":
            self._refuse(line, "\\end\\ should stand here")
        self._complete(ngrams[0])
        for history in raised_above_one(ngrams, self.raised):
            self._refuse(
                self.raised[history], "a back-off weight that leaves probabilities below one should stand here"
            )
        return ngrams

    def _read_counts(self, lines: Iterator[_Line]) -> tuple[list[int], _Line]:
        counts = []
        for number, line in lines:
            if line.startswith("\\") and counts:
                return counts, (number, line)
            name, _, count = line.partition("=")
            if name.split() != ["ngram", str(len(counts) + 1)] or not _COUNT.fullmatch(count.strip()):
                self._refuse((number, line), f"'ngram {len(counts) + 1}=COUNT' should stand here")
            counts.append(int(count))
        raise UserError(f"{self.path} ends within its counts: it is cut off; make it again")

    def _read_section(self, lines, order, last, count):
        table, starts = {}, 0
        for number, line in lines:
            if line.startswith("\\") and "\t" not in line:
                found = len(table) + starts
                if found != count:
                    raise UserError(f"{self.path} has {found} {order}-grams, its head says {count}: make it again")
                return table, (number, line)
            starts += self._read_entry((number, line), order, last, table)
        raise UserError(f"{self.path} ends within its {order}-grams: it is cut off; make it again")

    def _read_entry(self, line: _Line, order: int, last: bool, table: dict) -> int:
        """Adds an n-gram to the table; returns 1 for those that do not make it longer."""
        fields = line[1].split()
        if len(fields) not in ({order + 1} if last else {order + 1, order + 2}):
            self._refuse(line, f"a probability and {order} labels should stand here")
        words = fields[1 : order + 1]
        entry = Entry(self._log_prob(line, fields[0]), self._backoff(line, (*fields, "0")[order + 1]))
        if order == 1 and words[0] in (_START, _END, _UNKNOWN):
            self._once(line, words[0])
        if _UNKNOWN in words:
            self.unknown = entry if order == 1 else self.unknown
            return 1
        gram = tuple(self._id(line, word, place, order) for place, word in enumerate(words))
        if words[-1] == _END:
            entry = entry._replace(backoff=0.0)  # nothing follows
        if entry.backoff > 0.0:
            self.raised[gram] = line
        if gram == (BOUNDARY,):
            return self._read_boundary(words[0], entry, table)
        if gram in table:
            self._refuse(line, "the n-gram stands there twice")
        table[gram] = entry
        return 0

    def _once(self, line: _Line, mark: str) -> None:
        if mark in self.marks:
            self._refuse(line, "the n-gram stands there twice")
        self.marks.add(mark)

    def _read_boundary(self, word: str, entry: Entry, table: dict) -> int:
        before = table.get((BOUNDARY,))
        mine = before or Entry(_NEVER * _LN_10)
        table[(BOUNDARY,)] = (
            mine._replace(backoff=entry.backoff) if word == _START else mine._replace(log_prob=entry.log_prob)
        )
        return int(before is not None)

    def _id(self, line: _Line, word: str, place: int, order: int) -> int:
        if word == _START and place == 0 or word == _END and place == order - 1:
            return BOUNDARY
        if word not in self.ids:
            self._refuse(line, f"{word!r} is no label of the tokenizer; estimate n-grams of its labels")
        return self.ids[word]

    def _log_prob(self, line: _Line, text: str) -> float:
        value = self._number(line, text)
        if value > _ROUNDING:
            self._refuse(
                line, f"{text!r} is the logarithm of a probability above one; one of 0 or less should stand here"
            )
        return min(value, 0.0) * _LN_10

    def _backoff(self, line: _Line, text: str) -> float:
        value = self._number(line, text)
        if value > _HIGHEST:
            self._refuse(line, f"{text!r} is no logarithm of a back-off weight")
        return value * _LN_10

    def _number(self, line: _Line, text: str) -> float:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(value):
            self._refuse(line, f"{text[:40]!r} is no logarithm of a probability")
        return max(value, _NEVER)

    def _complete(self, unigrams: dict) -> None:
        unigrams.setdefault((BOUNDARY,), Entry(_NEVER * _LN_10))
        missing = [name for name, label in self.ids.items() if (label,) not in unigrams]
        if missing and self.unknown is None:
            raise UserError(
                f"{self.path} has neither a unigram of the label {missing[0]!r} nor <unk>: add one, or estimate the "
                "n-grams on text that has it"
            )
        for name in missing:
            unigrams[(self.ids[name],)] = Entry(self.unknown.log_prob)

    def _refuse(self, line: _Line, what: str) -> None:
        raise UserError(f"{self.path}, line {line[0]}: {what}, not {line[1][:60]!r}")
