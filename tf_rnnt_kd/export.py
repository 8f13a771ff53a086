"""`python -m tf_rnnt_kd.export --checkpoint DIR --output DIR`: a SavedModel that needs nothing but TensorFlow."""

from absl import flags

from tf_rnnt_kd.errors import run_command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the trained model.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the SavedModel; must not exist.", required=True)
_CHUNK = flags.DEFINE_integer("chunk", None, "Frames of 40 ms heard at once, of those the model was trained on.", 1)

_SECOND_PASS = flags.DEFINE_bool("second_pass", False, "Export what a cascade hears with full context: no stream.")


def main(argv):
    """Exports, unless the same model has been exported to the same place."""
    del argv
    from tf_rnnt_kd.serving.saved_model import export_checkpoint

    export_checkpoint(_CHECKPOINT.value, _OUTPUT.value, chunk=_CHUNK.value, second_pass=_SECOND_PASS.value)
    print(f"exported to {_OUTPUT.value}")


if __name__ == "__main__":
    run_command(main)
