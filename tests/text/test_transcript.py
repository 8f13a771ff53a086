"""Labels become the words of their text, with times and confidences of their own labels."""

import math

import numpy as np
import pytest

from tf_rnnt_kd.text.transcript import Transcript, Word, group_words

PIECES = ["", " ", "A", "B", " ONE", " TWO", "É", "'S", "X Y"]


def _words(labels, frames=None, log_probs=None):
    frames = range(len(labels)) if frames is None else frames
    log_probs = [0.0] * len(labels) if log_probs is None else log_probs
    return group_words(labels, list(frames), log_probs, PIECES, seconds_per_frame=0.04)


def test_random_labels_give_the_words_of_their_text():
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels = rng.integers(1, len(PIECES), rng.integers(0, 12)).tolist()
        assert [word.text for word in _words(labels)] == "".join(PIECES[label] for label in labels).split()


def test_times_are_from_the_first_label_to_the_end_of_the_last():
    words = _words([4, 7, 5], frames=[3, 5, 9])
    assert [word.text for word in words] == ["ONE'S", "TWO"]
    np.testing.assert_allclose([word[1:3] for word in words], [[0.12, 0.24], [0.36, 0.40]])


def test_spaces_that_are_labels_belong_to_no_word():
    words = _words([1, 2, 1, 1, 3, 1], frames=[0, 10, 20, 21, 30, 40], log_probs=[-9, -0.5, -9, -9, -0.25, -9])
    assert [(word.text, word.confidence) for word in words] == [("A", math.exp(-0.5)), ("B", math.exp(-0.25))]
    assert words[1].start == pytest.approx(1.2) and words[1].end == pytest.approx(1.24)


def test_confidence_is_the_product_of_the_labels_probabilities():
    (word,) = _words([2, 3, 6], log_probs=np.log([0.5, 0.8, 0.9]).tolist())
    assert word.confidence == pytest.approx(0.36)


def test_a_transcript_grows_by_chunks():
    transcript = Transcript(PIECES, 0.04)
    assert transcript.text == "" and transcript.words == []
    transcript.extend([4], [2], [-1.0], -3.0)
    transcript.extend([7, 5], [4, 6], [0.0, 0.0], -2.0)
    assert transcript.text == "ONE'S TWO" and transcript.score == -5.0
    assert transcript.words == [Word("ONE'S", 0.08, 0.2, math.exp(-1.0)), Word("TWO", 0.24, 0.28, 1.0)]
