"""How late a model's words come, how long a chunk takes to compute, and whether what was shown stays."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jiwer
import numpy as np
import tensorflow as tf

from tf_rnnt_kd import files
from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.data.schema import Record
from tf_rnnt_kd.decoding.offline import recognize
from tf_rnnt_kd.decoding.streaming import SearchState, search_chunk
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.features.log_mel import FRAME_LENGTH, FRAME_STEP, SAMPLE_RATE, log_mel
from tf_rnnt_kd.losses import best_alignment
from tf_rnnt_kd.models.saving import load_model, read_description
from tf_rnnt_kd.models.subsampling import REDUCTION
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import Tokenizer

_SAMPLES_PER_FRAME = FRAME_STEP * REDUCTION
_FRAME_MS = 1000 * _SAMPLES_PER_FRAME / SAMPLE_RATE
_PERCENTILES = (5, 50, 95, 99)


class TimedWord(NamedTuple):
    """A word and the encoder frames that emit its first and its last label."""

    text: str
    first: int
    last: int


class Heard(NamedTuple):
    """One utterance as a model hears it: its words, and seconds of computing."""

    words: list[TimedWord]
    seconds: float


def time_words(labels: Sequence[int], frames: Sequence[int], pieces: Sequence[str]) -> list[TimedWord]:
    """The words that labels spell; a piece that begins with a space, or follows one, begins a word."""
    words: list[TimedWord] = []
    begins = True
    for label, frame in zip(labels, frames, strict=True):
        piece = pieces[label]
        begins |= piece.startswith(" ")
        if text := piece.strip():
            if begins:
                words.append(TimedWord(text, frame, frame))
            else:
                words[-1] = words[-1]._replace(text=words[-1].text + text, last=frame)
            begins = False
    return words


def pair_words(reference: Sequence[TimedWord], hypothesis: Sequence[TimedWord]) -> list[tuple[TimedWord, TimedWord]]:
    """The words that an alignment of least edit distance finds right."""
    if not reference or not hypothesis:
        return []
    texts = (" ".join(word.text for word in words) for words in (reference, hypothesis))
    found = jiwer.process_words(*texts).alignments[0]
    return [
        (reference[part.ref_start_idx + i], hypothesis[part.hyp_start_idx + i])
        for part in found
        if part.type == "equal"
        for i in range(part.ref_end_idx - part.ref_start_idx)
    ]


def count_changed_words(partials: Sequence[str]) -> int:
    """Words of partial results that the next result takes back; one that goes on growing is not taken back."""
    rows = [partial.split() for partial in partials]
    return sum(
        not (after[i : i + 1] or [""])[0].startswith(word)
        for before, after in zip(rows, rows[1:], strict=False)
        for i, word in enumerate(before)
    )


def summarize_delays(references: Sequence[Sequence[TimedWord]], heard: Sequence[Sequence[TimedWord]]) -> dict[str, Any]:
    """Delays in milliseconds of the words that were heard right, over all utterances.

    `word`: from the frame of the reference's last label of a word to that of the hypothesis; `first_token` and
    `last_token`: the same of an utterance's first label and its last, where the words that they belong to are right.
    """
    delays: dict[str, list[float]] = {"first_token": [], "last_token": [], "word": []}
    for reference, hypothesis in zip(references, heard, strict=True):
        pairs = pair_words(reference, hypothesis)
        delays["word"] += [_FRAME_MS * (theirs.last - own.last) for own, theirs in pairs]
        if pairs and pairs[0] == (reference[0], hypothesis[0]):
            delays["first_token"].append(_FRAME_MS * (hypothesis[0].first - reference[0].first))
        if pairs and pairs[-1] == (reference[-1], hypothesis[-1]):
            delays["last_token"].append(_FRAME_MS * (hypothesis[-1].last - reference[-1].last))
    return {f"{name}_delay_ms": _spread(values) for name, values in delays.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Number, mean and percentiles; of nothing, the number alone."""
    if not len(values):
        return {"count": 0}
    percentiles = np.percentile(values, _PERCENTILES)
    named = {f"p{q}": float(value) for q, value in zip(_PERCENTILES, percentiles, strict=True)}
    return {"count": len(values), "mean": float(np.mean(values)), **named}


def make_aligner(teacher: Transducer) -> Callable[[Record], list[int]]:
    """A forced alignment: record -> the frame on which the teacher's best path emits each of its labels; -1 for none.

    Memory: T·(U+1)·V logits of one utterance.
    """

    def align(samples: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        batch_size, num_samples = tf.unstack(tf.shape(samples))
        heard = recognize(teacher, samples, tf.fill([batch_size], num_samples))
        predicted = teacher.predict_labels(labels)
        logits = teacher.join(heard.encoded[:, :, None], predicted[:, None])  # [1, T, U+1, V]
        frames, _ = best_alignment(
            logits, labels, heard.num_frames, tf.fill([batch_size], tf.shape(labels)[1]), blank_id=teacher.blank_id
        )
        return frames[0]

    signature = [tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None, None], tf.int32)]
    traced = tf.function(align, input_signature=signature, autograph=False)
    return lambda record: traced(_to_float(record.samples)[None], record.labels[None]).numpy().tolist()


def make_listener(model: Transducer, pieces: Sequence[str]) -> Callable[[np.ndarray], Heard]:
    """Greedy search over a whole utterance, [S] int16; labels count from the end of their chunk."""
    signature = [tf.TensorSpec([None, None], tf.float32)]
    traced = tf.function(
        lambda samples: recognize(model, samples, tf.shape(samples)[1:]).hypotheses,
        input_signature=signature,
        autograph=False,
    )
    chunk = model.encoder.chunk

    def listen(samples: np.ndarray) -> Heard:
        start = time.perf_counter()
        found = traced(_to_float(samples)[None])
        seconds = time.perf_counter() - start
        length = int(found.num_labels[0])
        shown = (found.frames[0, :length].numpy() // chunk + 1) * chunk - 1
        return Heard(time_words(found.labels[0, :length].numpy().tolist(), shown.tolist(), pieces), seconds)

    return listen


def make_streamer(
    model: Transducer, pieces: Sequence[str], frames_per_chunk: int
) -> Callable[[np.ndarray], Iterator[tuple[str, float]]]:
    """A stream, chunk by chunk: [S] int16 -> the text so far, and the seconds that the chunk took to compute.

    Args:
      model: a causal transducer.
      pieces: text of each label.
      frames_per_chunk: of 40 ms; a multiple of the encoder's chunk.
    """
    initial = *model.initial_encoder_state(1), *tf.nest.flatten(SearchState(*model.initial_prediction(1)))
    num_encoder = len(model.initial_encoder_state(1))

    def step(samples: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        encoded, encoder_state = model.stream(log_mel(samples), state[:num_encoder])
        carried = SearchState(state[num_encoder], tuple(state[num_encoder + 1 :]))
        network = {"join": model.join, "step_prediction": model.step_prediction, "blank_id": model.blank_id}
        found, carried = search_chunk(encoded, tf.shape(encoded)[1:2], carried, **network)
        return found.labels[0, : found.num_labels[0]], *encoder_state, carried.predicted, *carried.state

    signature = [tf.TensorSpec([1, None]), *[tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in initial]]
    traced = tf.function(step, input_signature=signature, autograph=False)

    def stream(samples: np.ndarray) -> Iterator[tuple[str, float]]:
        state, text, floats = initial, "", _to_float(samples)
        hop = frames_per_chunk * _SAMPLES_PER_FRAME
        size = hop + FRAME_LENGTH - FRAME_STEP
        for begin in range(0, len(floats) - size + 1, hop):
            start = time.perf_counter()
            labels, *state = traced(floats[None, begin : begin + size], *state)
            text += "".join(pieces[label] for label in labels.numpy())
            yield text.strip(), time.perf_counter() - start

    return stream


def measure_latency(
    model: Transducer,
    teacher: Transducer,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    frames_per_chunk: int | None = None,
) -> dict[str, Any]:
    """All measures of one test set.

    Args:
      model: whose latency it is; chunks are measured where it streams.
      teacher: a full-context model, whose best alignment of the reference says when a word is spoken.
      tokenizer: of both.
      records: with transcripts.
      frames_per_chunk: as in `make_streamer`; None for the encoder's chunk.

    Returns:
      `word_delay_ms`, `first_token_delay_ms`, `last_token_delay_ms`, `real_time_factor`, `unaligned_utterances`, whose
      labels the teacher cannot align, so that they have no delays, and, of a model that streams, `chunk_ms`,
      `chunk_compute_ms`, `stream_real_time_factor`, `shown_words`, `changed_words`.
    """
    align, listen = make_aligner(teacher), make_listener(model, tokenizer.pieces)
    frames = [align(record) for record in records]
    aligned = [k for k, found in enumerate(frames) if min(found, default=0) >= 0]
    seconds = sum(len(record.samples) for record in records) / SAMPLE_RATE
    if records:
        listen(records[0].samples)  # the first call traces
    heard = [listen(record.samples) for record in records]
    references = [time_words(records[k].labels.tolist(), frames[k], tokenizer.pieces) for k in aligned]
    measured = summarize_delays(references, [heard[k].words for k in aligned])
    measured["unaligned_utterances"] = len(records) - len(aligned)
    measured["real_time_factor"] = sum(utterance.seconds for utterance in heard) / max(seconds, 1e-9)
    if model.causal and records:
        measured |= _measure_stream(
            make_streamer(model, tokenizer.pieces, frames_per_chunk or model.encoder.chunk), records
        )
        measured["chunk_ms"] = _FRAME_MS * (frames_per_chunk or model.encoder.chunk)
        measured["stream_real_time_factor"] = measured["chunk_compute_ms"]["mean"] / measured["chunk_ms"]
    return measured


def _measure_stream(stream: Callable[[np.ndarray], Iterator[tuple[str, float]]], records: Sequence[Record]):
    for _ in stream(records[0].samples):
        pass  # the first call traces
    rows = [list(stream(record.samples)) for record in records]
    partials = [[text for text, _ in row] for row in rows]
    return {
        "chunk_compute_ms": _spread([1e3 * seconds for row in rows for _, seconds in row]),
        "shown_words": sum(len(texts[-1].split()) for texts in partials if texts),
        "changed_words": sum(map(count_changed_words, partials)),
    }


def evaluate_latency(
    checkpoint: str, teacher: str, folders: Sequence[str], output: str, *, chunk: int | None = None
) -> dict[str, dict[str, Any]]:
    """Measures a saved model on record sets and writes the figures, by test set.

    Args:
      checkpoint: folder of `models.saving.save_model`.
      teacher: folder of a full-context model of the same tokenizer.
      folders: record sets; the last part of each path names the test set.
      output: path of the JSON file.
      chunk: as in `models.saving.load_model`.

    Raises:
      UserError: if the teacher is causal, hence late itself, or if it or a record set has another tokenizer.
    """
    model, tokenizer = load_model(checkpoint, chunk=chunk)
    reference, other = load_model(teacher)
    if reference.causal:
        raise UserError(f"{teacher} is causal, hence late itself: measure latency against a full-context model")
    if other.hash != tokenizer.hash:
        raise UserError(f"{teacher} has tokenizer {other.hash}, {checkpoint} has {tokenizer.hash}: choose its teacher")
    # All are opened before anything is measured, which takes minutes.
    opened = {os.path.basename(os.path.abspath(f)): open_records(f, tokenizer_hash=tokenizer.hash) for f in folders}
    sets = {name: measure_latency(model, reference, tokenizer, list(r.read())) for name, r in opened.items()}
    hashes = {
        name: read_description(path)["weights_hash"] for name, path in (("model", checkpoint), ("teacher", teacher))
    }
    files.write_json(output, {**hashes, "sets": sets})
    return sets


def format_latency(sets: dict[str, dict[str, Any]]) -> str:
    """One row a measure, one column a test set; delays and computing in milliseconds."""
    measures = sorted({name for figures in sets.values() for name in figures})
    rows = [
        ["latency", *sets],
        *[[name, *(_cell(figures.get(name)) for figures in sets.values())] for name in measures],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cell(figure: Any) -> str:
    if figure is None or figure == {"count": 0}:
        return "-"
    if isinstance(figure, dict):
        return "median {p50:.0f}, mean {mean:.1f}, 5-95 % {p5:.0f} to {p95:.0f}, p99 {p99:.0f} (n {count})".format(
            **figure
        )
    return f"{figure:.4g}"


def _to_float(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32768.0
