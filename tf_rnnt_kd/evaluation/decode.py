"""A model over record sets: its hypotheses, and the figures made of them."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_rnnt_kd.data.records import open_records
from tf_rnnt_kd.decoding.hypotheses import Hypotheses
from tf_rnnt_kd.decoding.offline import pad_audio, recognize, similar_lengths
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.fusion import NO_FUSION, Weights, fuse, open_language_model
from tf_rnnt_kd.evaluation.normalisers import DEFAULT, scoring
from tf_rnnt_kd.evaluation.results import SetResult, Transcription, write_results
from tf_rnnt_kd.files import sha256_of, sha256_of_file
from tf_rnnt_kd.lineage import begin, finish
from tf_rnnt_kd.models.saving import find_hash, load_model
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.text.tokenizer import Tokenizer

_SAMPLES_PER_BATCH = 16_000 * 240  # 4 minutes of padded audio
_AUDIO_DIGITS = 16  # hexadecimal digits that tell one utterance's audio from another's
_UTTERANCES_SORTED = 1024  # as many lie in memory, so that batches can be of similar length

Decoder = Callable[[np.ndarray, np.ndarray], Hypotheses]


def make_decoder(model: Transducer, **search) -> Decoder:
    """Traces decoding once, for every batch size and length: keep it where a model is evaluated again and again.

    Args:
      model: what to decode with.
      search: the options of `decoding.offline.recognize`: `beam`, `synchrony`, `blank_penalty`, `label_scorer`.

    Returns:
      (samples [B, S] float32 in [-1, 1], num_samples [B] int32) -> `Hypotheses`.
    """

    def decode(samples: tf.Tensor, num_samples: tf.Tensor) -> Hypotheses:
        return recognize(model, samples, num_samples, **search).hypotheses

    signature = [tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.int32)]
    return tf.function(decode, input_signature=signature, autograph=False)


def evaluate_records(
    model: Transducer, tokenizer: Tokenizer, records, *, decode: Decoder | None = None
) -> Iterator[Transcription]:
    """Decodes a record set; padding is kept small by batches of similar length.

    Args:
      model: what to evaluate.
      tokenizer: the model's.
      records: a `RecordSet`, or whatever has its `read()`.
      decode: from `make_decoder`, to save the tracing of a second evaluation; None for greedy search.

    Yields:
      One `Transcription` an utterance, in the order of the records.
    """
    decode = decode or make_decoder(model)
    remaining = iter(records.read())
    while window := list(itertools.islice(remaining, _UTTERANCES_SORTED)):
        transcriptions = {}
        for batch in similar_lengths([len(record.samples) for record in window], _SAMPLES_PER_BATCH):
            hypotheses = decode(*pad_audio([window[position].samples for position in batch]))
            for position, labels, score in zip(batch, *_unpack(hypotheses), strict=True):
                record = window[position]
                audio = sha256_of(record.samples.tobytes())[:_AUDIO_DIGITS]
                transcriptions[position] = Transcription(
                    record.id, record.text, tokenizer.decode(labels), score, record.speaker, audio
                )
        yield from (transcriptions[position] for position in range(len(window)))


def _unpack(hypotheses: Hypotheses) -> tuple[list[list[int]], list[float]]:
    lengths = hypotheses.num_labels.numpy()
    labels = [row[:length].tolist() for row, length in zip(hypotheses.labels.numpy(), lengths, strict=True)]
    return labels, hypotheses.scores.numpy().tolist()


def evaluate_checkpoint(
    checkpoint: str,
    folders: Sequence[str],
    output: str,
    *,
    chunk: int | None = None,
    second_pass: bool = False,
    beam: int = 1,
    synchrony: str = "frames",
    blank_penalty: float = 0.0,
    language_model: str | None = None,
    weights: Weights = NO_FUSION,
    normaliser: str = DEFAULT,
) -> dict[str, SetResult]:
    """Evaluates a saved model on record sets and writes `results.json` and the hypotheses.

    Args:
      checkpoint: folder of `models.saving.save_model`.
      folders: record sets; the last part of each path names the test set.
      output: path of the JSON file.
      chunk: as in `models.saving.load_model`.
      second_pass: the same.
      beam: as in `decoding.offline.recognize`, like the next two.
      synchrony: which beam search.
      blank_penalty: in nats.
      language_model: as in `fusion.open_language_model`.
      weights: of that, of the internal one, and the bonus.
      normaliser: of `normalisers.NORMALISERS`, by which words are compared; the hypotheses are written as they are.

    Raises:
      UserError: if two sets have one name, a set is unfinished, or has no transcripts, or there is no such normaliser.
    """
    if not output.endswith(".json"):
        raise UserError(f"the figures can't go into {output!r}: name a file that ends in .json")
    scoring(normaliser)  # before anything is decoded
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"two of the record sets {', '.join(folders)} have the same last name: rename one of them")
    model, tokenizer = load_model(checkpoint, chunk=chunk, second_pass=second_pass)
    scorer, scorer_hash = open_language_model(language_model, tokenizer) if language_model else (None, None)
    fused = fuse(model, scorer, weights)
    search = {"beam": beam, "synchrony": synchrony, "blank_penalty": blank_penalty}
    decode = make_decoder(model, label_scorer=fused, **search)
    opened = {name: open_records(folder) for name, folder in zip(names, folders, strict=True)}
    sets = {name: list(evaluate_records(model, tokenizer, records, decode=decode)) for name, records in opened.items()}
    about = {
        "model": find_hash(checkpoint),
        "records": {name: records.hash for name, records in opened.items()},
        "search": {**search, "chunk": model.encoder.chunk, "second_pass": second_pass},
    }
    if fused is not None:
        about["search"] |= {"language_model": scorer_hash, **weights._asdict()}
    places: dict[str, Any] = {"model": checkpoint, "records": dict(zip(names, folders, strict=True))}
    if "language_model" in about["search"]:  # one without weight was not heard
        places["search"] = {"language_model": language_model}
    begin(output, "results", {**about, "normaliser": normaliser}, places, anew=True)
    results = write_results(output, sets, about, normaliser)
    finish(output, sha256_of_file(output))
    return results
