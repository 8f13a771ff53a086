"""Latency of networks whose delays are known."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.decoding.networks import scripted
from tests.toy import tone_utterances
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.decoding.offline import num_log_mel_frames
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation import latency
from tf_rnnt_kd.evaluation.latency import TimedWord, count_changed_words, pair_words, time_words
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.text.tokenizer import train_tokenizer

FRAMES = 20
SPOKEN = {2: " ", 3: "A", 5: "B", 9: " ", 10: "C"}
SAMPLES = FRAMES * 640 + 240


class Scripted:
    """A network that hears nothing but the number of the frame, and emits a letter where its script says."""

    blank_id, causal = 0, False

    def __init__(self, script, chunk=1, causal=True):
        network, self.pieces = scripted(script, FRAMES)
        self.causal, self.encoder = causal, types.SimpleNamespace(chunk=chunk)
        self._join_rows, self.step_prediction = network["join"], network["step_prediction"]
        self.initial_prediction = network["initial_prediction"]

    def join(self, encoded, predicted):
        shape = tf.broadcast_dynamic_shape(tf.shape(encoded)[:-1], tf.shape(predicted)[:-1])
        rows = [
            tf.reshape(tf.broadcast_to(x, [*tf.unstack(shape), x.shape[-1]]), [shape[0], -1, x.shape[-1]])
            for x in (encoded, predicted)
        ]
        return tf.reshape(self._join_rows(*rows), tf.concat([shape, [-1]], 0))

    def encode(self, features, num_features):
        return tf.tile(tf.eye(FRAMES)[None], [tf.shape(features)[0], 1, 1]), num_features // 4

    def predict_labels(self, labels):
        return tf.eye(tf.shape(labels)[1] + 1, sum(map(len, SPOKEN.values())) + 1)[None]

    def initial_encoder_state(self, batch_size):
        return (tf.zeros([batch_size], tf.int32),)

    def stream(self, features, state):
        n = tf.shape(features)[1] // 4
        return tf.one_hot(state[0][:, None] + tf.range(n), FRAMES), (state[0] + n,)


def late(script, frames):
    return {frame + frames: letters for frame, letters in script.items()}


def record(text="AB C"):
    pieces = Scripted(SPOKEN).pieces
    labels = np.array([pieces.index(letter) for letter in " " + text], np.int32)
    return Record("a", "", text, np.ones([SAMPLES], np.int16), labels)


def measure(student, records):
    tokenizer = types.SimpleNamespace(pieces=student.pieces)
    return latency.measure_latency(student, Scripted(SPOKEN, causal=False), tokenizer, records)


def test_the_samples_of_these_tests_are_as_many_frames():
    assert num_log_mel_frames(SAMPLES) == 4 * FRAMES


def test_a_forced_alignment_finds_the_frames_of_the_script():
    assert latency.make_aligner(Scripted(SPOKEN))(record()) == [2, 3, 5, 9, 10]


@pytest.mark.parametrize("delay", [0, 4, -2])
def test_known_delays_are_measured(delay):
    found = measure(Scripted(late(SPOKEN, delay)), [record(), record()])
    for name, count in (("word", 4), ("first_token", 2), ("last_token", 2)):
        figures = found[f"{name}_delay_ms"]
        assert figures["count"] == count
        assert {figures[key] for key in ("mean", "p5", "p50", "p95", "p99")} == {40.0 * delay}
    assert found["changed_words"] == 0 and found["shown_words"] == 4
    assert found["chunk_ms"] == 40.0 and found["chunk_compute_ms"]["count"] == 2 * FRAMES
    assert 0 < found["chunk_compute_ms"]["p50"] <= found["chunk_compute_ms"]["p99"] and found["real_time_factor"] > 0


def test_words_are_late_by_the_rest_of_their_chunk():
    found = measure(Scripted(SPOKEN, chunk=4), [record()])  # frames 3, 5 and 10 show at the end of 3, 7 and 11
    assert found["first_token_delay_ms"]["mean"] == 0.0  # frame 3; the space before it is no part of the word
    assert found["word_delay_ms"]["mean"] == 60.0 and found["last_token_delay_ms"]["mean"] == 40.0
    assert found["chunk_ms"] == 160.0 and found["chunk_compute_ms"]["count"] == FRAMES // 4


def test_only_words_heard_right_have_delays():
    found = latency.summarize_delays(
        [time_words([1, 2, 3], [0, 4, 6], ["", " A", "B", " C"])], [time_words([1, 2, 1], [1, 9, 9], ["", " A", "B"])]
    )
    assert found["word_delay_ms"] == {"count": 1, "mean": 200.0, "p5": 200.0, "p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert found["first_token_delay_ms"]["mean"] == 40.0 and found["last_token_delay_ms"] == {"count": 0}


def test_a_full_context_model_has_no_chunks_and_nothing_has_no_delays():
    found = measure(Scripted(SPOKEN, causal=False), [record()])
    assert "chunk_compute_ms" not in found and found["word_delay_ms"]["mean"] == 0.0
    assert measure(Scripted(SPOKEN), [])["word_delay_ms"] == {"count": 0}


@pytest.mark.parametrize("causal", [False, True])
def test_what_the_teacher_cannot_align_is_counted_and_has_no_delays(causal):
    short = dataclasses.replace(record(), samples=np.ones([100], np.int16))  # not one frame
    assert latency.make_aligner(Scripted(SPOKEN))(short) == [-1] * 5
    alone, both = (measure(Scripted(late(SPOKEN, 4), causal=causal), r) for r in ([record()], [record(), short]))
    for name in ("word", "first_token", "last_token"):
        assert both[f"{name}_delay_ms"] == alone[f"{name}_delay_ms"]
    assert (alone["unaligned_utterances"], both["unaligned_utterances"]) == (0, 1)
    rows = [line.split() for line in latency.format_latency({"test": both}).splitlines()]
    assert ["unaligned_utterances", "1"] in rows


def test_an_utterance_without_words_is_not_one_that_cannot_be_aligned():
    silent = dataclasses.replace(record(), text="", labels=np.zeros([0], np.int32))
    found = measure(Scripted(SPOKEN, causal=False), [silent])
    assert found["unaligned_utterances"] == 0 and found["word_delay_ms"] == {"count": 0}


def test_records_of_another_tokenizer_are_refused(work_dir):
    utterances = tone_utterances(num_utterances=2, seed=0)
    texts = [utterance.text for utterance in utterances] + ["XYZ"]
    other = train_tokenizer(texts, str(work_dir / "other"), kind="characters", vocabulary_size=None)
    own = tiny.tokenizer(work_dir / "own")
    for name, causal in (("model", True), ("teacher", False)):
        save_model(tiny.transducer(own.vocabulary_size, causal=causal), own, str(work_dir / name))
    for name, tokenizer in (("right", own), ("wrong", other)):
        tiny.write_set(work_dir / name, tokenizer, utterances)
    places = str(work_dir / "model"), str(work_dir / "teacher")
    words = f"wrong was made with tokenizer {other.hash[:12]}, not {own.hash[:12]}"
    with pytest.raises(UserError, match=words):
        folders = [str(work_dir / name) for name in ("right", "wrong")]
        latency.evaluate_latency(*places, folders, str(work_dir / "latency.json"))
    assert not (work_dir / "latency.json").exists()
    latency.evaluate_latency(*places, [str(work_dir / "right")], str(work_dir / "latency.json"))
    assert json.loads((work_dir / "latency.json").read_text())["sets"]["right"]["unaligned_utterances"] == 0


@pytest.mark.parametrize(
    ("labels", "frames", "expected"),
    [
        ([], [], []),
        ([1, 2, 3], [0, 4, 6], [("AB", 0, 4), ("C", 6, 6)]),
        ([2, 3], [1, 2], [("B", 1, 1), ("C", 2, 2)]),  # begins without a space
        ([4, 2, 4, 4, 2], [0, 1, 2, 3, 9], [("B", 1, 1), ("B", 9, 9)]),  # spaces of their own
        ([4], [3], []),
    ],
)
def test_words_are_timed_by_their_first_and_last_label(labels, frames, expected):
    assert time_words(labels, frames, ["", " A", "B", " C", " "]) == [TimedWord(*word) for word in expected]


def test_words_are_paired_in_order_and_by_text():
    reference, heard = ([TimedWord(w, i, i) for i, w in enumerate(t.split())] for t in ("A B C A D", "B C A A D"))
    pairs = pair_words(reference, heard)
    assert all(own.text == other.text for own, other in pairs) and len(pairs) >= 4
    assert all(a[0].first < b[0].first and a[1].first < b[1].first for a, b in itertools.pairwise(pairs))
    assert pair_words([], heard) == [] == pair_words(reference, [])


@pytest.mark.parametrize(
    ("partials", "changed"),
    [
        ([], 0),
        (["", "ONE", "ONE TWO"], 0),
        (["TW", "TWO"], 0),  # grows
        (["ONE TWO", "ONE"], 1),
        (["TO", "TWO ONE", "TWO SIX"], 2),
        (["A B C", "X"], 3),
    ],
)
def test_changed_words(partials, changed):
    assert count_changed_words(partials) == changed


def test_a_table_shows_every_measure_of_every_set():
    sets = {"clean": measure(Scripted(late(SPOKEN, 4)), [record()]), "empty": measure(Scripted(SPOKEN), [])}
    lines = latency.format_latency(sets).splitlines()
    assert lines[0].split() == ["latency", "clean", "empty"]
    row = next(line for line in lines if line.startswith("word_delay_ms"))
    assert "median 160" in row and row.endswith("-") and len(lines) == 1 + len(sets["clean"])
