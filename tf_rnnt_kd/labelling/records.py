"""A teacher over a record set: the same audio, its transcripts, and, on request, its lattice."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tf_rnnt_kd.data.record_writer import write_records
from tf_rnnt_kd.data.records import RecordSet, open_records, records_hash
from tf_rnnt_kd.data.schema import TEACHER_HYPOTHESIS, Record, TargetsSpec
from tf_rnnt_kd.decoding.offline import similar_lengths
from tf_rnnt_kd.features.stored import describe
from tf_rnnt_kd.labelling.hard import make_labeller
from tf_rnnt_kd.labelling.soft import codec_error, joint_arrays, make_spec, teacher_fields
from tf_rnnt_kd.lineage import begin, find_changes, finish, read_lineage
from tf_rnnt_kd.models.saving import find_hash, has_second_pass, load_model, read_description
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.progress import Progress, say
from tf_rnnt_kd.text.tokenizer import Tokenizer

SEARCH = "greedy"
_KIND = "label set"
_BATCH_SAMPLES = 16_000 * 120  # two minutes of padded audio at a time
_SHARD_UTTERANCES = 256
_ERROR_UTTERANCES = 4  # on which the codec's error is measured


class _Place(NamedTuple):
    position: int
    id: str


def label_records(
    model: Transducer,
    tokenizer: Tokenizer,
    teacher_hash: str,
    source: RecordSet,
    folder: str,
    *,
    codec: str | None = None,
    dtype: str = "float32",
    features: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> RecordSet:
    """Writes `source` again with the teacher's hypotheses in place of transcripts; goes on where a killed run stopped.

    Args:
      model: the teacher.
      tokenizer: its tokenizer.
      teacher_hash: of its weights, for the manifest.
      source: the audio; transcripts in it are ignored.
      folder: of the new set.
      codec: "factored" or "lattice" for soft targets, None for transcripts alone.
      dtype: in which targets are stored.
      features: in which features are stored in place of the audio, see `features.stored`; None for audio.
      on_progress: called with (utterances done, in all).

    Raises:
      UserError: if `folder` holds another set, or audio is damaged.
    """
    label = make_labeller(model)
    spec = make_spec(model, codec, dtype, teacher_hash) if codec else None
    manifest = {
        "tokenizer_hash": tokenizer.hash,
        "sample_rate": source.manifest["sample_rate"],
        "targets": dataclasses.asdict(spec) if spec else None,
        "source": {"records": source.hash, "teacher": teacher_hash, "search": SEARCH},
        **({"features": describe(features)} if features else {}),
    }

    def to_records(places: Sequence[_Place]) -> Iterator[Record]:
        records = list(source.read(places[0].position, places[-1].position + 1))
        yield from _label(records, model, tokenizer, spec, label)

    return write_records(
        folder,
        [_Place(position, name) for position, name in enumerate(source.ids)],
        to_records,
        manifest=manifest,
        measured={"codec_kl": _measure(model, spec, label, source) if spec else None},
        records_per_shard=_SHARD_UTTERANCES,
        joint=joint_arrays(model) if codec == "factored" else None,
        on_progress=on_progress,
    )


def label_inputs(
    checkpoint: str, source: str, *, codec: str | None, dtype: str, features: str | None
) -> dict[str, Any]:
    """What decides a label set, as for `lineage.begin`; arguments as for `label_folder`."""
    return {
        "teacher": find_hash(checkpoint),
        "records": records_hash(source),
        "codec": codec,
        "dtype": dtype if codec else None,
        "features": features,
        "search": SEARCH,
    }


def label_folder(
    checkpoint: str,
    source: str,
    folder: str,
    *,
    codec: str | None,
    dtype: str = "float32",
    features: str | None = None,
    remake: bool = False,
) -> RecordSet:
    """`label_records` for folders, with progress: the teacher in `checkpoint` over the audio in `source`.

    A teacher with a second pass labels by that: whoever labels has heard the whole utterance. With `remake` a label set
    that another teacher, other audio or other settings made is removed first.

    Raises:
      UserError: what is in `folder` was made by another teacher, from other audio or with other settings; or what
        `label_records` raises.
    """
    stored = {"codec": codec, "dtype": dtype, "features": features}
    inputs, found = label_inputs(checkpoint, source, **stored), read_lineage(folder)
    if remake and found and found.kind == _KIND and find_changes(found.inputs, inputs):
        shutil.rmtree(folder)
    begin(folder, _KIND, inputs, {"teacher": checkpoint, "records": source})
    model, tokenizer = load_model(checkpoint, second_pass=has_second_pass(checkpoint))
    teacher_hash = read_description(checkpoint)["weights_hash"]
    audio = open_records(source)
    start = time.monotonic()
    with Progress(f"label {os.path.basename(folder)}", audio.num_utterances, "utterances") as progress:
        records = label_records(
            model,
            tokenizer,
            teacher_hash,
            audio,
            folder,
            **stored,
            on_progress=lambda done, _: progress.update(done),
        )
    finish(folder, records.hash)
    size, seconds = sum(map(os.path.getsize, records.shards)) / 1e6, time.monotonic() - start
    empty = int((records.index.num_labels == 0).sum())
    words = f", {empty} of them without a word" if empty else ""
    amount = f"{records.num_utterances} utterances{words}, {records.seconds / 3600:.2f} h, {size:.0f} MB"
    say(f"  labelled {amount} in {seconds:.0f} s: {folder}")
    return records


def _label(records, model, tokenizer, spec, label):
    """The records with labels, in their order; batches are of similar length."""
    done = [None] * len(records)
    for batch in similar_lengths([len(record.samples) for record in records], _BATCH_SAMPLES):
        result = label([records[i].samples for i in batch])
        for row, i in enumerate(batch):
            labels = result.labels[row, : result.num_labels[row]]
            encoded = result.encoded[row, : result.num_frames[row]]
            predicted = result.predicted[row, : len(labels) + 1]
            done[i] = dataclasses.replace(
                records[i],
                text=tokenizer.decode(labels.tolist()),
                labels=labels,
                source=TEACHER_HYPOTHESIS,
                score=float(result.scores[row]),
                **(teacher_fields(model, spec, encoded, predicted) if spec else {}),
            )
    return done


def _measure(model: Transducer, spec: TargetsSpec, label, source: RecordSet) -> float:
    records = list(source.read(0, min(_ERROR_UTTERANCES, source.num_utterances)))
    result = label([record.samples for record in records])
    errors = [
        codec_error(model, spec, result.encoded[i, :t], result.predicted[i, : u + 1])
        for i, (t, u) in enumerate(zip(result.num_frames, result.num_labels, strict=True))
        if t
    ]
    return max(errors, default=0.0)
