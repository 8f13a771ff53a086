"""Text that other programs wrote: n-grams as ARPA files, and sentences."""

import math

import numpy as np

from tests.fuzz.core import Case, Door, Inconsistent, digest, one_of
from tests.fuzz.damage import damage_bytes, misplace
from tests.fuzz.texts import UNSEEN, damage_text
from tf_rnnt_kd.data.sentences import read_sentences
from tf_rnnt_kd.text.arpa import read_arpa, write_arpa
from tf_rnnt_kd.text.ngrams import estimate_ngrams

_PIECES = ["", " ", "A", "B", "C", "É"]


class _OneFile(Door):
    """A text file of which no byte is checked, only the form."""

    file: str
    nothing: tuple = ()  # what an empty file may be

    def case(self, rng, number):
        path = self.copied() / self.file
        kind = number % 5
        if kind == 0:
            return Case(misplace(rng, path, [path]), path, allowed=self.nothing)
        if kind == 1:
            what, data = damage_bytes(rng, path.read_bytes())
            excused = True
        elif kind == 2:
            what, data, excused = self._change(rng, path.read_bytes())
        else:
            what, data, excused = damage_text(rng, path.read_bytes())
        path.write_bytes(data)
        return Case(what, path, excused=excused)

    def open(self):
        return self.enter(self.folder / self.file)

    def _change(self, rng, data):
        return damage_text(rng, data)


class Arpa(_OneFile):
    """Trigrams of characters."""

    name, cases, file = "arpa", 600, "lm.arpa"

    def build(self):
        rng = np.random.default_rng(0)
        sentences = [rng.integers(1, len(_PIECES), 8).tolist() for _ in range(6)]
        write_arpa(str(self.folder / self.file), estimate_ngrams(sentences, 3, len(_PIECES)), _PIECES)

    def enter(self, given):
        ngrams = read_arpa(str(given), _PIECES)
        for table in ngrams:
            for gram, entry in table.items():
                if not entry.log_prob <= 1e-3 or not math.isfinite(entry.backoff) or math.isnan(entry.log_prob):
                    raise Inconsistent(f"{gram} has {entry}")
        return digest(*[repr(sorted(table.items())) for table in ngrams])

    def _change(self, rng, data):
        """Another number."""
        lines = data.decode().split("\n")
        places = [i for i, line in enumerate(lines) if "\t" in line or "=" in line]
        i = one_of(rng, places)
        value = one_of(rng, _NUMBERS)
        separator = "=" if "=" in lines[i] else "\t"
        fields = lines[i].split(separator)
        j = int(rng.integers(len(fields)))
        fields[j] = value
        lines[i] = separator.join(fields)
        return f"line {i + 1}: field {j} is {value[:20]!r}", "\n".join(lines).encode(), _is_possible(j, value)


def _is_possible(field: int, value: str) -> bool:
    if field == 2 and value in ("", "0.5", "1"):
        return True  # no back-off weight, or one above one where probabilities stay below
    return value == "<unk>" if field == 1 else value in _POSSIBLE


_POSSIBLE = ("0", "-1", "-99", "-1e-3", "-1.5", "-1e300")
_NUMBERS = (
    *_POSSIBLE, "nan", "inf", "-inf", "1", "0.5", "1e5", "1e999", "-1e999", "", "x", "0x10", "1_0", "\u0661",
    "--1", "1,5",
    "9" * 5000, "<s>", "</s>", "<unk>",
)  # fmt: skip


class Sentences(_OneFile):
    """Sentences of a language model."""

    name, cases, file, nothing = "sentences", 200, "text.txt", ([],)

    def build(self):
        lines = ["one two three", "1\tfour five", "É six seven", "the 8th", "nine"]
        (self.folder / self.file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def enter(self, given):
        read = read_sentences(str(given))
        for sentence in read:
            if any(character in sentence for character in (*UNSEEN, "\n", "\r", "\ufeff")):
                raise Inconsistent(f"{sentence[:80]!r} holds what nobody sees")
        return read

    def case(self, rng, number):
        case = super().case(rng, number)
        # Whatever is no letter parts two words here, also what nobody sees.
        return case._replace(excused=case.excused or case.what.startswith("unseen"))
