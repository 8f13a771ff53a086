"""Audio in batches; what `recognize` finds is tested with its callers, on real networks."""

import numpy as np

from tf_rnnt_kd.decoding.offline import pad_audio, similar_lengths


def test_batches_are_of_similar_length_fit_and_hold_everything_once():
    lengths = [10, 500, 30, 60, 50, 40, 20]
    batches = list(similar_lengths(lengths, 100))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= 100 for batch in batches)
    assert max(map(len, batches)) > 1


def test_no_utterances_are_no_batches():
    assert list(similar_lengths([], 100)) == []


def test_audio_is_scaled_and_padded_with_silence():
    samples, num_samples = pad_audio([np.array([-32768, 16384], np.int16), np.array([], np.int16)])
    np.testing.assert_array_equal(samples, np.array([[-1.0, 0.5], [0.0, 0.0]], np.float32))
    np.testing.assert_array_equal(num_samples, [2, 0])
