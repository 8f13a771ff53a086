"""An hour into a model with full context: a line with a way out, before anything is allocated."""

import resource

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import networks
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.serving import memory_needs
from tf_rnnt_kd.serving.recognizer import open_recognizer
from tf_rnnt_kd.serving.saved_model import export_model

_HOUR = 3_600 * 16_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An export with full context, two heads."""
    folder = str(tmp_path_factory.mktemp("whole") / "model")
    export_model(networks.transducer(causal=False), networks.tokenizer(), folder, model_hash="a-model", beam=2)
    return open_recognizer(folder)


def _silence(num_samples):
    return np.broadcast_to(np.float32(0.0), [num_samples])  # takes no memory


def test_an_hour_is_refused_with_a_way_out(whole, monkeypatch):
    monkeypatch.setattr(memory_needs, "free_bytes", lambda: 16_000_000_000)
    for listen in (whole.transcribe, whole.nbest):
        with pytest.raises(
            UserError,
            match=r"^audio of 60\.0 minutes needs about \d{3}\.\d GB of memory, and 16\.0 GB are free: a model with "
            "full context hears all of it at once; cut it, or take a streaming export$",
        ):
            listen(_silence(_HOUR))
    assert whole.transcribe(networks.noise(1.0)).text


def test_a_streaming_export_has_no_such_limit(exported, monkeypatch):
    monkeypatch.setattr(memory_needs, "free_bytes", lambda: 0)
    assert open_recognizer(str(exported)).transcribe(networks.noise(1.0)).text


def test_a_device_that_has_no_memory_left_says_the_same(whole, monkeypatch):
    def exhaust(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9,9]")

    monkeypatch.setattr(whole, "_hear", exhaust)
    with pytest.raises(UserError, match="audio of 0.0 minutes needs more memory than there is: .*cut it"):
        whole.transcribe(networks.noise(1.0))


def test_free_memory_is_the_least_of_the_limits(monkeypatch):
    assert 1e6 < memory_needs.free_bytes() < 1e14
    monkeypatch.setattr(memory_needs.resource, "getrlimit", lambda _: (0, resource.RLIM_INFINITY))
    assert memory_needs.free_bytes() < 0
    monkeypatch.undo()
    monkeypatch.setattr(memory_needs, "_group", lambda: iter([12_345]))
    assert memory_needs.free_bytes() == 12_345
