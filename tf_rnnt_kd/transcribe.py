"""`python -m tf_rnnt_kd.transcribe --model DIR FILE …`: text of audio files, on a terminal as it grows.

A folder stands for all audio in it, `-` for raw 16-bit samples from standard input, as they come:

    arecord -q -t raw -f S16_LE -r 16000 -c 1 | python -m tf_rnnt_kd.transcribe --model DIR -
"""

import os
import shutil
import sys

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_MODEL = flags.DEFINE_string("model", None, "Folder of the SavedModel.", required=True)
_CHUNK_MS = flags.DEFINE_integer("chunk_ms", 640, "Milliseconds fed to a streaming model at once.", lower_bound=1)


def main(argv):
    """Prints one line a file: its name and its text."""
    from tf_rnnt_kd.data.corpora import decode_audio
    from tf_rnnt_kd.serving.saved_model import Recognizer, in_chunks

    if len(argv) < 2:
        raise UserError("no audio to transcribe: name files, folders or - for standard input after the options")
    recognizer = Recognizer(_MODEL.value)
    size = _CHUNK_MS.value * recognizer.sample_rate // 1000
    for path in _paths(argv[1:]):
        chunks = _listen(size) if path == "-" else in_chunks(_to_float(decode_audio(path)), size)
        print(f"{path}: {_transcribe(recognizer, chunks)}", flush=True)


def _paths(names):
    """Files as they are, folders as all audio in them."""
    from tf_rnnt_kd.data.corpora import find_audio

    for name in names:
        yield from find_audio(name) if os.path.isdir(name) else [name]


def _to_float(samples):
    return samples.astype("float32") / 32768.0


def _listen(samples_per_chunk):
    """Chunks of standard input, 16-bit little-endian; half a sample at its end is dropped."""
    import numpy as np

    while data := sys.stdin.buffer.read(2 * samples_per_chunk):
        yield _to_float(np.frombuffer(data[: len(data) // 2 * 2], "<i2"))


def _transcribe(recognizer, chunks):
    import numpy as np

    if recognizer.streaming:
        return _grow(recognizer.stream(chunks))
    return recognizer.transcribe(np.concatenate([np.zeros([0], "float32"), *chunks]))


def _grow(texts):
    """Shows the end of each text, on a terminal; returns the last."""
    text = ""
    for text in texts:
        if sys.stdout.isatty():
            print("\r\x1b[K" + text[-(shutil.get_terminal_size().columns - 1) :], end="", flush=True)
    print("\r\x1b[K" if sys.stdout.isatty() else "", end="")
    return text


if __name__ == "__main__":
    run_command(main)
