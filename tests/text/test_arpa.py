import math
import random

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
    """A function that writes the file after replacements, old and new in turn, and reads it."""

    def read(*replacements):
        path, content = work_dir / "small.arpa", SMALL
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            assert old in content
            content = content.replace(old, new, 1)
        path.write_text(content, encoding="utf-8")
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
        small("1=5", "1=4", "-1.5\t\u2581B\n", "")


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
        ("-0.6\t</s>\t0", "-99\t<s>\t-1", "line 8: the n-gram stands there twice"),
        ("-0.7\tA", "0.3\tA", "line 10: '0.3' is the logarithm of a probability above one; one of 0 or less"),
        ("-0.1\t<s> A", "0.001\t<s> A", "line 14: '0.001' is the logarithm of a probability above one"),
        ("-0.1\t<s> A", "inf\t<s> A", "line 14: 'inf' is no logarithm of a probability"),
        ("-0.1\t<s> A", "-1e999\t<s> A", "line 14: '-1e999' is no logarithm of a probability"),
        ("-0.1\t<s> A", "-1_0\t<s> A", "line 14: '-1_0' is no logarithm of a probability"),
        ("\u2581\t-0.25", "\u2581\tnan", "line 9: 'nan' is no logarithm"),
        ("\u2581\t-0.25", "\u2581\t12", "line 9: '12' is no logarithm of a back-off weight"),
        ("\u2581\t-0.25", "\u2581\t0.7", "line 9: a back-off weight that leaves probabilities below one should stand"),
        ("ngram 1=5", "ngram 1=\u00b2", "line 3: 'ngram 1=COUNT' should stand here"),
        ("ngram 1=5", f"ngram 1={'9' * 5000}", "line 3: 'ngram 1=COUNT' should stand here"),
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


def test_a_byte_order_mark_is_no_part_of_the_text(small, work_dir):
    ngrams = small()
    for content in (SMALL, SMALL.lstrip()):
        (work_dir / "marked.arpa").write_text(content, encoding="utf-8-sig")
        assert read_arpa(str(work_dir / "marked.arpa"), PIECES) == ngrams


def test_a_probability_of_one_may_be_rounded_and_one_of_zero_is_never_less(small):
    assert small("-0.1\t<s> A", "0.00001\t<s> A")[1][(0, 2)].log_prob == 0.0
    assert small("-0.1\t<s> A", "-120\t<s> A")[1][(0, 2)].log_prob == pytest.approx(-99 * math.log(10))


def test_a_back_off_weight_above_one_is_read_where_no_probability_becomes_so(small):
    """Of what may follow a space all is less likely than 10^-0.6."""
    raised = small("\u2581\t-0.25", "\u2581\t0.5")
    assert log_prob(raised, (1,)) == pytest.approx(math.log(10) * (-0.5 - 1 + 0.5 - 0.6))
    # What is listed needs no back-off: after A all but its end is rarer than 10^-0.7.
    assert small("-0.7\tA", "-0.7\tA\t0.65")[0][(2,)].backoff == pytest.approx(0.65 * math.log(10))
    with pytest.raises(UserError, match="line 10: a back-off weight"):
        small("-0.7\tA", "-0.7\tA\t0.75")


def test_of_500_damaged_files_each_is_read_or_refused_in_one_line(work_dir):
    """What is read has no probability above one, anywhere."""
    whole = str(work_dir / "whole.arpa")
    write_arpa(whole, estimate_ngrams(SENTENCES, 3, len(PIECES)), PIECES)
    sources = [SMALL.encode(), (work_dir / "whole.arpa").read_bytes()]
    rng, path, read = random.Random(17), work_dir / "damaged.arpa", 0
    for _ in range(500):
        path.write_bytes(_damage(rng, rng.choice(sources)))
        try:
            ngrams = read_arpa(str(path), PIECES)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            scores = [log_prob(ngrams, sentence) for sentence in [(), (1,), (2,), (3, 2), (1, 2, 1, 3)]]
            assert all(math.isfinite(score) and score <= 0.03 * len(ngrams) for score in scores)
    assert 10 < read < 250


_STRANGE = "\t \n \0 \r nan inf 1e999 99 5 0.5 <s> </s> <unk> A \u2581 \\end\\ \\2-grams: \ufeff 1_0 \u00b2 \u2028 \x85"


def _damage(rng, content):
    """Something strange put in, something cut out, a byte changed, or a line moved."""
    place, strange = rng.randrange(len(content)), rng.choice(_STRANGE.split(" ")).encode()
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return rng.choice(
        [
            content[:place] + strange + content[place:],
            content[:place] + strange + content[place + len(strange) :],
            content[:place] + content[place + rng.randrange(1, 30) :],
            content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :],
            b"\n".join(lines),
        ]
    )
