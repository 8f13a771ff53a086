"""Time and memory of joint network and losses, forward and backward, beside other ways to the same numbers.

    python tools/bench_loss.py --output loss.json
    python tools/bench_loss.py --contestants tiles tiles+kl+ragged+xla products
    python tools/bench_loss.py --tensorflowasr VENV/bin/python --fast_rnnt VENV/bin/python

Each measurement is a process. All get the same inputs, and no time is printed before they agree on losses and
gradients. Peers run in environments of their own (`tensorflowasr==3.1.1`; `fast_rnnt` with torch). A contestant is
`BASE[+OPTION...]`; options are `kl` (a second joint network as teacher), `ragged` (lengths of 50 to 100 %), `xla`,
`bf16` (products); bases are the functions below that return losses by name, and `products`, matrix products alone.
"""

import importlib
import json
import math
import os
import pathlib
import statistics
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tools.contestants import conclude, measure, read_arguments, usage

OURS = """tiles tiles+kl tiles+ragged tiles+kl+ragged tiles+bf16 tiles+kl+bf16 tiles+xla tiles+kl+xla
tiles+kl+ragged+xla total+kl total+kl+ragged total+kl+bf16 total+kl+xla full full+kl full+kl+xla unfused unfused+kl
unfused+kl+ragged unfused+kl+xla band band+kl band+kl+xla products""".split()
PEERS = "tensorflowasr tensorflowasr+ragged fast_rnnt fast_rnnt+ragged fast_rnnt+pruned".split()
LIBRARIES = {"fast_rnnt": "fast_rnnt", "tensorflowasr": "tensorflow_asr.losses.impl.rnnt"}
SETTINGS = {"batch": 4, "frames": 400, "labels": 60, "width": 512, "vocabulary": 1024}
SETTINGS |= {"repeats": 5, "seed": 0, "threads": os.cpu_count()}
BAND_COLUMNS = 5
# How far two contestants may be apart, relative. What a band changes has names of its own; bands may differ where
# columns hold nearly the same.
TOLERANCES = {"transducer": 1e-3, "kl": 1e-3, "gradient": 1e-2, "gradient+kl": 1e-2}
TOLERANCES |= {"additive": 1e-3, "pruned": 2e-2, "pruned kl": 2e-2}
LISTED = []  # by `tiles`, when traced: nodes in the blocks of the first pass, and of the second the kept and the others


class Data(NamedTuple):
    """Arrays or tensors; student and teacher are encoded, predicted, kernel and bias."""

    student: tuple
    teacher: tuple  # or none
    projections: tuple  # two [D, V] of an additive joint network, or none
    lattice: tuple  # labels [B, U], num_frames [B], num_labels [B], int32
    product_dtype: str = "float32"


def make_data(np, args, options):
    """The same in every environment."""

    def normal(seed, *shapes):  # kernel and bias are scaled for logits of variance near 1
        rng = np.random.default_rng(args.seed + seed)
        return tuple(rng.standard_normal(shape, "f") * args.width ** (-0.5 * (len(shape) < 3)) for shape in shapes)

    kernel = args.width, args.vocabulary
    joint = (args.batch, args.frames, args.width), (args.batch, args.labels + 1, args.width), kernel, kernel[1:]
    share = np.linspace(1.0, 0.5 if "ragged" in options else 1.0, args.batch)
    lengths = [np.ceil(share * size).astype("i") for size in (args.frames, args.labels)]
    labels = np.random.default_rng(args.seed + 3).integers(1, args.vocabulary, (args.batch, args.labels), "i")
    teacher = normal(1, *joint) if "kl" in options else ()
    projections = normal(2, kernel, kernel) if {"band", "pruned"} & set(options) else ()
    product_dtype = "bfloat16" if "bf16" in options else "float32"
    return Data(normal(0, *joint), teacher, projections, (labels, *lengths), product_dtype)


def logits_of(library, inputs):
    """[B, T, U+1, V]."""
    encoded, predicted, kernel, bias = inputs
    return library.tanh(encoded[:, :, None] + predicted[:, None]) @ kernel + bias


def tiles(tf, ours, data):
    """`joint_tile_losses`, which never holds all logits."""
    student, teacher = counted_inputs(tf, ours, data)
    loss, kl = ours.joint_tile_losses(student, teacher, *data.lattice, product_dtype=data.product_dtype)
    return {"transducer": loss, "kl": kl} if teacher else {"transducer": loss}


def total(tf, ours, data):
    """`joint_loss_sum`, as a training step calls it: the weights are known beforehand."""
    student, teacher = counted_inputs(tf, ours, data)
    weights = ours.LossWeights(*[tf.ones_like(data.lattice[1], tf.float32)] * 2)
    losses = ours.joint_loss_sum(student, teacher, *data.lattice, weights, product_dtype=data.product_dtype)
    return {"total": losses.total, "transducer": losses.transducer} | ({"kl": losses.kl} if teacher else {})


def counted_inputs(tf, ours, data):
    """Student and teacher; from now on `LISTED` gets the nodes of each list of blocks."""

    def counted(grid, wanted, listed=ours.blocks.Grid.listed):
        LISTED.append(tf.math.count_nonzero(wanted, dtype=tf.int32) * ours.blocks.BLOCK_NODES)
        return listed(grid, wanted)

    ours.blocks.Grid.listed = counted
    return [ours.JointInputs(*part) if part else None for part in data[:2]]


def full(tf, ours, data):
    """`transducer_loss` and `lattice_kl` of all logits."""
    logits = logits_of(tf, data.student)
    kl = {"kl": ours.lattice_kl(logits_of(tf, data.teacher), logits, *data.lattice[1:])} if data.teacher else {}
    return {"transducer": ours.transducer_loss(logits, *data.lattice)} | kl


def unfused(tf, ours, data):
    """All log-probabilities and autodiff; of ours only the recursion."""
    labels, *lengths = data.lattice
    student = tf.nn.log_softmax(logits_of(tf, data.student))  # [B, T, U+1, V]
    upcoming = tf.maximum(ours.transducer.next_labels(labels, lengths[1]), 0)[:, None]
    label = tf.gather(student, tf.broadcast_to(upcoming, student.shape[:3]), batch_dims=3)[:, :, :-1]
    losses = {"transducer": ours.transducer.arc_loss(student[..., 0], label, *lengths)}
    if data.teacher:
        teacher = tf.nn.log_softmax(logits_of(tf, data.teacher))
        mask = ours.lattice.node_mask(*lengths, student.shape[1], labels.shape[1])[..., None]
        losses["kl"] = tf.reduce_sum(tf.where(mask, tf.exp(teacher) * (teacher - student), 0.0), axis=[1, 2, 3])
    return losses


def band(tf, ours, data):
    """`band_losses`; the additive joint network is two more projections."""
    student, teacher = (ours.JointInputs(*part) if part else None for part in data[:2])
    additive = ours.AdditiveJoint(
        *(tf.tensordot(x, k, 1) for x, k in zip(data.student, data.projections, strict=False))
    )
    losses = ours.band_losses(student, teacher, additive, *data.lattice, columns=BAND_COLUMNS)
    return {"pruned": losses.transducer, "additive": losses.additive} | ({"pruned kl": losses.kl} if teacher else {})


def tensorflowasr(tf, theirs, data):
    """TensorFlowASR's loss of all logits."""
    labels, num_frames, num_labels = data.lattice
    return {"transducer": theirs.rnnt_loss_tf(logits_of(tf, data.student), labels, num_labels, num_frames)}


def fast_rnnt(torch, theirs, data):
    """Its loss of all logits or, with the option `pruned`, in a band found as in `band`."""
    labels, num_frames, num_labels = (values.long() for values in data.lattice)
    boundary = torch.stack([0 * num_labels, 0 * num_labels, num_labels, num_frames], dim=1)
    common = {"termination_symbol": 0, "boundary": boundary, "reduction": "none"}
    if not data.projections:
        return {"transducer": theirs.rnnt_loss(logits_of(torch, data.student), labels, **common)}
    acoustic, linguistic = map(torch.matmul, data.student[:2], data.projections)
    scales = {"lm_only_scale": 0.25, "am_only_scale": 0.0, "return_grad": True}
    additive, arcs = theirs.rnnt_loss_smoothed(linguistic, acoustic, labels, **scales, **common)
    ranges = theirs.get_rnnt_prune_ranges(*arcs, boundary, BAND_COLUMNS)
    logits = torch.tanh(sum(theirs.do_rnnt_pruning(*data.student[:2], ranges))) @ data.student[2] + data.student[3]
    return {"pruned": theirs.rnnt_loss_pruned(logits, labels, ranges, **common), "additive": additive}


def tensorflow_step(tf, losses, data, options):
    """A function to losses by name, gradients by student and projections, and `LISTED`."""
    data = data._replace(**{name: tuple(map(tf.constant, getattr(data, name))) for name in Data._fields[:4]})

    @tf.function(jit_compile="xla" in options)
    def step(data):
        LISTED.clear()
        with tf.GradientTape() as tape:
            tape.watch(sources := data.student + data.projections)
            values = losses(data)
            summed = values.pop("total", None)  # who has one has no other gradient
            total = tf.add_n(list(values.values())) if summed is None else summed
        return values, tape.gradient(total, sources), tuple(LISTED)

    return lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), step(data))


def torch_step(torch, losses, data, options):
    """The same in torch."""
    data = data._replace(**{name: tuple(map(torch.from_numpy, getattr(data, name))) for name in Data._fields[:4]})
    sources = [values.requires_grad_() for values in data.student + data.projections]

    def step():
        values = losses(data)
        gradients = torch.autograd.grad(sum(values.values()).sum(), sources)
        return {name: loss.detach().numpy() for name, loss in values.items()}, [g.numpy() for g in gradients], ()

    return step


def products_step(tf, losses, data, options):
    """The three products with the kernel, of all nodes, some thousand nodes at a time."""
    nodes, kernel = math.prod(data.student[0].shape[:2]) * data.student[1].shape[1], tf.constant(data.student[2])
    pieces = -(-nodes // 1024)
    hidden, logits = (tf.random.normal([nodes // pieces, size]) for size in kernel.shape)
    transposed = tf.transpose(kernel)  # the faster form of the second

    def step():
        for _ in range(pieces):
            products = hidden @ kernel, logits @ transposed, tf.matmul(hidden, logits, True)
        return {}, [product.numpy() for product in products], ()

    return step


def count_products(args, options, listed):
    """Products with a kernel that an algorithm needs, in those of all nodes: forward and two for the gradient."""
    nodes, networks = args.batch * args.frames * (args.labels + 1), 1 + ("kl" in options)
    if {"tiles", "total"} & set(options):
        first, kept, anew = (count / nodes for count in listed)
        teacher = first + kept + anew if "tiles" in options else kept + anew
        return first + anew + (networks - 1) * teacher + 2 * (kept + anew)
    if {"band", "pruned"} & set(options):
        projected = args.batch * (args.frames + args.labels + 1) / nodes
        return (networks + 2) * min(1, BAND_COLUMNS / (args.labels + 1)) + 3 * projected
    return networks + 2


def work(args):
    """Measures one contestant in this process."""
    base, *_ = options = args.worker.split("+")
    names = "numpy", "torch" if base == "fast_rnnt" else "tensorflow", LIBRARIES.get(base, "tf_rnnt_kd.losses")
    np, framework, library = map(importlib.import_module, names)
    baseline, data, times = usage()[2], make_data(np, args, options), []
    make_step = {"products": products_step, "fast_rnnt": torch_step}.get(base, tensorflow_step)
    step = make_step(framework, lambda data: globals()[base](framework, library, data), data, options)
    for _ in range(args.repeats + 1):
        before = usage()
        values, gradients, listed = step()
        times.append([after - start for after, start in zip(usage(), before, strict=True)])
    wall, cpu, _ = zip(*times, strict=True)
    row = {"first_s": wall[0], "wall_s": wall[1:], "cpu_s": cpu[1:], "peak_mib": usage()[2] - baseline}
    row["products"] = float(count_products(args, options, listed))
    norms = [np.linalg.norm(gradient.astype("d")) for gradient in gradients]
    values |= {"gradient+kl" if "kl" in values else "gradient": norms} if "transducer" in values else {}
    row["values"] = {name: np.asarray(value, "d").tolist() for name, value in values.items()}
    print(json.dumps(row))


def cross_check(rows):
    """Exits where two contestants differ."""
    seen = {}
    for row in rows:
        for key, own in row["values"].items():
            other, theirs = seen.setdefault((key, "ragged" in row["name"]), (row["name"], own))
            allowed = TOLERANCES[key] * (10 if "bf16" in row["name"] else 1)
            if not all(math.isclose(*pair, rel_tol=allowed) for pair in zip(own, theirs, strict=True)):
                sys.exit(f"{row['name']} and {other} differ in {key}: {own} and {theirs}")


def print_table(rows):
    """Medians; the limit is what a contestant's products take alone."""
    print(f"{'':21} first s  wall s   cpu s  peak MiB  products  wall/limit  cpu/limit")
    medians = {row["name"]: [statistics.median(row[key]) for key in ("wall_s", "cpu_s")] for row in rows}
    for row in rows:
        (wall, cpu), products = medians[row["name"]], row["products"]
        line = f"{row['name']:21}{row['first_s']:8.1f}{wall:8.3f}{cpu:8.3f}{row['peak_mib']:10.0f}{products:10.2f}"
        if "products" in medians:
            limits = [seconds * products / 3 for seconds in medians["products"]]
            line += f"{wall / limits[0]:12.2f}{cpu / limits[1]:11.2f}"
        print(line + "  a band: agrees with other bands only" * ("pruned" in row["values"]))


def main():
    """Reads the command line."""
    args = read_arguments(__doc__, SETTINGS, list(LIBRARIES))
    if args.worker:
        return work(args)
    pythons = {name: getattr(args, name.split("+")[0], None) for name in OURS + PEERS + (args.contestants or [])}
    bases = {name.split("+")[0] for name in OURS + PEERS if name in OURS or pythons[name]}
    if unknown := {name.split("+")[0] for name in args.contestants or ()} - bases:
        print(f"unknown, or without its environment: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    names = args.contestants or [name for name in OURS + PEERS if name.split("+")[0] in bases]
    rows = [measure(__file__, name, pythons[name], args, SETTINGS) for name in names]
    cross_check([row for row in rows if "error" not in row])
    return conclude(rows, args, SETTINGS, print_table)


if __name__ == "__main__":
    sys.exit(main())
