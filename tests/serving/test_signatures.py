"""Malformed calls of an export's signatures, as a server would pass them on: refused, or an error of their row.

Nothing is broadcast, no call crashes, and what comes back is finite and a state to go on with.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import networks, sessions

_CASES = 320
_FIT = "inputs do not fit together: each of "
_FLOATS = (np.nan, np.inf, -np.inf, 1e20, -1e20, 3e38, 8.5, 1e-40, -0.0)
_INTEGERS = (-1, -(1 << 31), (1 << 31) - 1, 1 << 30, 880, 0)


@pytest.fixture(scope="module")
def signatures(exported):
    loaded = tf.saved_model.load(str(exported))
    yield loaded.signatures


@pytest.fixture(scope="module")
def calls(signatures):
    """Right inputs of each signature, for three rows in the middle of a session."""
    rows = [networks.noise(0.3, seed) for seed in (3, 4, 5)]
    _, state = sessions.step(signatures, sessions.initial_state(signatures, 3), [row[:2_300] for row in rows])
    state = {name: tensor.numpy() for name, tensor in state.items()}
    samples, num_samples = np.stack([row[2_300:] for row in rows]), np.full([3], len(rows[0]) - 2_300, np.int32)
    whole = {"samples": samples, "num_samples": num_samples}
    no = np.zeros([3], bool)
    return {
        "transcribe": whole,
        "nbest": whole,
        "step": {"samples": samples, **state},
        "flush": state,
        "step_sessions": {**whole, "reset": no, "flush": no, **state},
    }


def _reshape(rng, values):
    """The values in another shape: other rows, another rank, or other columns."""
    changes = [values[:0], values[:1], values[:2], np.concatenate([values, values]), values[0], values[None]]
    changes += [values[..., None], values.reshape(-1)]
    if values.ndim > 1:
        changes += [
            values[:, :1],
            np.concatenate([values, values], axis=1),
            values[..., :-1],
            np.swapaxes(values, 0, 1),
        ]
    return changes[rng.integers(len(changes))]


def _call(signature, inputs):
    return {
        name: tensor.numpy() for name, tensor in signature(**{n: tf.constant(x) for n, x in inputs.items()}).items()
    }


def test_inputs_of_other_shapes_are_refused(signatures, calls):
    rng, refused = np.random.default_rng(7), 0
    for _ in range(_CASES):
        signature = rng.choice(list(calls))
        right = calls[signature]
        name = rng.choice(list(right))
        wrong = _reshape(rng, right[name])
        if wrong.shape == right[name].shape or (name == "samples" and wrong.ndim == 2 and len(wrong) == 3):
            continue
        with pytest.raises(tf.errors.InvalidArgumentError, match=_FIT) as raised:
            _call(signatures[signature], {**right, name: wrong})
        assert name in raised.value.message
        refused += 1
    assert refused > _CASES // 2


def test_names_and_types_of_others_are_refused(signatures, calls):
    for signature, right in calls.items():
        for name, values in right.items():
            for inputs in ({n: x for n, x in right.items() if n != name}, {**right, "other": values}):
                with pytest.raises(TypeError, match="Binding inputs to tf.function failed"):
                    _call(signatures[signature], inputs)
            with pytest.raises(tf.errors.InvalidArgumentError, match="was expected to be"):
                _call(signatures[signature], {**right, name: values.astype(np.float64)})


def test_a_value_of_any_kind_is_an_error_of_its_row_or_heard(signatures, calls):
    rng, failed = np.random.default_rng(8), 0
    clean = {signature: _call(signatures[signature], right) for signature, right in calls.items()}
    for _ in range(_CASES):
        signature = rng.choice(list(calls))
        name = rng.choice([name for name, values in calls[signature].items() if values.dtype != bool])
        spoiled = calls[signature][name].copy()
        values = spoiled[1:2].reshape(-1)  # a view of the row
        values[rng.integers(len(values))] = rng.choice(_FLOATS if spoiled.dtype == np.float32 else _INTEGERS)
        found = _call(signatures[signature], {**calls[signature], name: spoiled})
        assert found["error"][[0, 2]].tolist() == [b"", b""]
        assert found["text"][[0, 2]].tolist() == clean[signature]["text"][[0, 2]].tolist()
        for output, tensor in found.items():
            if tensor.dtype == np.float32 and not (signature == "nbest" and output == "scores"):
                assert np.isfinite(tensor).all(), (signature, name, output)
        if found["error"][1]:
            failed += 1
            assert np.all(found["text"][1] == b"") and np.all(found["num_labels"][1] == 0)
            assert "num_pending" not in found or found["num_pending"][1] == found["frame"][1] == 0
    assert _CASES > failed > _CASES // 4
