"""A client of TensorFlow Serving's PredictionService, and the process that it talks to."""

import contextlib
import itertools
import pathlib
import subprocess
import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

_SERVER = pathlib.Path(__file__).with_name("prediction_server.py")
MODEL = "student"


class Client:
    """One connection; its `signatures` are called as those of a loaded export are."""

    def __init__(self, port, model=MODEL):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)])
        self._stub, self._model = prediction_service_pb2_grpc.PredictionServiceStub(self.channel), model

    def predict(self, signature, **inputs):
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model, signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        return {name: tf.make_ndarray(proto) for name, proto in self._stub.Predict(request, timeout=60).outputs.items()}

    def stream(self, samples, cuts):
        """The text of a session in chunks between the cuts."""
        state, text = self.predict("initial_state"), b""
        for start, end in itertools.pairwise(cuts):
            heard = self.predict("step", samples=samples[None, start:end], **state)
            state, text = {name: heard[name] for name in state}, text + heard["text"][0]
        return (text + self.predict("flush", **state)["text"][0]).decode().strip()


@contextlib.contextmanager
def serving(export):
    """Yields the port of a server of its own process."""
    command = [sys.executable, "-I", str(_SERVER), MODEL, str(export)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
