"""`python -m tf_rnnt_kd.export --checkpoint DIR --output DIR`: a SavedModel that needs nothing but TensorFlow.

With --tflite, a TFLite file of builtin operations for devices instead.
"""

from absl import flags

from tf_rnnt_kd.errors import run_command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the trained model.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the export; must not exist.", required=True)
_CHUNK = flags.DEFINE_integer("chunk", None, "Frames of 40 ms heard at once, of those the model was trained on.", 1)
_BEAM = flags.DEFINE_integer("beam", 8, "Hypotheses of the SavedModel's signature nbest.", 1)
_TFLITE = flags.DEFINE_enum("tflite", None, ("float32", "int8"), "In the folder a TFLite file, with these weights.")
_STEP_FRAMES = flags.DEFINE_integer("step_frames", 16, "Frames of 40 ms that a step of the TFLite file hears.", 1)
_SECOND_PASS = flags.DEFINE_bool("second_pass", False, "Export what a cascade hears with full context: no stream.")


def main(argv):
    """Exports, unless the same model has been exported to the same place."""
    del argv
    from tf_rnnt_kd.serving.lite_model import export_lite_checkpoint
    from tf_rnnt_kd.serving.saved_model import export_checkpoint

    heard = {"chunk": _CHUNK.value, "second_pass": _SECOND_PASS.value}
    if _TFLITE.value:
        is_new = export_lite_checkpoint(
            _CHECKPOINT.value, _OUTPUT.value, weights=_TFLITE.value, step_frames=_STEP_FRAMES.value, chunk=_CHUNK.value
        )
    else:
        is_new = export_checkpoint(_CHECKPOINT.value, _OUTPUT.value, beam=_BEAM.value, **heard)
    print(f"exported to {_OUTPUT.value}" if is_new else f"{_OUTPUT.value}: there already, of the same weights")


if __name__ == "__main__":
    run_command(main)
