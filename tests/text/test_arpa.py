import math

import numpy as np
import pytest

from tests.oracles import ngrams as oracle
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text.arpa import label_names, read_arpa, write_arpa
from tf_rnnt_kd.text.ngrams import estimate_ngrams, log_prob

PIECES = ["", " ", "A", " B"]
SENTENCES = [(1, 2, 1, 3), (1, 2), (), (2, 2, 2), (3,), (1, 2, 1, 3)]

SMALL = """
\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-99\t<s>\t-0.5
-0.6\t</s>\t0
-1\t\u2581\t-0.25
-0.7\tA
-1.5\t\u2581B

\\2-grams:
-0.1\t<s> A
-0.2\tA </s>

\\end\\
"""


@pytest.fixture
def small(work_dir):
    """A function that writes the file after a replacement and reads it."""

    def read(old="", new=""):
        assert old in SMALL
        path = work_dir / "small.arpa"
        path.write_text(SMALL.replace(old, new, 1) if old else SMALL, encoding="utf-8")
        return read_arpa(str(path), PIECES)

    return read


def test_a_file_of_ones_own_means_what_it_says(small):
    ngrams = small()
    assert log_prob(ngrams, (2,)) == pytest.approx(math.log(10) * (-0.1 - 0.2))
    assert log_prob(ngrams, (1, 3)) == pytest.approx(math.log(10) * (-0.5 - 1 - 0.25 - 1.5 - 0.6))
    assert small("-99\t<s>", "0.0\t<s>") == ngrams  # the probability of the start is never asked for


@pytest.mark.parametrize("order", [1, 2, 3])
def test_what_is_written_comes_back_and_any_reader_finds_the_same(work_dir, order):
    ngrams, path = estimate_ngrams(SENTENCES, order, len(PIECES)), str(work_dir / "lm.arpa")
    write_arpa(path, ngrams, PIECES)
    read = read_arpa(path, PIECES)
    assert [list(table) for table in read] == [sorted(table) for table in ngrams]
    names = label_names(PIECES)
    table = oracle.read_arpa(path)
    for sentence in [(), (1, 2), (3, 3, 3), (2, 1, 3, 2)]:
        words = ["<s>", *(names[label] for label in sentence), "</s>"]
        # Of the start alone only the back-off is asked for.
        wanted = sum(oracle.backed_off(table, words[:end], words[end]) for end in range(1, len(words)))
        assert log_prob(read, sentence) == pytest.approx(wanted, abs=1e-5)
        assert log_prob(ngrams, sentence) == pytest.approx(wanted, abs=1e-5)


def test_no_label_has_a_space_and_all_names_differ(toy_tokenizer):
    names = label_names(toy_tokenizer.pieces)
    assert len(set(names)) == len(names) and not any(" " in name for name in names) and names.count("") == 1


def test_a_label_without_unigram_is_unknown(small):
    unknown = small("-1.5\t\u2581B", "-3\t<unk>")
    assert unknown[0][(3,)].log_prob == pytest.approx(-3 * math.log(10))
    with pytest.raises(UserError, match="neither a unigram of the label '\u2581B' nor <unk>"):
        small("-1.5\t\u2581B", "-1.5\t<s>")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "", r"has no line \\data\\: give an ARPA file"),
        ("ngram 1=5", "ngram 1=five", "line 3: 'ngram 1=COUNT' should stand here, not 'ngram 1=five'"),
        ("ngram 2=2", "ngram 3=2", "line 4: 'ngram 2=COUNT' should stand here"),
        ("ngram 1=5", "ngram 1=6", "has 5 1-grams, its head says 6"),
        ("ngram 2=2", "ngram 2=1", "has 2 2-grams, its head says 1"),
        ("\\1-grams:", "\\2-grams:", r"line 6: \\1-grams: should stand here"),
        ("\\end\\", "", "ends within its 2-grams: it is cut off"),
        ("\\end\\", "\\3-grams:", r"\\end\\ should stand here"),
        ("-0.1\t<s> A", "-0.1\t<s> Q", "line 14: 'Q' is no label of the tokenizer"),
        ("-0.1\t<s> A", "-0.1\tA <s>", "line 14: '<s>' is no label of the tokenizer"),
        ("-0.1\t<s> A", "-0.1\t<s>", "line 14: a probability and 2 labels should stand here"),
        ("-0.1\t<s> A", "-0.1\t<s> A\t-1\t3", "line 14: a probability and 2 labels"),
        ("-0.1\t<s> A", "-o.1\t<s> A", "'-o.1' is no logarithm of a probability"),
        ("-0.1\t<s> A", "nan\t<s> A", "'nan' is no logarithm"),
        ("-0.2\tA </s>", "-0.2\t<s> A", "line 15: the n-gram stands there twice"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(small, old, new, message):
    with pytest.raises(UserError, match=message):
        small(old, new)


def test_every_cut_is_noticed(small, work_dir):
    small()
    content = SMALL.encode()
    for end in np.linspace(0, len(content.rstrip()) - 1, 60).astype(int):
        (work_dir / "cut.arpa").write_bytes(content[:end])
        with pytest.raises(UserError):
            read_arpa(str(work_dir / "cut.arpa"), PIECES)


def test_files_that_are_missing_or_no_text_are_named(work_dir):
    with pytest.raises(UserError, match=r"cannot read n-grams from .*gone\.arpa"):
        read_arpa(str(work_dir / "gone.arpa"), PIECES)
    (work_dir / "binary.arpa").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read n-grams"):
        read_arpa(str(work_dir / "binary.arpa"), PIECES)
