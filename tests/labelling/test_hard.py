import numpy as np
import pytest
import tensorflow as tf

from tests import tiny, toy
from tf_rnnt_kd.decoding.greedy import greedy_search
from tf_rnnt_kd.features.log_mel import log_mel, num_log_mel_frames
from tf_rnnt_kd.labelling.hard import make_labeller


@pytest.fixture(scope="module")
def model():
    return tiny.talkative()


@pytest.fixture(scope="module")
def label(model):
    return make_labeller(model)


@pytest.fixture(scope="module")
def audio():
    return [utterance.load() for utterance in toy.tone_utterances(num_utterances=5, seed=4)]


@pytest.fixture(scope="module")
def alone(model):
    """Greedy search over one utterance without any padding."""

    @tf.function(input_signature=[tf.TensorSpec([None])], autograph=False)
    def search(samples):
        features = log_mel(samples[None])
        whole = tf.shape(features)[1] // 4 * 4
        encoded, num_frames = model.encode(features[:, :whole], whole[None])
        steps = {"join": model.join, "initial_prediction": model.initial_prediction}
        found = greedy_search(encoded, num_frames, step_prediction=model.step_prediction, **steps)
        labels = found.labels[:, : found.num_labels[0]]
        return encoded[0], labels[0], found.scores[0], model.predict_labels(labels)[0]

    return lambda samples: [value.numpy() for value in search(samples / 32768.0)]


def test_a_batch_gives_what_each_utterance_gives_alone(alone, label, audio):
    result = label(audio)
    assert len(set(result.num_labels)) > 1 and result.labels.shape[1] == result.num_labels.max()
    for i, samples in enumerate(audio):
        encoded, labels, score, predicted = alone(samples)
        t, u = result.num_frames[i], result.num_labels[i]
        assert t == num_log_mel_frames(len(samples)) // 4 == len(encoded)
        np.testing.assert_array_equal(result.labels[i, :u], labels)
        np.testing.assert_allclose(result.scores[i], score, rtol=1e-4)
        np.testing.assert_allclose(result.encoded[i, :t], encoded, atol=1e-4)
        np.testing.assert_allclose(result.predicted[i, : u + 1], predicted, atol=1e-5)


def test_hypotheses_hold_no_blank_and_scores_are_log_probabilities(label, audio):
    result = label(audio)
    for labels, count in zip(result.labels, result.num_labels, strict=True):
        assert np.all(labels[:count] > 0) and not np.any(labels[count:])
    assert np.all(result.scores < 0.0) and np.all(np.isfinite(result.scores))


def test_labelling_is_without_dropout(label, audio):
    first, second = label(audio), label(audio)
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_samples", [0, 100, 399, 800])
def test_audio_of_less_than_a_frame_has_an_empty_hypothesis(label, audio, num_samples):
    short = np.ones(num_samples, np.int16)
    for batch in ([short], [audio[0], short]):
        result = label(batch)
        assert (result.num_frames[-1], result.num_labels[-1], result.scores[-1]) == (0, 0, 0.0)
        assert result.predicted.shape[1] == result.labels.shape[1] + 1


def test_a_silent_teacher_says_nothing(audio):
    model = tiny.transducer()
    model.joint.bias.assign([50.0, 0, 0, 0, 0, 0])
    result = make_labeller(model)(audio)
    assert result.labels.shape == (5, 0) and result.predicted.shape[:2] == (5, 1)
    np.testing.assert_array_equal(result.num_labels, 0)
