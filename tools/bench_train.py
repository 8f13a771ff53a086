"""Audio trained per second of processor time, beside TensorFlowASR, and where a step's time goes.

    python tools/bench_train.py --output train.json
    python tools/bench_train.py --contestants step step+kl step@2 joint
    python tools/bench_train.py --tensorflowasr VENV/bin/python

Each measurement is a process. Networks are Conformer S transducers (10.3 M parameters), from samples to updated
weights: features, forward, loss, backward, Adam, the same batch every time, no augmentation. `step` is this package's
training step without auxiliary CTC, which the peer has not; `+ctc` adds it, `+kl` a teacher by stored factored targets
at weight 0.01, `+bf16` mixed precision, `@N` divides the batch among N replicas on as many logical CPUs. `features`,
`encoder`, `prediction`, `joint` (joint network and loss) and `optimizer` are parts of `step` alone, forward and
backward. `tensorflowasr` is the peer's step in its own environment (`tensorflowasr==3.1.1`).
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = "step step+kl step+ctc step+bf16 step@2 features encoder prediction joint joint+kl optimizer".split()
SETTINGS = {"batch": 4, "seconds": 10.0, "labels": 40, "repeats": 5, "threads": os.cpu_count(), "seed": 0}
VOCABULARY, SAMPLE_RATE = 1024, 16_000
# Its `small` configuration, with the width of prediction and joint network that the paper gives.
PEER_CONFIG = {
    "speech_config": {"sample_rate": SAMPLE_RATE, "frame_ms": 25, "stride_ms": 10, "nfft": 512}
    | {"num_feature_bins": 80, "feature_type": "log_mel_spectrogram"},
    "encoder_subsampling": {
        "class_name": "tensorflow_asr.models.layers.subsampling>Conv2dSubsampling",
        "config": {"filters": [144, 144], "kernels": [3, 3], "strides": [2, 2], "paddings": ["causal"] * 2}
        | {"norms": ["batch"] * 2, "activations": ["swish"] * 2},
    },
    "encoder_kernel_size": 32,
    "encoder_mhsam_use_attention_bias": True,
    "prediction_embed_dim": 320,
    "joint_dim": 320,
}


def our_network(options):
    """This package's Conformer S of `configs/models/s.gin`."""
    import gin
    import keras

    from tf_rnnt_kd.models.transducer import Transducer

    if "bf16" in options:
        keras.config.set_dtype_policy("mixed_bfloat16")
    os.chdir(ROOT)
    gin.parse_config_file("configs/models/s.gin", print_includes_and_imports=False)
    return gin.get_configurable(Transducer)(VOCABULARY)


def our_step(tf, samples, labels, options, replicas):
    """A function that makes one update and returns the loss per label."""
    from tf_rnnt_kd.batch import Batch, TeacherTargets
    from tf_rnnt_kd.features.log_mel import log_mel
    from tf_rnnt_kd.training.objective import Objective, TeacherJoint
    from tf_rnnt_kd.training.step import ReducedAdamW, make_train_step

    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = tf.distribute.MirroredStrategy(devices) if replicas > 1 else tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = our_network(options)
        optimizer = ReducedAdamW(1e-4)
        optimizer.build(model.trainable_variables)
    objective = Objective(kl_weight=0.01 if "kl" in options else 0.0, ctc_weight=0.3 if "ctc" in options else 0.0)
    joint = (
        TeacherJoint(tf.random.normal([320, VOCABULARY]) * 0.05, tf.zeros([VOCABULARY])) if "kl" in options else None
    )
    step = make_train_step(model, optimizer, objective, joint, clip_norm=1.0)

    def make_batch(samples, labels):
        features = log_mel(samples)
        frames = tf.shape(features)[1] // 4
        batch, size = tf.shape(labels)[0], tf.shape(labels)[1]
        width = 320 if "kl" in options else 0
        # As large as stored targets are; their content does not matter to the time.
        encoded, predicted = (tf.random.stateless_normal([batch, n, width], [0, 1]) for n in (frames, size + 1))
        teacher = TeacherTargets(encoded, predicted, tf.zeros([batch, 0, 0, 0]), tf.ones([batch]))
        lengths = tf.fill([batch], 4 * frames), tf.fill([batch], size)
        return Batch(features[:, : 4 * frames], lengths[0], labels, lengths[1], teacher, tf.zeros([batch], tf.int32))

    data = tf.data.Dataset.from_tensors((samples, labels)).repeat().map(make_batch)
    share = len(samples) // replicas
    data = data.unbatch().batch(share, drop_remainder=True) if replicas > 1 else data
    data = strategy.distribute_datasets_from_function(lambda _: data)
    run = tf.function(lambda batch: step(strategy, batch), autograph=False, input_signature=[data.element_spec])
    iterator = iter(data)
    return lambda: float(run(next(iterator))["loss"])


def our_part(tf, samples, labels, options):
    """One part of a step, forward and backward."""
    from tf_rnnt_kd.features.log_mel import log_mel
    from tf_rnnt_kd.losses import JointInputs, LossWeights, joint_loss_sum
    from tf_rnnt_kd.training.step import ReducedAdamW

    features = log_mel(tf.constant(samples))
    features = features[:, : features.shape[1] // 4 * 4]
    sizes = tf.fill([len(labels)], features.shape[1]), tf.fill([len(labels)], labels.shape[1])
    if options[0] == "features":
        run = tf.function(lambda: log_mel(tf.constant(samples)))
        return lambda: float(run()[0, 0, 0])
    if options[0] == "joint":
        normal = [tf.random.normal([len(labels), n, 320]) for n in (features.shape[1] // 4, labels.shape[1] + 1)]
        student = JointInputs(*normal, tf.random.normal([320, VOCABULARY]) * 0.05, tf.zeros([VOCABULARY]))
        ones = LossWeights(*[tf.ones([len(labels)])] * 2)
        teacher = JointInputs(*(x[::-1] for x in normal), *student[2:]) if "kl" in options else None
        sources = list(student)

        def forward():
            return joint_loss_sum(student, teacher, tf.constant(labels), sizes[0] // 4, sizes[1], ones).total

    else:
        model = our_network(options)
        optimizer = ReducedAdamW(1e-4)
        optimizer.build(model.trainable_variables)
        gradients = [tf.random.normal(v.shape) * 1e-3 for v in model.trainable_variables]
        sources = [v.value for v in model.trainable_variables]

        def forward():
            if options[0] == "encoder":
                return tf.reduce_sum(model.encode(features, sizes[0], training=True)[0])
            return tf.reduce_sum(model.predict_labels(tf.constant(labels), training=True))

    def part():
        if options[0] == "optimizer":
            optimizer.apply(tf.clip_by_global_norm(gradients, 1.0)[0], model.trainable_variables)
            return tf.zeros([])
        with tf.GradientTape() as tape:
            tape.watch(sources)
            value = forward()
        found = tape.gradient(value, sources)
        with tf.control_dependencies([g for g in found if g is not None]):
            return tf.identity(value)

    run = tf.function(part, autograph=False)
    return lambda: float(run())


def peer_step(tf, samples, labels):
    """TensorFlowASR's training step, as its `fit` calls it."""
    import keras
    from tensorflow_asr import schemas
    from tensorflow_asr.models.transducer.conformer import Conformer

    model = Conformer(blank=0, vocab_size=VOCABULARY, **PEER_CONFIG)
    object.__setattr__(model, "_tokenizer", types.SimpleNamespace(blank=0))
    model.make(batch_size=len(samples))
    model.compile(optimizer=keras.optimizers.Adam(1e-4))
    before = labels[:, :1] * 0
    lengths = [tf.fill([len(samples)], n) for n in (samples.shape[1], labels.shape[1] + 1, labels.shape[1])]
    inputs = schemas.TrainInput(samples, lengths[0], tf.concat([before, labels], 1), lengths[1])
    batch = schemas.TrainData(inputs, schemas.TrainLabel(tf.constant(labels), lengths[2]))
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    run = tf.function(model.train_step, autograph=False, reduce_retracing=True)
    return lambda: float(next(iter(run(next(iterator)).values())))


def usage():
    """Wall clock and processor time in seconds, peak memory in MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), own.ru_utime + own.ru_stime, own.ru_maxrss / 1024


def work(args):
    """Measures one contestant in this process."""
    import numpy as np
    import tensorflow as tf

    name, _, replicas = args.worker.partition("@")
    options, replicas = name.split("+"), int(replicas or 1)
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    if replicas > 1:
        (device,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * replicas)
    rng = np.random.default_rng(args.seed)
    samples = rng.normal(0.0, 0.1, [args.batch, int(args.seconds * SAMPLE_RATE)]).astype("f")
    labels = rng.integers(1, VOCABULARY, [args.batch, args.labels]).astype("i")
    base = usage()
    if name == "tensorflowasr":
        step = peer_step(tf, samples, labels)
    else:
        from tf_rnnt_kd.nst import jobs

        jobs.keep_memory()  # as `train` does
        whole = options[0] == "step"
        step = our_step(tf, samples, labels, options, replicas) if whole else our_part(tf, samples, labels, options)
    built, times = usage(), []
    for _ in range(args.repeats + 2):  # the second is the last that may trace
        before = usage()
        value = step()
        times.append([after - start for after, start in zip(usage(), before, strict=True)])
        assert np.isfinite(value), value
    wall, cpu, _ = zip(*times, strict=True)
    row = {"build_s": built[0] - base[0], "first_s": wall[0] + wall[1], "wall_s": wall[2:], "cpu_s": cpu[2:]}
    print(json.dumps(row | {"peak_mib": usage()[2] - base[2], "value": value}))


def measure(name, args):
    """One contestant in a process of its own."""
    print("measuring", name, file=sys.stderr, flush=True)
    python = args.tensorflowasr if name == "tensorflowasr" else sys.executable
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= dict.fromkeys(["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"], str(args.threads))
    command = [python, __file__, "--worker", name, *(f"--{key}={getattr(args, key)}" for key in SETTINGS)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        return {"name": name, "error": (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]}
    return {"name": name} | json.loads(done.stdout.splitlines()[-1])


def print_table(rows, args):
    """Medians; audio is what a processor second trains."""
    print(f"{'':16} first s  wall s   cpu s  audio s / cpu s  peak MiB  loss")
    for row in rows:
        wall, cpu = (statistics.median(row[key]) for key in ("wall_s", "cpu_s"))
        audio = args.batch * args.seconds / cpu
        line = f"{row['name']:16}{row['first_s']:8.1f}{wall:8.3f}{cpu:8.3f}{audio:17.1f}{row['peak_mib']:10.0f}"
        print(line + (f"{row['value']:8.2f}" if row["name"].startswith(("step", "tensor")) else ""))


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in SETTINGS.items():
        parser.add_argument(f"--{key}", type=type(value), default=value, help="default: %(default)s")
    parser.add_argument("--tensorflowasr", metavar="PYTHON", help="its environment's")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="default: all that are available")
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    available = OURS + ["tensorflowasr"] * bool(args.tensorflowasr)
    rows = [measure(name, args) for name in args.contestants or available]
    measured = [row for row in rows if "error" not in row]
    print_table(measured, args)
    print(*(f"{row['name']} failed: {row['error']}" for row in rows if "error" in row), sep="\n")
    if args.output:
        result = {"settings": {key: getattr(args, key) for key in SETTINGS}, "rows": rows}
        pathlib.Path(args.output).write_text(json.dumps(result))
    return len(measured) < len(rows)


if __name__ == "__main__":
    sys.exit(main())
