"""Audio made ready for training per second of processor time, beside TensorFlowASR, and how long a step waits for it.

    python tools/bench_input.py --output input.json
    python tools/bench_input.py --contestants labelled mix waiting
    python tools/bench_input.py --tensorflowasr VENV/bin/python

Each measurement is a process that writes its own records (noise of 10 to 16 s, 16-bit samples, four labels a second)
and then reads batches of at most 64 s from the page cache; audio counts without padding. `labelled` is the whole way to
log-mel features with SpecAugment, `mix` the same for a quarter of labelled and three of pseudo-labelled speech with a
teacher's factored targets (bfloat16, width 640). `read`, `parse`, `features`, `batch` go a part of the way, each on
from the one before: records by offset with their checksum, fields of a record, log mel, padded batches; what `labelled`
adds is SpecAugment. `+uint8` and `+uint16` are records with features in place of audio. `waiting` takes Conformer S
steps (B 4, 10 s, 40 labels, V 1024): the part of the wall time in which a step waits for its batch, input and step
sharing the processor. `tensorflowasr` is the peer's `ASRTFRecordDataset` and `FeatureExtraction`, in its own
environment, for the same audio: `+masks` with SpecAugment, `+gzip` with records compressed as by default. All but
`waiting` run on one processor, or on N with `@N`.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
import wave

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tools.conformers import SAMPLE_RATE, VOCABULARY, our_conformer
from tools.contestants import conclude, measure, read_arguments, usage

OURS = (
    "read parse features batch labelled labelled@2 mix mix@2 labelled+uint8 labelled+uint16 mix+uint8 waiting".split()
)
PEER = "tensorflowasr"
PEERS = [PEER, PEER + "+masks", PEER + "+gzip", PEER + "@2"]
SETTINGS = {"utterances": 64, "batches": 25, "repeats": 5, "threads": os.cpu_count(), "seed": 0}
WIDTH, LABELS_PER_SECOND, WARM_UP = 640, 4, 4
SHORTEST, LONGEST, BATCH_SECONDS = 10.0, 16.0, 64.0


def draw_speech(rng, count, seconds=(SHORTEST, LONGEST)):
    """Noise, [S] int16 each."""
    lengths = rng.integers(int(seconds[0] * SAMPLE_RATE), int(seconds[1] * SAMPLE_RATE), count, endpoint=True)
    return [rng.normal(0.0, 3_000.0, size).astype("<i2") for size in lengths]


def write_set(folder, rng, speech, teacher=False, features=None):
    """A record set of `speech`, with targets of no teacher in particular if there is to be one."""
    import dataclasses

    import ml_dtypes
    import numpy as np

    from tf_rnnt_kd.data import schema
    from tf_rnnt_kd.data.record_writer import write_records
    from tf_rnnt_kd.features import stored
    from tf_rnnt_kd.features.log_mel import num_log_mel_frames

    def to_record(i, samples):
        labels = rng.integers(1, VOCABULARY, len(samples) * LABELS_PER_SECOND // SAMPLE_RATE).astype(np.int32)
        rows = {"encoded": num_log_mel_frames(len(samples)) // 4, "predicted": len(labels) + 1}
        targets = {key: rng.standard_normal((n, WIDTH)).astype(ml_dtypes.bfloat16) for key, n in rows.items()}
        return schema.Record(str(i), "", "", samples, labels, source=int(teacher), **(targets if teacher else {}))

    described = schema.TargetsSpec("factored", "bfloat16", WIDTH, VOCABULARY, 0, "noise")
    spec = dataclasses.asdict(described) if teacher else None
    manifest = {"tokenizer_hash": None, "sample_rate": SAMPLE_RATE, "targets": spec, "source": "noise"}
    return write_records(
        folder,
        [to_record(i, samples) for i, samples in enumerate(speech)],
        lambda records: records,
        manifest=manifest | ({"features": stored.describe(features)} if features else {}),
        records_per_shard=16,
        joint=(np.zeros([WIDTH, VOCABULARY], "f"), np.zeros([VOCABULARY], "f")) if teacher else None,
    )


def our_batches(tf, name, options, folder, rng, args):
    """An endless iterator, the mean number of audio seconds in what it gives, and the bytes of records read for it."""
    import numpy as np

    from tf_rnnt_kd.data import batching, pipeline

    kinds = [{"teacher": False}, {"teacher": True}][: 2 if name == "mix" else 1]
    sets = [
        write_set(
            os.path.join(folder, str(i)),
            rng,
            draw_speech(rng, args.utterances),
            **kind,
            features=(options or [None])[0],
        )
        for i, kind in enumerate(kinds)
    ]
    buckets = batching.Buckets((12.0, 14.0, 16.0), BATCH_SECONDS)
    steps = args.batches * args.repeats + WARM_UP
    schedule = batching.make_schedule(
        sets[:1], sets[1:], buckets, num_steps=steps, labelled_fraction=0.25, seed=args.seed
    )
    rows = schedule.rows[schedule.rows >= 0]
    samples, size = (
        np.concatenate([getattr(records.index, key) for records in sets])[rows].sum() / steps
        for key in ("num_samples", "num_bytes")
    )
    if name in ("read", "parse", "features"):
        data = part_of_the_way(tf, name, sets, rows).batch(round(len(rows) / steps))
    else:
        masks = {} if name != "batch" else {"num_frequency_masks": 0, "num_time_masks": 0}
        data = pipeline.read_batches(
            sets,
            schedule,
            first_step=0,
            augmentation=pipeline.Augmentation(**masks),
            seed=args.seed,
            with_teacher=name == "mix",
        )
    return iter(data.repeat()), samples / SAMPLE_RATE, size


def part_of_the_way(tf, name, sets, rows):
    """What the pipeline does to single records, as far as `name`; little of it is kept, so that batching costs none."""
    from tf_rnnt_kd.data.pipeline import RecordTable, to_fields
    from tf_rnnt_kd.data.schema import parse_record

    records = RecordTable(sets).read(tf.data.Dataset.from_tensor_slices(rows))
    if name == "parse":
        return records.map(lambda serialized: parse_record(serialized, None)["samples"][:1])
    if name == "features":
        return records.map(lambda serialized: to_fields(serialized, None)["features"][:1])
    return records.map(lambda serialized: tf.strings.length(serialized))


def peer_batches(tf, name, options, folder, rng, args):
    """The same of TensorFlowASR, whose records hold WAV files and text."""
    from tensorflow_asr.configs import DecoderConfig
    from tensorflow_asr.datasets import ASRTFRecordDataset
    from tensorflow_asr.models.layers.feature_extraction import FeatureExtraction
    from tensorflow_asr.tokenizers import CharTokenizer

    speech = draw_speech(rng, args.utterances)
    listing = os.path.join(folder, "transcripts.tsv")
    with open(listing, "w", encoding="utf-8") as file:
        file.write("PATH\tDURATION\tTRANSCRIPT\n")
        for i, samples in enumerate(speech):
            path = os.path.join(folder, f"{i}.wav")
            with wave.open(path, "wb") as audio:
                audio.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                audio.writeframes(samples.tobytes())
            seconds = len(samples) / SAMPLE_RATE
            text = "".join(rng.choice(list("abcdefgh "), int(seconds * LABELS_PER_SECOND)))
            file.write(f"{path}\t{seconds}\t{text}\n")
    tokenizer = CharTokenizer(DecoderConfig({"type": "char"}))
    tokenizer.make()
    compression = "GZIP" if "gzip" in options else ""
    data = ASRTFRecordDataset(
        "train", tokenizer, [listing], folder, 4, tfrecords_compression_type=compression, shuffle=True, buffer_size=64
    ).create(int(BATCH_SECONDS / LONGEST))
    masks = {"time_masking": {"num_masks": 10, "p_upperbound": 0.05}, "freq_masking": {"num_masks": 2}}
    layer = FeatureExtraction(augmentation_config={"feature_augment": masks} if "masks" in options else {})

    @tf.function(autograph=False)
    def extract(inputs, lengths):
        return layer((inputs, lengths), training="masks" in options)

    def batches():
        for batch in data.repeat():
            yield extract(batch.inputs.inputs, batch.inputs.inputs_length)

    mean = int(BATCH_SECONDS / LONGEST) / len(speech)
    size = sum(path.stat().st_size for path in pathlib.Path(folder).glob("*.tfrecord"))
    return batches(), mean * sum(map(len, speech)) / SAMPLE_RATE, mean * size


def measure_input(tf, name, options, args):
    """Seconds of wall clock and of processor for `args.batches` batches, and the audio in them."""
    import numpy as np

    rng, base = np.random.default_rng(args.seed), usage()[2]
    with tempfile.TemporaryDirectory() as folder:
        make = peer_batches if name == PEER else our_batches
        batches, seconds, size = make(tf, name, options, folder, rng, args)
        for _ in range(WARM_UP):
            next(batches)
        times = []
        for _ in range(args.repeats):
            before = usage()
            for _ in range(args.batches):
                next(batches)
            times.append([after - start for after, start in zip(usage(), before, strict=True)])
    wall, cpu, _ = zip(*times, strict=True)
    row = {"audio_s": seconds * args.batches, "wall_s": wall, "cpu_s": cpu, "peak_mib": usage()[2] - base}
    return row | {"bytes_per_audio_s": size / seconds}


def measure_waiting(tf, args):
    """Seconds that each of some Conformer S steps takes, and those of them before it has its batch."""
    import numpy as np

    from tf_rnnt_kd.data.batching import Buckets, make_schedule
    from tf_rnnt_kd.data.pipeline import Augmentation, read_batches
    from tf_rnnt_kd.nst import jobs
    from tf_rnnt_kd.training.objective import Objective
    from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step
    from tf_rnnt_kd.training.strategy import distribute_batches

    jobs.keep_memory()  # as `train` does
    strategy, steps = tf.distribute.OneDeviceStrategy("/cpu:0"), 4 * args.repeats
    with strategy.scope():
        model, optimizer = our_conformer(), ReducedAdamW(1e-4)
        optimizer.build(model.trainable_variables)
    update = make_train_step(model, optimizer, Objective(ctc_weight=0.0), None, clip_norm=1.0)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        records = write_set(folder, rng, draw_speech(rng, args.utterances, (10.0, 10.0)))
        schedule = make_schedule(
            [records], [], Buckets((10.0,), 40.0), num_steps=steps + 2, labelled_fraction=1.0, seed=args.seed
        )
        masks = {"first_step": 0, "augmentation": Augmentation(), "seed": args.seed, "with_teacher": False}
        data = distribute_batches(strategy, lambda share: read_batches([records], schedule, share=share, **masks))
        step, batches = tf.function(lambda batch: update(strategy, batch), autograph=False), iter(data)
        times = []
        for _ in range(steps + 2):  # the second is the last that may trace
            start = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            loss = float(step(batch)["loss"])
            times.append((ready - start, time.perf_counter() - start))
            assert np.isfinite(loss), loss
    waited, whole = zip(*times[2:], strict=True)
    return {"waited_s": waited, "step_s": whole}


def work(args):
    """Measures one contestant in this process."""
    name, _, count = args.worker.partition("@")
    name, *options = name.split("+")
    processors = sorted(os.sched_getaffinity(0))
    if name != "waiting":
        processors = processors[: int(count or 1)]
        if len(processors) < int(count or 1):
            raise SystemExit(f"{args.worker} needs {count} processors")
        os.sched_setaffinity(0, processors)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(len(processors))
    print(json.dumps(measure_waiting(tf, args) if name == "waiting" else measure_input(tf, name, options, args)))


def print_table(rows):
    """Medians."""
    print(f"{'':22}wall s   cpu s  audio s / cpu s  audio s / s  peak MiB  kB / audio s")
    for row in rows:
        if "waited_s" in row:
            part = sum(row["waited_s"]) / sum(row["step_s"])
            worst = max(row["waited_s"]) / statistics.median(row["step_s"])
            step = statistics.median(row["step_s"])
            print(f"waiting: {part:.2%} of steps of {step:.2f} s; the longest wait was {worst:.2%} of one")
            continue
        wall, cpu = (statistics.median(row[key]) for key in ("wall_s", "cpu_s"))
        rates = f"{row['audio_s'] / cpu:17.0f}{row['audio_s'] / wall:13.0f}"
        sizes = f"{row['peak_mib']:10.0f}{row['bytes_per_audio_s'] / 1000:13.1f}"
        print(f"{row['name']:20}{wall:8.3f}{cpu:8.3f}{rates}{sizes}")


def main():
    """Reads the command line."""
    args = read_arguments(__doc__, SETTINGS, [PEER])
    if args.worker:
        return work(args)
    names = args.contestants or OURS + PEERS * bool(args.tensorflowasr)
    rows = [
        measure(__file__, name, args.tensorflowasr if name.startswith(PEER) else None, args, SETTINGS) for name in names
    ]
    return conclude(rows, args, SETTINGS, print_table)


if __name__ == "__main__":
    sys.exit(main())
