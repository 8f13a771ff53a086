"""Checks that every export of a model says what `evaluate` says, on the user's own model and records.

    python tools/check_serving.py --checkpoint 'runs/…/streaming student' --records RECORDS/test,RECORDS/other --hour

Exports the checkpoint (SavedModel, TFLite float32 and int8), starts a server of TensorFlow Serving's protocol, and
compares texts utterance by utterance: whole, in random chunks, as sessions that share a batch, and on odd audio. Prints
one line a check and exits with 1 if any text differs but those of int8, whose WER it prints. Needs the extra [serving].
"""

import os
import resource
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import numpy as np
from absl import flags

from tf_rnnt_kd.errors import run_command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a causal model.", required=True)
_RECORDS = flags.DEFINE_list("records", None, "Record sets of speech.", required=True)
_STEP_FRAMES = flags.DEFINE_integer("step_frames", 16, "Frames of 40 ms that a step of the TFLite files hears.", 1)
_HOUR = flags.DEFINE_bool("hour", False, "Also hear an hour, whole and as streams, and watch the memory.")

_SECONDS = 16_000
_SEED = 1


class Table:
    """Prints each check as it is done and remembers whether one failed."""

    failed = False

    def compare(self, name, found, wanted, *, must=True, note=""):
        equal = sum(a == b for a, b in zip(found, wanted, strict=True))
        self.failed |= must and equal < len(wanted)
        print(f"{name:48}{equal:5} of {len(wanted):4}  {note}".rstrip(), flush=True)


def main(argv):
    """Compares, and exits with 1 if a text differs that should not."""
    del argv
    from tests.serving.prediction_client import serving
    from tf_rnnt_kd.serving.lite_model import export_lite_checkpoint
    from tf_rnnt_kd.serving.recognizer import open_recognizer
    from tf_rnnt_kd.serving.saved_model import export_checkpoint

    spoken, wanted, audio = _evaluate()
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        saved_model = os.path.join(folder, "savedmodel")
        export_checkpoint(_CHECKPOINT.value, saved_model)
        recognizer = open_recognizer(saved_model)
        _check_saved_model(table, recognizer, audio, wanted)
        lite = {}
        for weights in ("float32", "int8"):
            path = os.path.join(folder, weights)
            export_lite_checkpoint(_CHECKPOINT.value, path, weights=weights, step_frames=_STEP_FRAMES.value)
            lite[weights] = open_recognizer(path)
        _check_lite(table, lite, audio, wanted, spoken)
        with serving(saved_model) as port:
            _check_server(table, port, audio, wanted)
        _check_odd_audio(table, recognizer, lite["float32"], audio)
        if _HOUR.value:
            _check_hour(table, recognizer, lite["float32"], audio)
    sys.exit(1 if table.failed else 0)


def _evaluate():
    """What was spoken, what offline search hears, and the samples, of every utterance."""
    from tf_rnnt_kd.data.records import open_records
    from tf_rnnt_kd.evaluation.decode import evaluate_records
    from tf_rnnt_kd.models.saving import load_model

    model, tokenizer = load_model(_CHECKPOINT.value)
    sets = [open_records(folder) for folder in _RECORDS.value]
    heard = [transcription for records in sets for transcription in evaluate_records(model, tokenizer, records)]
    audio = [record.samples.astype("float32") / 32768.0 for records in sets for record in records.read()]
    print(f"{len(audio)} utterances, {sum(map(len, audio)) / _SECONDS:.0f} s of speech")
    return [item.reference for item in heard], [item.hypothesis for item in heard], audio


def _random_chunks(samples, seed):
    """Chunks of 0 to 30 000 samples, small ones as often as large ones."""
    rng, start = np.random.default_rng(seed), 0
    while start < len(samples):
        size = int(rng.choice([0, 1, 160, 1_280, 10_240, rng.integers(30_000)]))
        yield samples[start : start + size]
        start += size


def _last(transcripts):
    *_, transcript = transcripts
    return transcript


def _check_saved_model(table, recognizer, audio, wanted):
    from tests.serving.sessions import serve

    table.compare("SavedModel, whole", [recognizer.transcribe(x).text for x in audio], wanted)
    streamed = [_last(recognizer.stream(_random_chunks(x, seed))) for seed, x in enumerate(audio)]
    table.compare("SavedModel, random chunks", [heard.text for heard in streamed], wanted)
    words = [" ".join(word.text for word in heard.words) for heard in streamed]
    table.compare("  its words, joined", words, wanted)
    for num_rows in (2, 8):
        texts = serve(recognizer._signatures, audio, num_rows=num_rows, seed=_SEED, longest=30_000)
        table.compare(f"SavedModel, sessions in a batch of {num_rows}", texts, wanted)


def _check_lite(table, lite, audio, wanted, spoken):
    from tf_rnnt_kd.evaluation.wer import count_errors, sum_errors

    def wer(texts):
        return f"WER {sum_errors(map(count_errors, spoken, texts)).wer:.2f} %"

    for weights, recognizer in lite.items():
        start = time.process_time()
        texts = [_last(recognizer.stream(_random_chunks(x, seed))).text for seed, x in enumerate(audio)]
        seconds = time.process_time() - start
        note = f"{wer(texts)} ({wer(wanted)} offline), {seconds:.2f} s of CPU"
        table.compare(f"TFLite {weights}, random chunks", texts, wanted, must=weights == "float32", note=note)


def _check_server(table, port, audio, wanted):
    from concurrent import futures

    from tests.serving.prediction_client import Client

    def session(i):
        client = Client(port)
        cuts = np.cumsum([0, *map(len, _random_chunks(audio[i], i))])
        try:
            return client.stream(audio[i], cuts.tolist())
        finally:
            client.channel.close()

    with futures.ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(session, range(len(audio))))
    table.compare("gRPC server, four clients, random chunks", texts, wanted)


def _check_odd_audio(table, recognizer, lite, audio):
    from tests.serving.sessions import initial_state, step

    silence = np.zeros([3 * _SECONDS], np.float32)
    odd = [silence[:0], audio[0][:320], silence, *(np.clip(20 * x, -1, 1) for x in audio[:10])]
    whole = [recognizer.transcribe(x).text for x in odd]
    for name, caller in (("SavedModel", recognizer), ("TFLite float32", lite)):
        texts = [_last(caller.stream(_random_chunks(x, seed))).text for seed, x in enumerate(odd)]
        table.compare(f"{name}: nothing, 20 ms, silence, 10 clipped", texts, whole)
    rows = [x.copy() for x in audio[:8]]
    rows[3][len(rows[3]) // 2] = np.nan
    signatures = recognizer._signatures
    heard, _ = step(signatures, initial_state(signatures, len(rows)), rows, flush=range(len(rows)))
    texts = [text.decode().strip() for text in heard["text"].numpy()]
    expected = [recognizer.transcribe(x).text if np.isfinite(x).all() else "" for x in rows]
    table.compare("sessions beside one of NaN, which says nothing", texts, expected)
    errors = heard["error"].numpy().tolist()
    table.compare("  its error", errors, [b"samples are not finite" if i == 3 else b"" for i in range(len(rows))])


def _check_hour(table, recognizer, lite, audio):
    hour = np.resize(np.concatenate(audio), 3_600 * _SECONDS)
    wanted = recognizer.transcribe(hour).text
    even = (hour[start : start + 10_240] for start in range(0, len(hour), 10_240))
    heard = {"SavedModel, 640 ms": _watch("SavedModel, 640 ms", recognizer, even)}
    for name, caller in (("SavedModel, random chunks", recognizer), ("TFLite float32, random chunks", lite)):
        heard[name] = _watch(name, caller, _random_chunks(hour, _SEED))
    for name, found in heard.items():
        table.compare(f"an hour, {name}", [found.text], [wanted], note=f"{len(found.words)} words")


def _watch(name, caller, chunks):
    """The transcript; prints what memory and time it took."""
    megabytes, start = [], time.process_time()

    def watched():
        seen = 0
        for chunk in chunks:
            if seen >= (len(megabytes) + 1) * 300 * _SECONDS:
                megabytes.append(f"{_resident():.0f}")
            seen += len(chunk)
            yield chunk

    transcript = _last(caller.stream(watched()))
    seconds = time.process_time() - start
    print(f"  an hour, {name}: {seconds:.0f} s of CPU, MB every 5 min: {' '.join(megabytes)}", flush=True)
    return transcript


def _resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    run_command(main)
