"""The export behind TensorFlow Serving's protocol, over the wire, to a process that knows only TensorFlow."""

from concurrent import futures

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving", reason="the extra [serving] is not installed")
import grpc

from tests.serving import networks
from tests.serving.prediction_client import Client, serving


@pytest.fixture(scope="module")
def port(exported):
    with serving(exported) as port:
        yield port


@pytest.fixture
def client(port):
    client = Client(port)
    yield client
    client.channel.close()


def test_sessions_of_several_clients_give_the_offline_texts(port, client):
    audio = [networks.noise(seconds, seed=i) for i, seconds in enumerate([1.5, 0.0, 0.8, 0.02, 2.0])]
    whole = [client.predict("transcribe", samples=x[None], num_samples=np.array([len(x)], np.int32)) for x in audio]

    def session(i):
        other = Client(port)
        try:
            return other.stream(audio[i], networks.random_cuts(len(audio[i]), seed=i))
        finally:
            other.channel.close()

    with futures.ThreadPoolExecutor(3) as threads:
        texts = list(threads.map(session, range(len(audio))))
    assert texts == [outputs["text"][0].decode() for outputs in whole]
    assert len(texts[4]) > 5 and texts[1] == texts[3] == ""


def test_a_batch_of_sessions_goes_over_the_wire(client):
    state = {name: np.repeat(x, 2, axis=0) for name, x in client.predict("initial_state").items()}
    samples = np.stack([networks.noise(1.0, seed=1)] * 2)
    samples[1, 7] = np.nan
    rows = {"num_samples": np.array([16_000, 16_000], np.int32), "reset": np.array([False] * 2)}
    heard = client.predict("step_sessions", samples=samples, flush=np.array([True] * 2), **rows, **state)
    whole = client.predict("transcribe", samples=samples[:1], num_samples=rows["num_samples"][:1])
    assert heard["text"][0].strip() == whole["text"][0] != b""
    assert heard["text"][1] == b"" and heard["error"].tolist() == [b"", b"samples are not finite"]


def test_wrong_requests_are_errors_of_the_protocol_and_the_session_goes_on(port, client):
    state, samples = client.predict("initial_state"), networks.noise(0.3)[None]
    wrong = {name: x for name, x in state.items() if name != "frame"}
    for signature, inputs, code in (
        ("step", {"samples": samples, **wrong}, grpc.StatusCode.INVALID_ARGUMENT),
        ("step", {"samples": samples[0], **state}, grpc.StatusCode.INVALID_ARGUMENT),
        ("step", {"samples": samples.astype(np.float64), **state}, grpc.StatusCode.INVALID_ARGUMENT),
        ("step", {"samples": np.repeat(samples, 2, axis=0), **state}, grpc.StatusCode.INVALID_ARGUMENT),
        ("stop", {}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            client.predict(signature, **inputs)
        assert raised.value.code() == code
    stranger = Client(port, model="teacher")
    with pytest.raises(grpc.RpcError) as raised:
        stranger.predict("initial_state")
    stranger.channel.close()
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert client.predict("step", samples=samples, **state)["error"].tolist() == [b""]
