"""A stream says what the whole utterance says, however it is cut.

Cases are loops inside tests: the seeds that every test sets empty TensorFlow's caches of prepared functions.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import networks, sessions
from tf_rnnt_kd.serving.streaming_module import StreamingModule


@pytest.fixture(scope="module", params=[1, 3], ids="chunk{}".format)
def chunk(request):
    return request.param


@pytest.fixture(scope="module")
def signatures(chunk):
    return StreamingModule(networks.transducer(causal=True, chunk=chunk), networks.PIECES, beam=2).signatures()


def _transcribe(signatures, samples):
    samples = np.atleast_2d(samples)
    lengths = tf.fill([len(samples)], samples.shape[1])
    return signatures["transcribe"](samples=tf.constant(samples), num_samples=lengths)["text"].numpy().tolist()


def _stream(signatures, samples, cuts):
    samples = np.atleast_2d(samples)
    state = sessions.initial_state(signatures, len(samples))
    texts, found = [b""] * len(samples), {"labels": [], "frames": [], "label_log_probs": []}
    chunks = [samples[:, start:end] for start, end in itertools.pairwise(cuts)]
    steps = [(signatures["step"], {"samples": tf.constant(chunk)}) for chunk in chunks]
    for call, inputs in [*steps, (signatures["flush"], {})]:
        outputs = call(**inputs, **state)
        texts = [text + new for text, new in zip(texts, outputs["text"].numpy(), strict=True)]
        assert outputs["labels"].shape[1] == max(outputs["num_labels"]) and not any(outputs["error"].numpy())
        for name, values in found.items():
            values.extend(outputs[name][0, : outputs["num_labels"][0]].numpy().tolist())
        state = {name: outputs[name] for name in state}
    return [text.strip() for text in texts], found, state


def test_random_chunks_give_the_offline_transcript(signatures):
    for seed in range(3):
        samples = networks.noise(2.3, seed)
        texts, found, _ = _stream(signatures, samples, networks.random_cuts(len(samples), seed))
        whole = signatures["transcribe"](samples=tf.constant(samples[None]), num_samples=tf.constant([len(samples)]))
        assert texts == whole["text"].numpy().tolist()
        assert len(texts[0].decode()) > 5
        assert "".join(networks.PIECES[label] for label in found["labels"]).strip() == texts[0].decode()
        assert found["frames"] == whole["frames"][0].numpy().tolist()
        np.testing.assert_allclose(found["label_log_probs"], whole["label_log_probs"][0], atol=1e-3)


def test_sessions_that_share_a_batch_at_their_own_pace_give_the_offline_texts(signatures):
    utterances = [networks.noise(seconds, seed=i) for i, seconds in enumerate([1.3, 0.0, 2.2, 0.02, 0.9, 1.7, 0.5])]
    for seed in range(2):
        texts = sessions.serve(signatures, utterances, num_rows=3, seed=seed)
        assert texts == [_transcribe(signatures, samples)[0].decode() for samples in utterances]
        assert len(set(texts)) == 6


def test_bad_samples_end_their_own_session_only(signatures):
    rows = [networks.noise(1.5, seed) for seed in (3, 4, 5)]
    expected = [_transcribe(signatures, row)[0] for row in (rows[0], rows[1][9_000:], rows[2])]
    for value in (np.nan, np.inf, -np.inf):
        bad = [row[:9_000].copy() for row in rows]
        bad[1][4_321] = value
        heard, state = sessions.step(signatures, sessions.initial_state(signatures, 3), bad)
        assert heard["error"].numpy().tolist() == [b"", b"samples are not finite", b""]
        ended, _ = sessions.step(signatures, state, [row[9_000:] for row in rows], flush=range(3))
        assert ended["error"].numpy().tolist() == [b"", b"", b""]
        texts = [a + b for a, b in zip(heard["text"].numpy(), ended["text"].numpy(), strict=True)]
        assert [text.strip() for text in texts] == expected


def test_samples_out_of_scale_end_their_session_and_the_next_one_is_heard(signatures):
    good, bad = networks.noise(1.5, seed=3), networks.noise(1.5, seed=4)
    expected = [_transcribe(signatures, row)[0] for row in (good, bad[9_000:])]
    for value in (1e20, -3e38, 8.1, -8.1):
        spoiled = bad[:9_000].copy()
        spoiled[123] = value
        heard, state = sessions.step(signatures, sessions.initial_state(signatures, 2), [good[:9_000], spoiled])
        assert heard["error"].numpy().tolist() == [b"", b"samples reach beyond 8, where 1 is full scale"]
        assert heard["scores"][1] == 0.0 and heard["num_labels"][1] == 0
        ended, _ = sessions.step(signatures, state, [good[9_000:], bad[9_000:]], flush=range(2))
        texts = [a + b for a, b in zip(heard["text"].numpy(), ended["text"].numpy(), strict=True)]
        assert [text.strip() for text in texts] == expected
    spoiled[123] = 8.0
    heard, _ = sessions.step(signatures, sessions.initial_state(signatures, 1), [spoiled])
    assert heard["error"].numpy().tolist() == [b""]


def test_a_state_that_is_not_finite_ends_its_session_and_no_other_changes_by_a_bit(signatures):
    rows = [networks.noise(0.9, seed) for seed in (3, 4, 5)]
    _, before = sessions.step(signatures, sessions.initial_state(signatures, 3), [row[:9_000] for row in rows])
    fresh = signatures["initial_state"]()
    clean, _ = sessions.step(signatures, before, [row[9_000:] for row in rows])
    for name in [name for name, tensor in before.items() if tensor.dtype == tf.float32]:
        for value in (np.nan, np.inf, -np.inf):
            spoiled = before[name].numpy()
            spoiled[1].flat[-1] = value
            heard, state = sessions.step(signatures, {**before, name: spoiled}, [row[9_000:] for row in rows])
            assert heard["error"].numpy().tolist() == [b"", b"features, scores or state are not finite", b""]
            assert heard["text"].numpy()[1] == b"" and heard["num_labels"][1] == 0 and heard["scores"][1] == 0.0
            for key, tensor in heard.items():
                np.testing.assert_array_equal(tensor.numpy()[::2], clean[key].numpy()[::2][..., : tensor.shape[-1]])
            for key, tensor in state.items():
                np.testing.assert_array_equal(tensor[1], fresh[key][0])
        unheard, _ = sessions.step(signatures, {**before, name: spoiled}, [row[:0] for row in rows])
        assert unheard["error"].numpy().tolist() == [b"", b"features, scores or state are not finite", b""]


def test_counts_that_no_step_leaves_are_an_error_of_their_row(signatures):
    rows = [networks.noise(0.5, seed)[:8_000] for seed in (3, 4)]
    for change in ({"num_pending": -1}, {"num_pending": 1 << 30}, {"frame": 7}, {"encoder_0": -(1 << 31)}):
        state = {name: tensor.numpy() for name, tensor in sessions.initial_state(signatures, 2).items()}
        for name, value in change.items():
            state[name][1] = value
        heard, after = sessions.step(signatures, state, rows)
        assert heard["error"].numpy().tolist() == [b"", b"the state is none of this model's"]
        alone, _ = sessions.step(signatures, sessions.initial_state(signatures, 1), rows[:1])
        assert heard["text"].numpy()[0] == alone["text"].numpy()[0]
        assert after["num_pending"][1] == after["frame"][1] == 0


def test_a_length_beyond_the_samples_is_an_error_of_its_row(signatures):
    samples, lengths = tf.zeros([3, 8]), tf.constant([8, 9, -1])
    no = tf.constant([False] * 3)
    heard = signatures["step_sessions"](
        samples=samples, num_samples=lengths, reset=no, flush=no, **sessions.initial_state(signatures, 3)
    )
    for error in (heard["error"], signatures["transcribe"](samples=samples, num_samples=lengths)["error"]):
        assert error.numpy().tolist() == [b""] + 2 * [b"num_samples is not within samples"]


def test_a_reset_forgets_the_session_of_its_row_only(signatures):
    first, second = networks.noise(0.9, seed=3), networks.noise(0.9, seed=4)
    _, state = sessions.step(signatures, sessions.initial_state(signatures, 2), [first[:9_000]] * 2)
    heard, _ = sessions.step(signatures, state, [second] * 2, reset=[1], flush=[0, 1])
    alone, _ = sessions.step(signatures, sessions.initial_state(signatures, 1), [second], flush=[0])
    assert heard["text"].numpy()[1] == alone["text"].numpy()[0] != heard["text"].numpy()[0]


def test_sessions_of_a_batch_do_not_disturb_each_other(signatures):
    samples = np.stack([networks.noise(1.5, seed) for seed in (3, 4, 5)])
    texts, *_ = _stream(signatures, samples, [0, 5_000, 5_001, 20_000, samples.shape[1]])
    assert texts == [_transcribe(signatures, row)[0] for row in samples]
    assert len(set(texts)) == 3


def test_padding_does_not_change_the_offline_text(signatures):
    samples = networks.noise(1.5, seed=3)
    padded = np.concatenate([samples, np.full([9_000], np.nan, np.float32)])
    found = signatures["transcribe"](samples=tf.constant(padded[None]), num_samples=tf.constant([len(samples)]))
    assert found["text"].numpy().tolist() == _transcribe(signatures, samples)


def test_audio_shorter_than_a_frame_has_no_text(signatures):
    for num_samples in (0, 1, 320, 879):
        samples = networks.noise(1.0)[None, :num_samples]
        assert _transcribe(signatures, samples) == [b""]
        assert _stream(signatures, samples, [0, num_samples])[0] == [b""]


def test_frame_boundaries_silence_and_clipping_give_the_offline_text(signatures):
    clipped = np.clip(10 * networks.noise(1.0, seed=6), -1, 1)
    for num_samples in (880, 1_519, 1_520, 16_000):
        for samples in (networks.noise(1.0, seed=6), np.zeros([16_000], np.float32), clipped):
            cuts = [0, num_samples // 2, num_samples - 1, num_samples]
            assert _stream(signatures, samples[:num_samples], cuts)[0] == _transcribe(signatures, samples[:num_samples])


def test_flush_gives_the_state_of_a_new_session(signatures):
    _, _, state = _stream(signatures, networks.noise(1.0), [0, 9_999, 16_000])
    fresh = signatures["initial_state"]()
    assert sorted(state) == sorted(fresh)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, fresh[name])


def test_state_keeps_its_shape_from_step_to_step(signatures):
    state = sessions.initial_state(signatures, 2)
    outputs = signatures["step"](samples=tf.constant(np.stack([networks.noise(0.3)] * 2)), **state)
    for name, tensor in state.items():
        assert outputs[name].dtype == tensor.dtype
        assert outputs[name].shape == tensor.shape
