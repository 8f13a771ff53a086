"""Time of search over whole utterances, and of the chunks of a stream, beside TensorFlowASR.

    python tools/bench_decode.py --output decode.json
    python tools/bench_decode.py --contestants encoder@8 greedy@8 beam8@8 stream@80ms
    python tools/bench_decode.py --tensorflowasr VENV/bin/python

Each measurement is a process. All networks are Conformer S transducers (10.3 M parameters, 1024 word pieces) with
random weights, which alone would say nothing or everything: the bias of blank is set by bisection until greedy search
emits `--rate` labels a second, and no time is printed where it is off by more than a tenth. A contestant is
`greedy@B`, `beamK@B` (B utterances of `--seconds` each), `encoder@B` (features and encoder alone), `products@B` (the
matrix products of the encoder's layers alone: the limit) or `stream@Nms` (one session, chunks of N ms); before it,
`tensorflowasr:` runs the peer in its own environment (`tensorflowasr==3.1.1`).
"""

import functools
import json
import pathlib
import resource
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tools.conformers import SAMPLE_RATE, VOCABULARY, our_conformer, peer_conformer
from tools.contestants import conclude, measure, read_arguments, usage

OURS = """products@8 encoder@8 greedy@1 greedy@8 greedy@32 beam8@1 beam8@8 beam8@32 stream@80ms stream@640ms""".split()
PEERS = "tensorflowasr:greedy@1 tensorflowasr:greedy@8 tensorflowasr:greedy@32 tensorflowasr:stream@640ms".split()
SETTINGS = {"seconds": 10.0, "rate": 2.5, "repeats": 5, "chunks": 100, "threads": 1, "seed": 0}
RATE_TOLERANCE = 0.1


class Ours:
    """This package's Conformer S of `configs/models/s.gin`."""

    def __init__(self, tf, streaming):
        self._tf, self.model = tf, our_conformer(streaming)
        self.bias = self.model.joint.bias

    def whole(self, batch, beam):
        """A function from samples [B, S] to how many labels they hold."""
        from tf_rnnt_kd.evaluation.decode import make_decoder

        decode = make_decoder(self.model, beam=beam)
        return lambda samples: int(sum(decode(samples, [samples.shape[1]] * batch).num_labels.numpy()))

    def calibrate(self, samples, wanted):
        """Sets the bias for a stream: whole utterances hold the same labels and are heard faster."""
        run = self.whole(1, 1)
        find_bias(self, lambda: run(samples[None]), wanted)

    def encoder(self):
        """Features and encoder."""
        from tf_rnnt_kd.features.log_mel import log_mel

        tf = self._tf

        def encode(samples):
            features = log_mel(samples)
            features = features[:, : tf.shape(features)[1] // 4 * 4]
            return self.model.encode(features, tf.fill([tf.shape(samples)[0]], tf.shape(features)[1]))[0]

        traced = tf.function(encode, input_signature=[tf.TensorSpec([None, None])], autograph=False)
        return lambda samples: traced(samples).numpy() is None

    def stream(self, samples_per_chunk):
        """A function from samples [S] to labels and, of each chunk, seconds of wall clock and of processor time."""
        from tf_rnnt_kd.serving.streaming_module import StreamingModule

        signatures = StreamingModule(self.model, [""] * VOCABULARY).signatures()
        tf, step, initial = self._tf, signatures["step"], signatures["initial_state"]

        def run(samples):
            state, labels, times = initial(), 0, []
            names = tuple(state)
            for start in range(0, len(samples) - samples_per_chunk + 1, samples_per_chunk):
                chunk = tf.constant(samples[None, start : start + samples_per_chunk])
                begin = clocks()
                outputs = step(samples=chunk, **state)
                labels += int(outputs["num_labels"].numpy()[0])
                times.append([end - start for end, start in zip(clocks(), begin, strict=True)])
                state = {name: outputs[name] for name in names}
            return labels, times

        return run


class Peer:
    """TensorFlowASR's transducer of the same size."""

    def __init__(self, tf, streaming):
        self._tf, self.model = tf, peer_conformer(streaming)

    def _make(self, batch):
        self.model.make(batch_size=batch)
        self.bias = self.model.joint_net.ffn_out.bias

    def _step(self, batch):
        from tensorflow_asr import schemas

        tf, model = self._tf, self.model
        initial = tf.ones([batch, 1], tf.int32) * 0, *self._initial_states(batch)

        @tf.function(reduce_retracing=True)
        def step(samples, lengths, tokens, encoder_states, decoder_states):
            inputs = schemas.PredictInput(samples, lengths, tokens, encoder_states, decoder_states)
            found = model.recognize(inputs)
            carried = found.next_tokens, found.next_encoder_states, found.next_decoder_states
            return tf.math.count_nonzero(found.tokens), carried

        return step, initial

    def _initial_states(self, batch):
        return self.model.get_initial_encoder_states(batch), self.model.get_initial_decoder_states(batch)

    def whole(self, batch, beam):
        """As `Ours.whole`; beams are not measured."""
        del beam
        self._make(batch)
        step, initial = self._step(batch)
        tf = self._tf

        def run(samples):
            return int(step(tf.constant(samples), tf.fill([batch], samples.shape[1]), *initial)[0])

        return run

    def calibrate(self, samples, wanted):
        """Sets the bias for a stream."""
        run = self.stream(10_240)
        find_bias(self, lambda: run(samples)[0], wanted)

    def stream(self, samples_per_chunk):
        """As `Ours.stream`, in the chunks that its encoder wants."""
        self._make(1)
        step, initial = self._step(1)
        tf = self._tf
        size, hop = self.model.get_signal_chunk_size_and_step()
        if hop != samples_per_chunk:
            raise ValueError(f"its chunks are {hop} samples")

        def run(samples):
            carried, labels, times = initial, 0, []
            for start in range(0, len(samples) - size + 1, hop):
                chunk = tf.constant(samples[None, start : start + size])
                begin = clocks()
                count, carried = step(chunk, tf.constant([size]), *carried)
                labels += int(count)
                times.append([end - start for end, start in zip(clocks(), begin, strict=True)])
            return labels, times

        return run


def make_samples(np, args, batch, seconds):
    """Noise whose loudness and colour change five times a second: [B, S] float32."""
    rng, size = np.random.default_rng(args.seed), int(SAMPLE_RATE * seconds)
    loudness, colour = (
        np.repeat(rng.uniform(*span, [batch, size // 3200 + 1]), 3200, axis=1)[:, :size] for span in ((-7, -1), (-1, 1))
    )
    white = rng.standard_normal([batch, size + 1])
    return (np.exp(loudness) * (white[:, 1:] + colour * white[:, :-1])).clip(-1, 1).astype("float32")


def find_bias(network, count, wanted):
    """Sets the bias of blank by bisection so that `count()` labels come near `wanted`."""
    bias, low, high = network.bias.numpy(), 0.0, 64.0
    found = None
    for _ in range(24):
        bias[0] = (
            (low + 3 * high) / 4 if low == 0.0 else (low + high) / 2
        )  # low ones emit at every frame, which takes long
        network.bias.assign(bias)
        found = count()
        if abs(found - wanted) <= RATE_TOLERANCE / 2 * wanted:
            break
        low, high = (bias[0], high) if found > wanted else (low, bias[0])
    return found


def products(tf, network, samples):
    """A function that makes the products of the encoder's layers alone."""
    frames = samples.shape[0] * samples.shape[1] // 640
    kernels = [w.value for w in network.model.encoder.weights if len(w.shape) == 2]
    inputs = {size: tf.random.normal([frames, size]) for size in {k.shape[0] for k in kernels}}
    return lambda _: sum(tf.matmul(inputs[k.shape[0]], k)[0, 0].numpy() for k in kernels) is None


def resident():
    """Memory now, in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def measure_whole(network, base, batch, args):
    """Seconds of whole batches."""
    import numpy as np
    import tensorflow as tf

    samples = make_samples(np, args, batch, args.seconds)
    audio, times, labels = batch * args.seconds, [], 0
    if base == "encoder":
        run = network.encoder()
    elif base == "products":
        run = products(tf, network, samples)
    else:
        # Under the same bias a beam may find fewer labels than greedy search: they hear the same frames.
        greedy = network.whole(batch, 1)
        run = network.whole(batch, int(base.removeprefix("beam"))) if base.startswith("beam") else greedy
        labels = find_bias(network, functools.partial(greedy, samples), args.rate * audio)
    for _ in range(args.repeats + 1):
        before = usage()
        run(samples)
        times.append([after - start for after, start in zip(usage(), before, strict=True)])
    wall, cpu, _ = zip(*times[1:], strict=True)
    searched = base not in ("encoder", "products")
    return {"audio_s": audio, "wall_s": wall, "cpu_s": cpu, "rate": labels / audio if searched else None}


def measure_stream(network, milliseconds, args):
    """Seconds of each chunk, by both clocks."""
    import numpy as np

    seconds = max(args.chunks * milliseconds / 1000, 40.0)  # labels enough to count
    samples = make_samples(np, args, 1, seconds)[0]
    network.calibrate(samples, args.rate * seconds)
    run = network.stream(SAMPLE_RATE * milliseconds // 1000)
    run(samples)
    rows, memory = [], []
    for _ in range(args.repeats):
        labels, times = run(samples)
        rows.append(times)
        memory.append(resident())
    clock = np.array(rows)  # [repeats, chunks, 2]
    milli = {f"p{q}_ms": [1e3 * float(v) for v in np.percentile(clock[:, :, 0], q, axis=1)] for q in (50, 95, 99)}
    milli["cpu_p95_ms"] = [1e3 * float(v) for v in np.percentile(clock[:, :, 1], 95, axis=1)]
    wall, cpu = clock.sum(axis=1).T.tolist()
    row = {"audio_s": seconds, "rate": labels / seconds, "wall_s": wall, "cpu_s": cpu, "resident_mib": memory}
    return row | milli


def clocks():
    """Wall clock and processor time, in seconds: others on the machine are in the first."""
    return time.perf_counter(), time.process_time()


def work(args):
    """Measures one contestant in this process."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    tf.keras.utils.set_random_seed(args.seed)
    kind, _, name = args.worker.rpartition(":")
    base, size = name.split("@")
    network = (Peer if kind else Ours)(tf, base == "stream")
    if base == "stream":
        row = measure_stream(network, int(size.removesuffix("ms")), args)
    else:
        row = measure_whole(network, base, int(size), args)
    print(json.dumps(row | {"parameters": int(network.model.count_params())}))


def measure_alike(name, args):
    """One contestant in a process of its own; refused where it does not emit what it should."""
    python = args.tensorflowasr if name.startswith("tensorflowasr:") else None
    row = measure(__file__, name, python, args, SETTINGS)
    if row.get("rate") is not None and abs(row["rate"] - args.rate) > RATE_TOLERANCE * args.rate:
        row["error"] = f"{row['rate']:.2f} labels a second where {args.rate} are wanted"
    return row


def print_table(rows):
    """Medians; RTF and CPU are seconds for a second of audio."""
    print(f"{'':29}labels/s  million     RTF     CPU  p50 ms  p95 ms  p99 ms CPU p95  resident MiB")
    for row in rows:
        rate = "" if row["rate"] is None else f"{row['rate']:.2f}"
        rtf, cpu = (
            f"{statistics.median(row[key]) / row['audio_s']:.4f}" if key in row else "" for key in ("wall_s", "cpu_s")
        )
        keys = "p50_ms", "p95_ms", "p99_ms", "cpu_p95_ms"
        chunk = [f"{statistics.median(row[key]):.1f}" if key in row else "" for key in keys]
        memory = "{:.0f} to {:.0f}".format(*row["resident_mib"][:: args_last(row)]) if "resident_mib" in row else ""
        print(
            f"{row['name']:29}{rate:>8}{row['parameters'] / 1e6:9.2f}{rtf:>8}{cpu:>8}"
            + "".join(f"{cell:>8}" for cell in chunk)
            + f"  {memory}"
        )


def args_last(row):
    """The step that takes the first and the last of a row's readings of memory."""
    return max(1, len(row["resident_mib"]) - 1)


def main():
    """Reads the command line."""
    args = read_arguments(__doc__, SETTINGS, ["tensorflowasr"])
    if args.worker:
        return work(args)
    rows = [measure_alike(name, args) for name in args.contestants or OURS + PEERS * bool(args.tensorflowasr)]
    return conclude(rows, args, SETTINGS, print_table)


if __name__ == "__main__":
    sys.exit(main())
