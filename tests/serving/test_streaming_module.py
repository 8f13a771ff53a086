"""A stream says what the whole utterance says, however it is cut."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import networks
from tf_rnnt_kd.serving.streaming_module import OfflineModule, StreamingModule


@pytest.fixture(scope="module", params=[1, 3], ids="chunk{}".format)
def chunk(request):
    return request.param


@pytest.fixture(scope="module")
def signatures(chunk):
    return StreamingModule(networks.transducer(causal=True, chunk=chunk), networks.PIECES).signatures()


def _transcribe(signatures, samples):
    samples = np.atleast_2d(samples)
    lengths = tf.fill([len(samples)], samples.shape[1])
    return signatures["transcribe"](samples=tf.constant(samples), num_samples=lengths)["text"].numpy().tolist()


def _initial_state(signatures, batch_size):
    return {name: tf.repeat(tensor, batch_size, axis=0) for name, tensor in signatures["initial_state"]().items()}


def _stream(signatures, samples, cuts):
    samples = np.atleast_2d(samples)
    state = _initial_state(signatures, len(samples))
    texts, labels = [b""] * len(samples), [[] for _ in samples]
    chunks = [samples[:, start:end] for start, end in itertools.pairwise(cuts)]
    steps = [(signatures["step"], {"samples": tf.constant(chunk)}) for chunk in chunks]
    for call, inputs in [*steps, (signatures["flush"], {})]:
        outputs = dict(call(**inputs, **state))
        texts = [text + new for text, new in zip(texts, outputs.pop("text").numpy(), strict=True)]
        new_labels, lengths = outputs.pop("labels").numpy(), outputs.pop("num_labels").numpy()
        assert new_labels.shape[1] == lengths.max()
        labels = [row + new[:n].tolist() for row, new, n in zip(labels, new_labels, lengths, strict=True)]
        state = outputs
    return [text.strip() for text in texts], labels, state


@pytest.mark.parametrize("seed", range(3))
def test_random_chunks_give_the_offline_text(signatures, seed):
    samples = networks.noise(2.3, seed)
    texts, labels, _ = _stream(signatures, samples, networks.random_cuts(len(samples), seed))
    assert texts == _transcribe(signatures, samples)
    assert len(texts[0].decode()) > 5
    assert "".join(networks.PIECES[label] for label in labels[0]).strip() == texts[0].decode()


def test_sessions_of_a_batch_do_not_disturb_each_other(signatures):
    samples = np.stack([networks.noise(1.5, seed) for seed in (3, 4, 5)])
    texts, _, _ = _stream(signatures, samples, [0, 5_000, 5_001, 20_000, samples.shape[1]])
    assert texts == [_transcribe(signatures, row)[0] for row in samples]
    assert len(set(texts)) == 3


def test_padding_does_not_change_the_offline_text(signatures):
    samples = networks.noise(1.5, seed=3)
    padded = np.concatenate([samples, np.full([9_000], np.nan, np.float32)])
    found = signatures["transcribe"](samples=tf.constant(padded[None]), num_samples=tf.constant([len(samples)]))
    assert found["text"].numpy().tolist() == _transcribe(signatures, samples)


@pytest.mark.parametrize("num_samples", [0, 1, 320, 879])
def test_audio_shorter_than_a_frame_has_no_text(signatures, num_samples):
    samples = networks.noise(1.0)[:num_samples]
    assert _transcribe(signatures, samples[None]) == [b""]
    assert _stream(signatures, samples[None], [0, num_samples])[0] == [b""]


@pytest.mark.parametrize("num_samples", [880, 1519, 1520, 16_000])
def test_frame_boundaries_and_silence_give_the_offline_text(signatures, num_samples):
    for samples in (networks.noise(1.0, seed=6)[:num_samples], np.zeros([num_samples], np.float32)):
        cuts = [0, num_samples // 2, num_samples - 1, num_samples]
        assert _stream(signatures, samples, cuts)[0] == _transcribe(signatures, samples)


def test_pending_samples_are_fewer_than_a_chunk_needs(signatures, chunk):
    samples = networks.noise(1.0)
    state = dict(signatures["initial_state"]())
    for start in range(0, 16_000, 1_234):
        outputs = signatures["step"](samples=tf.constant(samples[None, start : start + 1_234]), **state)
        state = {name: outputs[name] for name in state}
        assert outputs["pending"].shape[1] < 640 * chunk + 240


def test_flush_gives_the_state_of_a_new_session(signatures):
    _, _, state = _stream(signatures, networks.noise(1.0), [0, 9_999, 16_000])
    fresh = signatures["initial_state"]()
    assert sorted(state) == sorted(fresh)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, fresh[name])


def test_state_keeps_its_shape_from_step_to_step(signatures):
    state = _initial_state(signatures, 2)
    outputs = signatures["step"](samples=tf.constant(np.stack([networks.noise(0.3)] * 2)), **state)
    for name, tensor in state.items():
        assert outputs[name].dtype == tensor.dtype
        assert name == "pending" or outputs[name].shape == tensor.shape


def test_full_context_model_offers_whole_utterances_only():
    module = OfflineModule(networks.transducer(causal=False), networks.PIECES)
    assert list(module.signatures()) == ["transcribe"]


def test_module_lists_every_variable():
    model = networks.transducer(causal=True)
    module = OfflineModule(model, networks.PIECES)
    assert len(module.variables) == len(model.weights)
