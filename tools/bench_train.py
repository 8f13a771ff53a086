"""Audio trained per second of processor time, beside TensorFlowASR, and where a step's time goes.

    python tools/bench_train.py --output train.json
    python tools/bench_train.py --contestants step step+kl step step+kl step step+kl     # in turns: machines drift
    python tools/bench_train.py --tensorflowasr VENV/bin/python

Each measurement is a process. Networks are Conformer S transducers (10.3 M parameters), from samples to updated
weights: features, forward, loss, backward, Adam, the same batch every time, no augmentation. `step` is this package's
training step without auxiliary CTC, which the peer has not; `+ctc` adds it, `+kl` a teacher by stored factored targets
at weight 0.01, `+bf16` mixed precision; `@2` divides the batch among two replicas on as many logical CPUs, `@2w` among
two workers of this machine (processor time and memory are of both). `features`, `encoder`, `prediction`, `joint` (joint
network and loss) and `optimizer` are parts of `step` alone, forward and backward. `tensorflowasr` is the peer's step in
its own environment (`tensorflowasr==3.1.1`).
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tools.conformers import SAMPLE_RATE, VOCABULARY, our_conformer, peer_conformer
from tools.contestants import conclude, measure, read_arguments, usage

OURS = "step step+kl step+ctc step+bf16 step@2 step@2w features encoder prediction joint joint+kl optimizer".split()
SETTINGS = {"batch": 4, "seconds": 10.0, "labels": 40, "repeats": 5, "threads": os.cpu_count(), "seed": 0}
PEER = "tensorflowasr"
_TOLD = "TF_CONFIG"  # by which workers know of each other


def step(tf, samples, labels, options):
    """A function that makes one update and returns the loss per label."""
    from tf_rnnt_kd.batch import Batch, TeacherTargets
    from tf_rnnt_kd.features.log_mel import log_mel
    from tf_rnnt_kd.training.objective import Objective, TeacherJoint
    from tf_rnnt_kd.training.step import ReducedAdamW, make_call, make_train_step
    from tf_rnnt_kd.training.strategy import make_strategy

    if "bf16" in options:
        tf.keras.config.set_dtype_policy("mixed_bfloat16")
    if _TOLD in os.environ:
        strategy = make_strategy("multiworker")  # before any device is looked for
    else:
        strategy = make_strategy("mirrored" if len(tf.config.list_logical_devices("CPU")) > 1 else "one_device")
    with strategy.scope():
        model = our_conformer()
        optimizer = ReducedAdamW(1e-4)
        optimizer.build(model.trainable_variables)
    objective = Objective(kl_weight=0.01 if "kl" in options else 0.0, ctc_weight=0.3 if "ctc" in options else 0.0)
    joint = (
        TeacherJoint(tf.random.normal([320, VOCABULARY]) * 0.05, tf.zeros([VOCABULARY])) if "kl" in options else None
    )
    update = make_train_step(model, optimizer, objective, joint, clip_norm=1.0)

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

    own = len(labels) // strategy.num_replicas_in_sync  # what the others get does not matter to the time either
    data = tf.data.Dataset.from_tensors((samples[:own], labels[:own])).repeat().map(make_batch)
    batches = strategy.distribute_datasets_from_function(lambda _: data)
    call, iterator = make_call(strategy, update), iter(batches)
    return lambda: float(call(iterator, tf.constant(1))["loss"][0])


def features(tf, samples, labels, options):
    """Log-mel features."""
    from tf_rnnt_kd.features.log_mel import log_mel

    traced = tf.function(log_mel, autograph=False)
    return lambda: float(traced(samples)[0, 0, 0])


def encoder(tf, samples, labels, options):
    """The encoder alone."""
    from tf_rnnt_kd.features.log_mel import log_mel

    model, heard = our_conformer(), log_mel(tf.constant(samples))
    heard = heard[:, : heard.shape[1] // 4 * 4]

    def encode(heard):
        return tf.reduce_sum(model.encode(heard, tf.fill([len(labels)], heard.shape[1]), training=True)[0])

    return with_gradient(tf, encode, heard, weights_of(model))


def prediction(tf, samples, labels, options):
    """The prediction network alone."""
    model = our_conformer()

    def predict(labels):
        return tf.reduce_sum(model.predict_labels(labels, training=True))

    return with_gradient(tf, predict, tf.constant(labels), weights_of(model))


def joint(tf, samples, labels, options):
    """Joint network and losses, from its inputs."""
    from tf_rnnt_kd.losses import JointInputs, LossWeights, joint_loss_sum

    batch, frames, num_labels = len(labels), samples.shape[1] // 640, labels.shape[1]
    normal = [tf.random.normal([batch, n, 320]) for n in (frames, num_labels + 1)]
    kernel, bias = tf.random.normal([320, VOCABULARY]) * 0.05, tf.zeros([VOCABULARY])
    student = JointInputs(*map(tf.Variable, (*normal, kernel, bias)))
    teacher = JointInputs(*(x[::-1] for x in normal), kernel, bias) if "kl" in options else None
    lattice = tf.constant(labels), tf.fill([batch], frames), tf.fill([batch], num_labels)
    ones = LossWeights(*[tf.ones([batch])] * 2)

    def losses(teacher):
        return joint_loss_sum(student, teacher, *lattice, ones).total

    return with_gradient(tf, losses, teacher, list(student))


def optimizer(tf, samples, labels, options):
    """Clipping and Adam."""
    from tf_rnnt_kd.training.step import ReducedAdamW

    variables, adam = our_conformer().trainable_variables, ReducedAdamW(1e-4)
    adam.build(variables)

    @tf.function(autograph=False)
    def update(gradients):
        clipped, norm = tf.clip_by_global_norm(gradients, 1.0)
        adam.apply(clipped, variables)
        return norm

    gradients = [tf.random.normal(v.shape) * 1e-3 for v in variables]
    return lambda: float(update(gradients))


def weights_of(model):
    """TensorFlow's variables."""
    return [v.value for v in model.trainable_variables]


def with_gradient(tf, function, given, variables):
    """A function to `function(given)` that makes its gradient too: results of the graph both, or it would be pruned."""

    @tf.function(autograph=False)
    def run(given):
        with tf.GradientTape() as tape:
            value = function(given)
        return value, [g for g in tape.gradient(value, variables) if g is not None]

    return lambda: float(run(given)[0])


def peer_step(tf, samples, labels):
    """TensorFlowASR's training step, as its `fit` calls it."""
    import keras
    from tensorflow_asr import schemas

    model = peer_conformer()
    model.make(batch_size=len(samples))
    model.compile(optimizer=keras.optimizers.Adam(1e-4))
    before = labels[:, :1] * 0
    lengths = [tf.fill([len(samples)], n) for n in (samples.shape[1], labels.shape[1] + 1, labels.shape[1])]
    inputs = schemas.TrainInput(samples, lengths[0], tf.concat([before, labels], 1), lengths[1])
    batch = schemas.TrainData(inputs, schemas.TrainLabel(tf.constant(labels), lengths[2]))
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    run = tf.function(model.train_step, autograph=False, reduce_retracing=True)
    return lambda: float(next(iter(run(next(iterator)).values())))


def work(args):
    """Measures one contestant in this process, and in those of other workers that it starts."""
    import numpy as np
    import tensorflow as tf

    name, _, divided = args.worker.partition("@")
    options, count = name.split("+"), int(divided.removesuffix("w") or 1)
    others = []
    if divided.endswith("w"):
        others = start_workers(count) if _TOLD not in os.environ else []
        count = 1
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    if count > 1:
        (device,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * count)
    rng = np.random.default_rng(args.seed)
    samples = rng.normal(0.0, 0.1, [args.batch, int(args.seconds * SAMPLE_RATE)]).astype("f")
    labels = rng.integers(1, VOCABULARY, [args.batch, args.labels]).astype("i")
    base = usage()
    if name == PEER:
        run = peer_step(tf, samples, labels)
    else:
        from tf_rnnt_kd.nst import jobs

        jobs.keep_memory()  # as `train` does
        run = globals()[options[0]](tf, samples, labels, options)
    built, times = usage(), []
    for _ in range(args.repeats + 2):  # the second is the last that may trace
        before = usage()
        value = run()
        times.append([after - start for after, start in zip(usage(), before, strict=True)])
        assert np.isfinite(value), value
    wall, cpu, _ = zip(*times, strict=True)
    row = {"build_s": built[0] - base[0], "first_s": wall[0] + wall[1], "wall_s": wall[2:], "cpu_s": cpu[2:]}
    row |= {"peak_mib": usage()[2] - base[2], "value": value}
    for theirs in (json.loads(other.communicate()[0].splitlines()[-1]) for other in others):
        row["cpu_s"] = [sum(pair) for pair in zip(row["cpu_s"], theirs["cpu_s"], strict=True)]
        row["peak_mib"] += theirs["peak_mib"]
    print(json.dumps(row))


def start_workers(count):
    """Starts all workers but this one, and tells everybody of the others."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    tasks = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(count)]
    first, *rest = ({_TOLD: json.dumps(task)} for task in tasks)
    command = [sys.executable, *sys.argv]
    others = [subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE, text=True) for told in rest]
    os.environ |= first
    return others


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
    args = read_arguments(__doc__, SETTINGS, [PEER])
    if args.worker:
        return work(args)
    names = args.contestants or OURS + [PEER] * bool(args.tensorflowasr)
    rows = [measure(__file__, name, args.tensorflowasr if name == PEER else None, args, SETTINGS) for name in names]
    return conclude(rows, args, SETTINGS, lambda measured: print_table(measured, args))


if __name__ == "__main__":
    sys.exit(main())
