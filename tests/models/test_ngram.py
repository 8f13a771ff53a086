import math

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import ngrams as oracle
from tf_rnnt_kd.models.ngram import NgramModel
from tf_rnnt_kd.text.arpa import label_names, read_arpa, write_arpa
from tf_rnnt_kd.text.ngrams import Entry, estimate_ngrams

PIECES = ["", " ", "A", " B", "C"]
_V = len(PIECES)


def sentences(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, _V, rng.integers(0, 7)).tolist()) for _ in range(count)]


def walk(model, histories):
    """[B, U+1, V] scores along label sequences [B, U], one label at a time."""
    log_probs, state = model.initial(len(histories))
    rows = [log_probs]
    for label in np.asarray(histories, np.int32).T:
        log_probs, state = model.step(tf.constant(label), state)
        rows.append(log_probs)
    return np.stack(rows, 1)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_step_gives_what_a_slow_reader_of_the_file_finds(work_dir, order):
    path = str(work_dir / "lm.arpa")
    write_arpa(path, estimate_ngrams(sentences(), order, _V), PIECES)
    table, names = oracle.read_arpa(path), label_names(PIECES)
    histories = np.random.default_rng(1).integers(1, _V, [30, 8])
    found = walk(NgramModel(read_arpa(path, PIECES), _V), histories)
    for row, history in enumerate(histories):
        words = ["<s>", *(names[label] for label in history)]
        for place in range(len(history) + 1):
            wanted = [oracle.backed_off(table, words[: place + 1], name) for name in ("</s>", *names[1:])]
            np.testing.assert_allclose(found[row, place], wanted, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(2), 1.0, atol=1e-5)


def test_histories_that_a_pruned_file_has_left_out_do_not_matter():
    """No (2, 3), so the history of (2, 3, 4) ends in what is no bigram; (1, 2, 3) goes on from a node of its own."""
    half = Entry(math.log(0.5), -0.5)
    ngrams = [
        {(0,): Entry(-9.0, -1.0), **{(label,): Entry(-2.0 - label, -0.1 * label) for label in range(1, _V)}},
        {(1, 2): half},
        {(1, 2, 3): half},
        {(1, 2, 3, 4): Entry(-0.25)},
    ]
    model = NgramModel(ngrams, _V)
    found = walk(model, [[1, 2, 3, 4], [2, 3, 4, 1], [4, 1, 2, 4]])
    assert found[0, 0, 2] == pytest.approx(-1.0 - 4.0)
    assert found[0, 2, 3] == pytest.approx(half.log_prob)
    assert found[0, 3, 4] == pytest.approx(-0.25)
    assert found[0, 3, 2] == pytest.approx(-0.5 - 0.3 - 4.0)
    assert found[1, 2, 4] == pytest.approx(-0.3 - 6.0)
    assert found[2, 3, 3] == pytest.approx(half.log_prob)
    assert found[2, 3, 1] == pytest.approx(-0.5 - 0.2 - 3.0)


def test_rows_do_not_know_each_other_and_xla_gives_the_same():
    model = NgramModel(estimate_ngrams(sentences(), 4, _V), _V)
    histories = np.random.default_rng(2).integers(1, _V, [6, 5]).astype(np.int32)
    found = walk(model, histories)
    for row in range(6):
        np.testing.assert_array_equal(walk(model, histories[row : row + 1])[0], found[row])

    @tf.function(jit_compile=True, autograph=False)
    def compiled(labels):
        log_probs, state = model.initial(6)
        for place in range(5):
            log_probs, state = model.step(labels[:, place], state)
        return log_probs

    np.testing.assert_allclose(compiled(histories), found[:, -1], atol=1e-6)


def test_no_row_is_no_score():
    model = NgramModel(estimate_ngrams(sentences(), 3, _V), _V)
    log_probs, state = model.initial(0)
    assert log_probs.shape == (0, _V)
    assert model.step(tf.zeros([0], tf.int32), state)[0].shape == (0, _V)
