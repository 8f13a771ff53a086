"""`python -m tf_rnnt_kd.evaluate --checkpoint DIR --records DIR,DIR`: word error rates, and the hypotheses behind."""

import os

from absl import flags

from tf_rnnt_kd.errors import run_command
from tf_rnnt_kd.evaluation.normalisers import DEFAULT, NORMALISERS

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the trained model.", required=True)
_RECORDS = flags.DEFINE_string("records", None, "Folders of test records, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", "results.json", "Where the figures go; the hypotheses go beside them.")
_CHUNK = flags.DEFINE_integer("chunk", None, "Frames of 40 ms heard at once, of those the model was trained on.", 1)
_SECOND_PASS = flags.DEFINE_bool("second_pass", False, "Decode what a cascade hears with full context.")
_BEAM = flags.DEFINE_integer("beam", 1, "Hypotheses that the search keeps; 1 for greedy search.", 1, 64)
_SYNCHRONY = flags.DEFINE_enum(
    "synchrony", "frames", ["frames", "alignments"], "What the hypotheses of a beam have in common: t, or t + u."
)
_BLANK_PENALTY = flags.DEFINE_float("blank_penalty", 0.0, "Taken from the logit of blank: fewer deletions.")
_LM = flags.DEFINE_string("lm", None, "Language model over labels: folder of a trained one, or file of n-grams (ARPA).")
_LM_WEIGHT = flags.DEFINE_float("lm_weight", 0.3, "Of its log-probabilities.")
_ILM_WEIGHT = flags.DEFINE_float("ilm_weight", 0.0, "Of the transducer's internal language model, which is subtracted.")
_LENGTH_BONUS = flags.DEFINE_float("length_bonus", 0.0, "Added for each label, in nats.")
_NORMALISER = flags.DEFINE_enum(
    "normaliser", DEFAULT, list(NORMALISERS), "What does not count as an error; see evaluation/normalisers.py."
)
_LATENCY = flags.DEFINE_string(
    "latency",
    None,
    "Folder of a full-context teacher: measure delays against it, into latency.json beside the figures.",
)


def main(argv):
    """Decodes, writes and prints."""
    del argv
    from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint
    from tf_rnnt_kd.evaluation.fusion import Weights
    from tf_rnnt_kd.evaluation.report import format_table
    from tf_rnnt_kd.evaluation.systems import System, read_run, split_folders

    heard = {"chunk": _CHUNK.value, "second_pass": _SECOND_PASS.value}
    search = {"beam": _BEAM.value, "synchrony": _SYNCHRONY.value, "blank_penalty": _BLANK_PENALTY.value}
    search["language_model"] = _LM.value
    search["weights"] = Weights(_LM_WEIGHT.value if _LM.value else 0.0, _ILM_WEIGHT.value, _LENGTH_BONUS.value)
    search["normaliser"] = _NORMALISER.value
    records = split_folders(_RECORDS.value)
    evaluate_checkpoint(_CHECKPOINT.value, records, _OUTPUT.value, **heard, **search)
    name = os.path.basename(os.path.abspath(_CHECKPOINT.value))
    print(format_table([System(name, (read_run(_OUTPUT.value),))]))
    print(f"\nresults     {_OUTPUT.value}")
    if _LATENCY.value:
        from tf_rnnt_kd.evaluation.latency import evaluate_latency, format_latency

        output = os.path.join(os.path.dirname(_OUTPUT.value), "latency.json")
        measured = evaluate_latency(_CHECKPOINT.value, _LATENCY.value, records, output, chunk=_CHUNK.value)
        print("\n" + format_latency(measured))


if __name__ == "__main__":
    run_command(main)
