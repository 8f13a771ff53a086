import itertools
import math

import numpy as np
import pytest

from tests.oracles import ngrams as oracle
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text.ngrams import estimate_ngrams, log_prob

_V = 4
SENTENCES = [(1, 2, 1, 3), (1, 2), (), (2, 2, 2), (3,), (1, 2, 1, 3)]


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def order(request):
    return request.param


def test_every_listed_probability_is_that_of_the_counts(order):
    ngrams = estimate_ngrams(SENTENCES, order, _V)
    assert len(ngrams) == order and all(ngrams)
    for gram, entry in ((gram, entry) for table in ngrams for gram, entry in table.items()):
        wanted = oracle.witten_bell(SENTENCES, gram[:-1], gram[-1], len(gram), _V)
        assert entry.log_prob == pytest.approx(math.log(wanted))


def test_a_sentence_weighs_the_product_of_its_labels_and_its_end(order):
    ngrams = estimate_ngrams(SENTENCES, order, _V)
    for sentence in [(), (1,), (3, 1, 2), (1, 2, 1, 3), (2,) * 7, (3, 3, 1)]:
        padded = (0, *sentence, 0)
        wanted = sum(
            math.log(oracle.witten_bell(SENTENCES, padded[:end], padded[end], order, _V))
            for end in range(1, len(padded))
        )
        assert log_prob(ngrams, sentence) == pytest.approx(wanted)


def test_what_may_follow_a_history_sums_to_one(order):
    ngrams = estimate_ngrams(SENTENCES, order, _V)
    for history in itertools.product(range(1, _V), repeat=3):
        ends = log_prob(ngrams, history)
        # P(h end) / P(end | h) = P(h …): what the next label adds to it is all but the end.
        longer = [log_prob(ngrams, (*history, label)) for label in range(1, _V)]
        assert ends < 0 and all(math.isfinite(value) for value in longer)
        total = sum(oracle.witten_bell(SENTENCES, (0, *history), label, order, _V) for label in range(_V))
        assert total == pytest.approx(1.0)


def test_labels_that_no_sentence_has_are_possible():
    unigrams = estimate_ngrams([(1,)], 2, 50)[0]
    assert len(unigrams) == 50 and np.exp([e.log_prob for e in unigrams.values()]).sum() == pytest.approx(1.0)
    assert unigrams[(1,)].log_prob > unigrams[(49,)].log_prob > -10


def test_sentences_that_are_empty_teach_their_end_and_none_at_all_are_refused():
    assert log_prob(estimate_ngrams([()] * 100, 3, _V), ()) > math.log(0.95)
    with pytest.raises(UserError, match="no sentence to estimate n-grams from"):
        estimate_ngrams([], 3, _V)
    with pytest.raises(UserError, match="order 0 has no label"):
        estimate_ngrams(SENTENCES, 0, _V)
