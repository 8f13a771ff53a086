"""`python -m tf_rnnt_kd.transcribe --model DIR FILE …`: text of audio files, on a terminal as it grows.

A folder stands for all audio in it, `-` for raw 16-bit samples from standard input, as they come:

    arecord -q -t raw -f S16_LE -r 16000 -c 1 | python -m tf_rnnt_kd.transcribe --model DIR -
"""

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_MODEL = flags.DEFINE_string("model", None, "Folder that export has written.", required=True)
_CHUNK_MS = flags.DEFINE_integer("chunk_ms", 640, "Milliseconds fed to a streaming model at once.", lower_bound=1)
_FORMAT = flags.DEFINE_enum("format", "text", ("text", "srt", "vtt", "json"), "Text, subtitles, or words and times.")
_NBEST = flags.DEFINE_integer("nbest", 0, "Hypotheses in JSON beside the transcript.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for one file an audio file; without it standard output.")


def main(argv):
    """Writes down each of the arguments."""
    if len(argv) < 2:
        raise UserError("no audio to transcribe: name files, folders or - for standard input after the options")
    from tf_rnnt_kd.serving.recognizer import open_recognizer
    from tf_rnnt_kd.serving.transcription import find_sources, transcribe_sources

    transcribe_sources(
        open_recognizer(_MODEL.value),
        find_sources(argv[1:]),
        chunk_ms=_CHUNK_MS.value,
        form=_FORMAT.value,
        nbest=_NBEST.value,
        output=_OUTPUT.value,
    )


if __name__ == "__main__":
    run_command(main)
