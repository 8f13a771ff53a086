"""Measures the streaming step of a Conformer S with random weights: SavedModel, TFLite float32 and int8, one thread.

    OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 python tools/bench_lite.py --step_frames 2,16

Prints, for each step size, the median of the CPU time of a step and the size of the file. Blank always wins: labels
cost little beside the encoder, and random weights would emit them without end.
"""

import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import numpy as np
from absl import flags

from tf_rnnt_kd.errors import run_command

_STEP_FRAMES = flags.DEFINE_list("step_frames", ["2", "16"], "Frames of 40 ms that a step hears.")
_STEPS = flags.DEFINE_integer("steps", 60, "Steps that are measured, after five that are not.", 1)
_LEFT_CONTEXT = flags.DEFINE_integer("left_context", 256, "Frames that attention looks back.", 1)
_VOCABULARY = 1024


def main(argv):
    """Exports and measures one after the other."""
    del argv
    from tf_rnnt_kd.serving.lite_model import LITE_FILE, export_lite_model
    from tf_rnnt_kd.serving.recognizer import open_recognizer
    from tf_rnnt_kd.serving.saved_model import export_model

    print(f"{'step':>8}{'export':>20}{'ms of CPU, median':>20}{'p95':>8}{'float32 / this':>16}{'MB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for frames in map(int, _STEP_FRAMES.value):
            model, tokenizer = _conformer_s(frames), _Tokenizer()
            times = {}
            for weights in ("float32", "int8"):
                path = os.path.join(folder, f"{weights}-{frames}")
                about = {"model_hash": "random", "weights": weights, "step_frames": frames}
                export_lite_model(model, tokenizer, path, **about)
                times[f"TFLite {weights}"] = (_measure(open_recognizer(path), frames), os.path.join(path, LITE_FILE))
            path = os.path.join(folder, f"saved-{frames}")
            export_model(model, tokenizer, path, model_hash="random")
            variables = os.path.join(path, "variables", "variables.data-00000-of-00001")
            times["SavedModel"] = (_measure(open_recognizer(path), frames), variables)
            _print(frames, times)


class _Tokenizer:
    hash, pieces = "random", ["", *(f" {i}" for i in range(1, _VOCABULARY))]


def _conformer_s(chunk):
    from tf_rnnt_kd.models.conformer import ConformerEncoder
    from tf_rnnt_kd.models.transducer import Transducer

    options = {"causal": True, "left_context": _LEFT_CONTEXT.value, "subsampling_channels": 432, "chunk": chunk}
    encoder = ConformerEncoder(144, 16, 4, 32, **options)
    model = Transducer(_VOCABULARY, encoder, prediction_width=320, joint_width=320)
    bias = np.zeros([_VOCABULARY], np.float32)
    bias[0] = 100.0
    model.joint.bias.assign(bias)
    return model


def _measure(recognizer, frames):
    """CPU milliseconds of each step, in a stream long enough for its context to be full."""
    rng, times = np.random.default_rng(0), []
    chunk = 640 * frames
    warm = 5 + -(-_LEFT_CONTEXT.value // frames)

    def chunks():
        for _ in range(warm + _STEPS.value):
            samples = (0.1 * rng.standard_normal(chunk)).astype(np.float32)
            times.append(time.process_time())
            yield samples

    for _ in recognizer.stream(chunks()):
        if times:
            times[-1] = time.process_time() - times[-1]
    return [1_000 * seconds for seconds in times[warm:-1]]


def _print(frames, times):
    base = statistics.median(times["TFLite float32"][0])
    for name, (milliseconds, path) in times.items():
        median, p95 = statistics.median(milliseconds), float(np.percentile(milliseconds, 95))
        size = os.path.getsize(path) / 1e6
        print(f"{40 * frames:5} ms{name:>20}{median:20.2f}{p95:8.2f}{base / median:16.2f}{size:7.1f}", flush=True)


if __name__ == "__main__":
    run_command(main)
