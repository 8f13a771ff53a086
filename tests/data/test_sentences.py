import itertools

import numpy as np
import pytest

from tf_rnnt_kd.data.sentences import batch_sentences, read_sentences
from tf_rnnt_kd.errors import UserError


def sentences(count=40, longest=30, seed=0):
    """Each of labels that no other has, so that rows tell where they come from."""
    lengths = np.random.default_rng(seed).integers(0, longest + 1, count)
    return [np.arange(length) + 1000 * (row + 1) for row, length in enumerate(lengths)]


def one_pass(rows, **options):
    """Batches up to the one that completes the first pass."""
    found, left = [], sum(max(1, -(-len(row) // options["max_labels"])) for row in rows)
    for batch in batch_sentences(rows, **options):
        found.append(batch)
        left -= len(batch.ends)
        if left <= 0:
            assert left == 0
            return found
    raise AssertionError


def pieces(batches):
    """(labels, ends) of every row."""
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    assert all(not np.any(labels[length:]) for labels, length, _ in rows)
    return [(tuple(labels[:length].tolist()), bool(end)) for labels, length, end in rows]


@pytest.mark.parametrize("max_labels", [7, 15, 1000])
def test_every_pass_has_every_label_once_in_rows_of_its_sentence(max_labels):
    rows = sentences()
    found = pieces(one_pass(rows, batch_labels=100, max_labels=max_labels, seed=3))
    assert sum(end for _, end in found) == len(rows)
    assert sorted(itertools.chain(*(labels for labels, _ in found))) == sorted(np.concatenate(rows))
    assert all(len(labels) <= max_labels and len({label // 1000 for label in labels}) <= 1 for labels, _ in found)
    assert all(len(labels) == max_labels for labels, end in found if not end)


def test_batches_keep_their_size_and_pad_little():
    batches = one_pass(sentences(400), batch_labels=300, max_labels=30, seed=1)
    assert all(batch.labels.size <= 300 for batch in batches)
    assert sum(batch.labels.size for batch in batches) < 1.2 * sum(batch.num_labels.sum() for batch in batches)
    assert all(batch.labels.shape[1] == batch.num_labels.max() for batch in batches)
    # A row that is longer than a batch is a batch of its own.
    assert {
        len(batch.ends) for batch in one_pass([np.ones(50), np.ones(50)], batch_labels=9, max_labels=50, seed=1)
    } == {1}


def test_a_later_start_reads_what_is_left():
    options = {"batch_labels": 60, "max_labels": 20, "seed": 5}
    whole = list(itertools.islice(batch_sentences(sentences(), **options), 50))
    rest = list(itertools.islice(batch_sentences(sentences(), **options, first=33), 17))
    for ours, theirs in zip(whole[33:], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    other = next(batch_sentences(sentences(), **{**options, "seed": 6}))
    assert pieces([other]) != pieces(whole[:1])


def test_a_file_is_read_as_transcripts(work_dir):
    path = work_dir / "text.txt"
    path.write_text("A-1\tMr. Jones, \u00e9tudes!\n\nin 1984 it was\nplain line\nB\ttwo\ttabs\n...\n", encoding="utf-8")
    assert read_sentences(str(path)) == ["MISTER JONES ETUDES", "PLAIN LINE", "TABS"]
    path.write_text("\ufeffFirst line\rA cup of co\u00adcoa\n\u00bd a cup\n\uff11 cup\nA\u2028B\n", encoding="utf-8")
    assert read_sentences(str(path)) == ["FIRST LINE", "A CUP OF COCOA", "A B"]
    path.write_bytes("one\ntwo\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"text\.txt, line 1: .* has the character U\+0000, which no text has: correct"):
        read_sentences(str(path))
    with pytest.raises(UserError, match="cannot read sentences from"):
        read_sentences(str(work_dir / "gone.txt"))
