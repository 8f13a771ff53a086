"""`python -m tf_rnnt_kd.label --checkpoint DIR --records DIR --output DIR`: a teacher's transcripts and lattices."""

from absl import flags

from tf_rnnt_kd.errors import run_command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the teacher: a generation of a run.", required=True)
_RECORDS = flags.DEFINE_string("records", None, "Record set of the audio.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the new record set.", required=True)
_CODEC = flags.DEFINE_enum(
    "codec", "factored", ["transcripts", "factored", "lattice"], "What of the teacher is stored."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "Of stored targets; bfloat16: half.")
_FEATURES = flags.DEFINE_enum("features", "none", ["none", "uint8", "uint16"], "Stored in place of the audio.")
_REMAKE = flags.DEFINE_bool("remake", False, "Label again what another teacher, other audio or other settings made.")


def main(argv):
    """Labels one record set; goes on with an unfinished one."""
    del argv
    from tf_rnnt_kd.labelling.records import label_folder

    codec = None if _CODEC.value == "transcripts" else _CODEC.value
    features = None if _FEATURES.value == "none" else _FEATURES.value
    folders = _CHECKPOINT.value, _RECORDS.value, _OUTPUT.value
    label_folder(*folders, codec=codec, dtype=_DTYPE.value, features=features, remake=_REMAKE.value)


if __name__ == "__main__":
    run_command(main)
