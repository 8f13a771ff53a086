"""TensorFlow Serving's PredictionService around an export, by bare TensorFlow. Usage: prediction_server.py NAME EXPORT.

Prints the port of the loopback interface on which it listens. It knows nothing of sessions: clients send their state.
"""

import sys
from concurrent import futures

sys.modules["tf_rnnt_kd"] = sys.modules["tensorflow_text"] = sys.modules["sentencepiece"] = None  # importing them fails

import grpc  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, name, export):
        self._name, self._loaded = name, tf.saved_model.load(export)

    def Predict(self, request, context):
        spec = request.model_spec
        if spec.name != self._name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no model {spec.name!r}")
        if spec.signature_name not in self._loaded.signatures:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"there is no signature {spec.signature_name!r}")
        signature = self._loaded.signatures[spec.signature_name]
        try:
            inputs = _checked({n: tf.make_ndarray(proto) for n, proto in request.inputs.items()}, signature)
            outputs = signature(**inputs)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse(model_spec=spec)
        for name, values in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(values.numpy()))
        return response


def _checked(arrays, signature):
    """The inputs as tensors, if they are those of the signature."""
    wanted = signature.structured_input_signature[1]
    if wanted.keys() != arrays.keys():
        raise ValueError(f"inputs {sorted(arrays)} are not {sorted(wanted)}")
    for name, spec in wanted.items():
        if spec.dtype != arrays[name].dtype or not spec.shape.is_compatible_with(arrays[name].shape):
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, not {spec.dtype.name} {spec.shape}")
    return {name: tf.constant(array) for name, array in arrays.items()}


def main(name, export):
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Service(name, export), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
