"""Exports a trained model as a SavedModel that needs nothing but TensorFlow.

python -m tf_rnnt_kd.export --checkpoint runs/student --output exported/student
"""

from absl import flags

from tf_rnnt_kd.errors import run_command
from tf_rnnt_kd.serving.saved_model import export_checkpoint

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the trained model.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the SavedModel; must not exist.", required=True)


def main(_) -> None:
    """Exports."""
    export_checkpoint(_CHECKPOINT.value, _OUTPUT.value)
    print(f"exported to {_OUTPUT.value}")


if __name__ == "__main__":
    run_command(main)
