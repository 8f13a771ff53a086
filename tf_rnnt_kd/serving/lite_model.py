"""Exports of a causal model as a TFLite file of builtin operations, for devices without TensorFlow."""

import os

import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import log_mel, mel_matrix
from tf_rnnt_kd.models.saving import find_hash, load_model
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.serving.export_folder import is_exported, write_export
from tf_rnnt_kd.serving.rows import are_finite
from tf_rnnt_kd.serving.streaming_module import OVERLAP, SAMPLES_PER_FRAME, hear, initial_network_state
from tf_rnnt_kd.text.tokenizer import Tokenizer

LITE_FILE = "model.tflite"
WEIGHTS = ("float32", "int8")


def export_lite_checkpoint(
    checkpoint: str, folder: str, *, weights: str = "float32", step_frames: int = 16, chunk: int | None = None
) -> bool:
    """Exports what `models.saving.save_model` wrote; an export of the same model that is there already is left alone.

    Returns whether there was none.

    Args:
      checkpoint: folder of the trained model.
      folder: of the export; made when the export is whole, never before.
      weights: one of `WEIGHTS`.
      step_frames: encoder frames of 40 ms that a step hears.
      chunk: encoder frames that see each other, for a model trained on several; None for its own.

    Raises:
      UserError: if there is no model, it does not stream, the chunk is none of its or does not fit into a step, or
        something else is at `folder`.
    """
    kind = {"kind": "tflite", "step_frames": step_frames, "weights": weights}
    if is_exported(checkpoint, folder, chunk=chunk, **kind):
        return False
    model, tokenizer = load_model(checkpoint, chunk=chunk)
    model_hash = find_hash(checkpoint)
    kind = {"weights": weights, "step_frames": step_frames}
    export_lite_model(model, tokenizer, folder, model_hash=model_hash, checkpoint=checkpoint, **kind)
    return True


def export_lite_model(
    model: Transducer,
    tokenizer: Tokenizer,
    folder: str,
    *,
    model_hash: str,
    weights: str,
    step_frames: int,
    checkpoint: str | None = None,
) -> None:
    """Writes the TFLite file; arguments as for `export_lite_checkpoint`."""
    if not model.causal:
        raise UserError(
            "a model with full context does not stream, and TFLite files are for streams: export a causal one"
        )
    if step_frames % model.encoder.chunk:
        raise UserError(
            f"a step of {step_frames} frames does not hold whole chunks of {model.encoder.chunk}: choose more"
        )

    def write(temporary: str) -> None:
        os.makedirs(temporary)
        with open(os.path.join(temporary, LITE_FILE), "wb") as file:
            file.write(convert(model, weights=weights, step_frames=step_frames))

    kind = {"kind": "tflite", "step_frames": step_frames, "weights": weights}
    write_export(folder, write, model, tokenizer, model_hash=model_hash, checkpoint=checkpoint, **kind)


def convert(model: Transducer, *, weights: str, step_frames: int) -> bytes:
    """The streaming step as a TFLite file of two signatures.

    `initial_state() -> state`; `step(samples [1, 640 n + 240], num_frames [1], **state)`: `labels`, `frames` (counted
    from the start of the step) and `label_log_probs` [1, L], of which `num_labels` [1] are real, `scores` [1], the next
    state, and `finite` [1]: where it is false the session ends, and neither its text nor its state is of use. The
    caller moves on by 640 samples a frame. `num_frames` is n, or less at the end of the audio, where zeros stand for
    the samples that are missing. Features are inside, spelling is not: strings are no builtin.

    Args:
      model: a causal transducer.
      weights: `float32`, or `int8` for matrices of 8 bits that meet activations quantized as they come.
      step_frames: n.
    """
    module = tf.Module()
    module.parameters = [variable.value for variable in model.weights]

    def initial_state():
        return initial_network_state(model, 1)

    def step(samples, num_frames, **state):
        # Times a one that the converter does not know: of a constant matrix it would make 8 bits, and then meet the
        # spectrum, whose bins lie many powers of ten apart, in 8 bits too.
        one = tf.cast(num_frames >= 0, tf.float32)
        features = log_mel(samples, one * mel_matrix())
        hypotheses, after = hear(model, features, num_frames, state)
        finite = are_finite([*state.values(), features, hypotheses.scores, *after.values()])
        return {**hypotheses._asdict(), **after, "finite": finite}

    spec = {
        "samples": tf.TensorSpec([1, SAMPLES_PER_FRAME * step_frames + OVERLAP], tf.float32, "samples"),
        "num_frames": tf.TensorSpec([1], tf.int32, "num_frames"),
        **{name: tf.TensorSpec(x.shape, x.dtype, name) for name, x in initial_state().items()},
    }
    module.initial_state = tf.function(initial_state, input_signature=[], autograph=False)
    module.step = tf.function(step, autograph=False)
    functions = [module.initial_state.get_concrete_function(), module.step.get_concrete_function(**spec)]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if weights == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()
