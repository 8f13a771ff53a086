"""Exports: signatures called with what no caller should give, files damaged, standard input of odd sizes."""

import contextlib
import io
import json
import sys
import types

import numpy as np
import tensorflow as tf

from tests.fuzz.core import Case, Door, Inconsistent, Outcome, digest, one_of
from tests.fuzz.damage import damage_bytes, damage_file, files_in, misplace
from tests.fuzz.structures import damage_json, damage_json_text, plain_json
from tests.serving import networks
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.serving.export_folder import METADATA
from tf_rnnt_kd.serving.lite_model import export_lite_model
from tf_rnnt_kd.serving.recognizer import open_recognizer
from tf_rnnt_kd.serving.saved_model import export_model
from tf_rnnt_kd.serving.transcription import Source, transcribe_sources

_SOUND = networks.noise(0.5)


def _export(folder) -> None:
    model = networks.transducer(causal=True)
    export_model(model, networks.tokenizer(), str(folder), model_hash="a-model", beam=2)


class Signatures(Door):
    """Those of a SavedModel that streams. Row 0 of a batch is good audio, and must be heard whatever the others are."""

    name, cases = "signatures", 500

    def build(self):
        _export(self.folder / "model")

    def open(self):
        self._signatures = tf.saved_model.load(str(self.folder / "model")).signatures
        self._state = {name: value.numpy() for name, value in self._signatures["initial_state"]().items()}
        whole = {"samples": _SOUND[None], "num_samples": np.array([len(_SOUND)], np.int32)}
        flags = {"reset": np.array([False]), "flush": np.array([False])}
        self._inputs = {
            "transcribe": whole,
            "nbest": whole,
            "step": {"samples": _SOUND[None], **self._state},
            "step_sessions": {**whole, **flags, **self._state},
            "flush": self._state,
        }
        return {name: self.enter((name, inputs)).found for name, inputs in self._inputs.items()}

    def case(self, rng, number):
        name = list(self._inputs)[number % len(self._inputs)]
        inputs = {key: np.array(value, copy=True) for key, value in self._inputs[name].items()}
        if rng.integers(2):
            inputs = {key: np.concatenate([value, value]) for key, value in inputs.items()}
        key = one_of(rng, [k for k in inputs if k in ("samples", "num_samples", "reset", "flush")] or list(inputs))
        key = key if rng.integers(2) else one_of(rng, list(inputs))
        what, changed = _CHANGES[rng.integers(len(_CHANGES))](rng, inputs[key])
        if changed is None:
            del inputs[key]
        else:
            inputs[key] = changed
        return Case(f"{name}: {key} {what}", (name, inputs), forged=True)

    def enter(self, given):
        name, inputs = given
        with _as_a_caller_sees(self._signatures[name]):
            outputs = self._signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        found = {key: value.numpy() for key, value in outputs.items()}
        wrong = found.get("error", np.array([], object)) != b""
        _check_finite(name, found, wrong)
        if wrong.any():
            raise UserError(b"; ".join(found["error"][wrong]).decode())
        return Outcome(name, (found["text"][:1].tolist(), found["num_labels"][:1].tolist()))

    def fits(self, outcome, reference):
        return outcome.found == reference[outcome.name]


@contextlib.contextmanager
def _as_a_caller_sees(signature):
    """TensorFlow's own check of a signature names the argument: that is a clear line to a program."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(str(error)[:500]) from error
    except tf.errors.InvalidArgumentError as error:
        if any(words in error.message for words in _TOLD):
            raise UserError(error.message[:500]) from error
        raise


# The second is TensorFlow's own check of types, which names the input.
_TOLD = ("assertion failed", "cannot compute")


def _check_finite(name, found, wrong):
    """Rows without error are finite, all of them; hypotheses that a beam lacks have no score."""
    for key, value in found.items():
        if value.dtype.kind != "f" or not value.shape or len(value) != len(wrong):
            continue
        rows = value[~wrong]
        bad = np.isnan(rows) if name == "nbest" else ~np.isfinite(rows)
        if bad.any():
            raise Inconsistent(f"{key} is not finite, without an error")


def _rank(rng, value):
    i = int(rng.integers(5))
    kinds = (
        lambda: value[None],
        lambda: value[..., None],
        lambda: value[0],
        lambda: value.reshape(-1),
        lambda: value.sum(),
    )
    return f"ranked {i}", kinds[i]()


def _batch(rng, value):
    i = int(rng.integers(4))
    return f"batched {i}", [value[:0], value[:1], np.concatenate([value] * 2), np.concatenate([value] * 3)][i]


def _shorter(rng, value):
    return "shorter", value[:, : value.shape[1] // 2] if value.ndim > 1 else value[:0]


def _longer(rng, value):
    return "longer", np.concatenate([value, value], 1) if value.ndim > 1 else np.concatenate([value, value])


def _type(rng, value):
    dtype = ("float64", "int64", "int32", "float32", "bool", "complex64", "S3")[rng.integers(7)]
    return dtype, value.astype(dtype)


def _value(rng, value):
    if value.dtype.kind == "b":
        return "true", np.ones_like(value)
    floats = (np.nan, np.inf, -np.inf, 1e20, 3e38, -3e38, 1e10, 1e-40, 100.0, 0.0)
    whole = (-1, -(2**31), 2**31 - 1, 2**30, 0, 1, 10**6, 7)
    odd = (floats if value.dtype.kind == "f" else whole)[rng.integers(10 if value.dtype.kind == "f" else 8)]
    changed = np.array(value, copy=True)
    rows = changed[-1:].reshape(-1)
    if rng.integers(2):
        rows[...] = odd
    elif rows.size:
        rows[rng.integers(rows.size)] = odd
    changed[-1:] = rows.reshape(changed[-1:].shape)
    return f"has {odd}", changed


def _absent(rng, value):
    return "is left out", None


def _foreign(rng, value):
    noise = 3 * rng.standard_normal(value.shape)
    return "is noise", noise.astype(value.dtype)


_CHANGES = (_rank, _batch, _batch, _shorter, _longer, _type, _value, _value, _value, _value, _absent, _foreign)


class Lite(Door):
    """The folder of a TFLite export. Its interpreter trusts its file: what is damaged must not come so far."""

    name, cases = "tflite", 200

    def build(self):
        model = networks.transducer(causal=True)
        export_lite_model(
            model, networks.tokenizer(), str(self.folder / "model"), model_hash="a", weights="float32", step_frames=4
        )

    def open(self):
        return self.enter(self.folder / "model")

    def case(self, rng, number):
        folder = self.copied("model")
        kind = number % 8
        if kind == 7:
            return Case(misplace(rng, one_of(rng, files_in(folder)), files_in(folder)), folder)
        if kind > 4:
            return damage_metadata(rng, folder)
        return Case(damage_file(rng, next(folder.glob("*.tflite"))), folder)

    def enter(self, given):
        return hear(open_recognizer(str(given)))


class SavedModels(Door):
    """The folder of a SavedModel. Loading a whole one takes seconds, so there are few cases."""

    name, cases = "saved_models", 12

    def build(self):
        _export(self.folder / "model")

    def open(self):
        return self.enter(self.folder / "model")

    def case(self, rng, number):
        folder = self.copied("model")
        if number % 4 == 0:
            return damage_metadata(rng, folder)
        if number % 4 == 1:
            return Case(misplace(rng, one_of(rng, files_in(folder)), files_in(folder)), folder)
        return Case(damage_file(rng, one_of(rng, files_in(folder))), folder)

    def enter(self, given):
        return hear(open_recognizer(str(given)))


def damage_metadata(rng, folder) -> Case:
    """What a caller must know of an export, changed."""
    path = folder / METADATA
    if rng.integers(4):
        what, data = damage_json(rng, json.loads(path.read_bytes()), plain_json)
    else:
        what, data = damage_json_text(rng, path.read_bytes())
    path.write_bytes(data)
    return Case(f"metadata: {what}", folder)


def hear(recognizer):
    """What a recognizer makes of a piece of noise."""
    *_, transcript = recognizer.stream([_SOUND])
    return transcript.text, recognizer.sample_rate, digest(transcript.frames), [repr(w) for w in transcript.words]


_ODD_BYTES = (b"", b"\0", b"\xff", b"\x00\x80" * 8_000, b"\xff\x7f" * 8_000, b"text\n" * 1_000)


class Stdin(Door):
    """`transcribe -`: raw samples of 16 bits, however many bytes there are, in steps of any size."""

    name, cases = "stdin", 200

    def build(self):
        _export(self.folder / "model")

    def open(self):
        self._recognizer = open_recognizer(str(self.folder / "model"))
        self._pcm = (32_767 * np.clip(_SOUND, -1, 1)).astype("<i2").tobytes()
        return None

    def case(self, rng, number):
        kind = number % 4
        what, data = damage_bytes(rng, self._pcm)
        if kind == 0:
            size = int(rng.integers(0, 4_000))
            what, data = f"{size} bytes", self._pcm[:size]
        elif kind == 1:
            size = int(2 ** rng.integers(0, 15))
            what, data = f"{size} random bytes", rng.bytes(size)
        elif kind == 2:
            data = one_of(rng, [*_ODD_BYTES, b"RIFF" + self._pcm])
            what = f"{data[:8]!r}... of {len(data)}"
        chunk_ms = int(one_of(rng, [1, 10, 40, 640, 640, 5_000, 10**7]))
        form = one_of(rng, ["text", "json", "srt", "vtt"])
        return Case(f"{what}, {chunk_ms} ms, {form}", (data, chunk_ms, form), allowed=(self._expected(data),))

    def enter(self, given):
        data, chunk_ms, form = given
        printed = io.StringIO()
        stdin, sys.stdin = sys.stdin, types.SimpleNamespace(buffer=io.BytesIO(data))
        try:
            with contextlib.redirect_stdout(printed):
                transcribe_sources(self._recognizer, [Source("-", "stdin")], chunk_ms=chunk_ms, form=form)
        finally:
            sys.stdin = stdin
        return self._words(printed.getvalue(), form)

    def _expected(self, data):
        whole = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32_768
        *_, transcript = self._recognizer.stream([whole])
        return " ".join(transcript.text.split())

    @staticmethod
    def _words(printed, form):
        if form == "json":
            printed = json.loads(printed)["text"]
        elif form == "text":
            printed = printed.removeprefix("-: ")
        else:
            printed = " ".join(line for line in printed.split("\n") if not _is_frame(line))
        return " ".join(printed.split())


def _is_frame(line: str) -> bool:
    """Whether a line of subtitles holds no text."""
    return "-->" in line or line == "WEBVTT" or line.isdigit()
