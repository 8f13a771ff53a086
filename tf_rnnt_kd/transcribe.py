"""`python -m tf_rnnt_kd.transcribe --model DIR FILE …`: text of audio files, on a terminal as it grows."""

import shutil
import sys

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_MODEL = flags.DEFINE_string("model", None, "Folder of the SavedModel.", required=True)
_CHUNK_MS = flags.DEFINE_integer("chunk_ms", 640, "Milliseconds fed to a streaming model at once.", lower_bound=1)


def main(argv):
    """Prints one line a file: its name and its text."""
    from tf_rnnt_kd.data.corpora import decode_audio
    from tf_rnnt_kd.serving.saved_model import Recognizer

    if len(argv) < 2:
        raise UserError("no audio to transcribe: name one or more files after the options")
    recognizer = Recognizer(_MODEL.value)
    for path in argv[1:]:
        samples = decode_audio(path).astype("float32") / 32768.0
        text = _grow(recognizer, samples) if recognizer.streaming else recognizer.transcribe(samples)
        print(f"{path}: {text}", flush=True)


def _grow(recognizer, samples):
    """Shows the end of the text after each chunk, on a terminal; returns the whole of it."""
    for text in recognizer.stream(samples, _CHUNK_MS.value * recognizer.sample_rate // 1000):
        if sys.stdout.isatty():
            print("\r\x1b[K" + text[-(shutil.get_terminal_size().columns - 1) :], end="", flush=True)
    print("\r\x1b[K" if sys.stdout.isatty() else "", end="")
    return text


if __name__ == "__main__":
    run_command(main)
