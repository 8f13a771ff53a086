import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.training.test_objective import V, make_batch, teacher_joint  # noqa: F401
from tests.workers import ROOT
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.training.averages import take_averages
from tf_rnnt_kd.training.cascade import CascadedObjective
from tf_rnnt_kd.training.objective import Band, Objective
from tf_rnnt_kd.training.schedules import WarmupCosine
from tf_rnnt_kd.training.step import ReducedAdamW, decoder_rates, make_train_step, weight_noise
from tf_rnnt_kd.training.strategy import make_strategy


class Recorder:
    """An optimizer that keeps the gradients it gets and changes nothing."""

    def apply(self, gradients, variables, made):
        self.gradients = [tf.convert_to_tensor(g).numpy() for g in gradients]


def scaled(factor):
    """The usual objective, times a factor that may be no number."""

    def objective(model, batch, joint, *, compiled=False):
        sums = Objective()(model, batch, joint, compiled=compiled)
        return {**sums, "total": sums["total"] * factor}

    return objective


def one_step(optimizer, objective, *, clip_norm=1.0, model=None, joint=None, **settings):
    strategy = make_strategy("one_device")
    model = model or tiny.transducer(V, dropout=0.0)
    if isinstance(optimizer, keras.Optimizer):
        optimizer.build(model.trainable_variables)
    step = make_train_step(model, optimizer, objective, joint, clip_norm=clip_norm, **settings)
    return model, {name: float(value) for name, value in step(strategy, make_batch()).items()}


def norm_of(gradients):
    return np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in gradients))


def test_gradients_are_clipped_to_their_global_norm_and_keep_their_direction():
    loose, tight = Recorder(), Recorder()
    _, metrics = one_step(loose, scaled(1.0), clip_norm=1e9)
    _, clipped = one_step(tight, scaled(1.0), clip_norm=0.01)
    assert metrics["gradient_norm"] == pytest.approx(norm_of(loose.gradients), rel=1e-5)
    assert clipped["gradient_norm"] == pytest.approx(metrics["gradient_norm"], rel=1e-5) and metrics["skipped"] == 0.0
    assert norm_of(tight.gradients) == pytest.approx(0.01, rel=1e-4)
    for a, b in zip(tight.gradients, loose.gradients, strict=True):
        np.testing.assert_allclose(a, b * 0.01 / metrics["gradient_norm"], rtol=1e-3, atol=1e-7)


def test_metrics_are_losses_per_label(teacher_joint):  # noqa: F811
    objective = Objective(kl_weight=0.1)
    model, metrics = one_step(Recorder(), objective, joint=teacher_joint)
    sums = {name: float(value) for name, value in objective(model, make_batch(), teacher_joint).items()}
    for name in ("transducer", "ctc"):
        assert metrics[name] == pytest.approx(sums[name] / 7.0, rel=1e-4)
    assert metrics["kl"] == pytest.approx(sums["kl"] / 5.0, rel=1e-4)
    assert metrics["loss"] == pytest.approx(sums["total"] / 7.0, rel=1e-4)
    nodes = 10 * 5 + 9 * 2  # of the two that are taught
    assert metrics["kl_per_node"] == pytest.approx(sums["kl"] / nodes, rel=1e-4)


@pytest.mark.parametrize(("change", "divisor"), [({"kl_mean": True}, 2.0), ({"kl": "sequence"}, None)])
def test_a_mean_over_nodes_is_divided_by_utterances_and_alignments_have_no_nodes(teacher_joint, change, divisor):  # noqa: F811
    objective = Objective(kl_weight=0.1, **change)
    model, metrics = one_step(Recorder(), objective, joint=teacher_joint)
    kl = float(objective(model, make_batch(), teacher_joint)["kl"])
    assert metrics.get("kl_per_node") == (None if divisor is None else pytest.approx(kl / divisor, rel=1e-4))
    assert metrics["seconds"] == pytest.approx((40 + 30 + 37) / 100.0)


def test_each_pass_of_a_cascade_has_metrics_by_its_own_labels(teacher_joint):  # noqa: F811
    objective = CascadedObjective(first_pass=Objective(kl_weight=0.1), second_pass=Objective(kl_weight=0.1))
    model = tiny.transducer(V, causal=True, dropout=0.0, second_pass_blocks=1)
    _, metrics = one_step(Recorder(), objective, model=model, joint=teacher_joint)
    sums = {name: float(value) for name, value in objective(model, make_batch(), teacher_joint).items()}
    divisors = {"transducer": 7.0, "ctc": 7.0, "kl": 7.0}  # in place all are taught, from records two of three
    divisors |= {"second_pass_transducer": 7.0, "second_pass_ctc": 7.0, "second_pass_kl": 5.0}
    nodes = {"kl_per_node", "second_pass_kl_per_node"}
    assert set(metrics) == {*divisors, *nodes, "loss", "seconds", "gradient_norm", "skipped"}
    for name, labels in divisors.items():
        assert metrics[name] == pytest.approx(sums[name] / labels, rel=1e-4) and metrics[name] > 0.0


def with_factor(factor):
    """The usual objective times a variable, which a test can set to no number."""

    def objective(model, batch, joint, *, compiled=False):
        sums = Objective()(model, batch, joint, compiled=compiled)
        return {**sums, "total": sums["total"] * factor}

    return objective


def state(model, optimizer):
    """All that an update may change, by the bit."""
    variables = [*model.variables, *optimizer.variables]
    assert len({v.path for v in variables}) == len(variables)
    return {v.path: v.numpy().tobytes() for v in variables}


def in_graph(model, optimizer, factor, **settings):
    step = make_train_step(model, optimizer, with_factor(factor), None, clip_norm=1.0, **settings)
    return tf.function(lambda batch: step(make_strategy("one_device"), batch), autograph=False)


@pytest.mark.parametrize(
    ("first", "bad", "settings"),
    [
        (0, np.nan, {}),
        (2, np.inf, {"accumulation": 3, "l2": 1e-3}),
        pytest.param(2, np.nan, {"jit_compile": True}, marks=pytest.mark.slow),
    ],
)
def test_a_skipped_update_leaves_no_trace(first, bad, settings):
    model, factor = tiny.transducer(V, dropout=0.3), tf.Variable(1.0)
    rates = decoder_rates(model, 0.5)
    schedule = WarmupCosine(1e-2, steps=8, warmup=3)
    optimizer = ReducedAdamW(schedule, rates=rates, weight_decay=0.1, use_ema=True, ema_momentum=0.9)
    optimizer.build(model.trainable_variables)
    noise = weight_noise(model.trainable_variables, 0.01, 1, seed=5)
    update = in_graph(model, optimizer, factor, noise=noise, **settings)
    for seed in range(first):
        assert update(make_batch(seed))["skipped"] == 0.0
    before, values = state(model, optimizer), [v.value.numpy() for v in [*model.variables, *optimizer.variables]]
    update(make_batch(7))
    without = state(model, optimizer)  # of a run that never sees the bad batch
    for variable, value in zip([*model.variables, *optimizer.variables], values, strict=True):
        variable.assign(value)
    factor.assign(bad)
    for seed in (8, 9):
        assert update(make_batch(seed))["skipped"] == 1.0
        assert state(model, optimizer) == before
    factor.assign(1.0)
    assert update(make_batch(7))["skipped"] == 0.0
    assert state(model, optimizer) == without != before
    assert int(optimizer.iterations) == first + 1


def test_a_skipped_update_keeps_the_sign_of_a_zero():
    variable = keras.Variable([0.5, 0.5, 0.5])
    optimizer = ReducedAdamW(1e-2)
    optimizer.build([variable])
    zeros = np.array([-0.0, 0.0, -1.0], np.float32)
    optimizer.variables[2].assign(zeros)
    optimizer.apply([tf.fill([3], np.nan)], [variable], tf.constant(False))
    assert optimizer.variables[2].numpy().tobytes() == zeros.tobytes()
    np.testing.assert_array_equal(optimizer.variables[3], 0.0)


def test_averages_are_the_weights_until_the_first_update():
    model = tiny.transducer(V, dropout=0.0)
    optimizer = ReducedAdamW(1e-2, use_ema=True, ema_momentum=0.9)
    model, metrics = one_step(optimizer, scaled(np.nan), model=model)
    before = [v.numpy() for v in model.trainable_variables]
    take_averages(model, optimizer)
    assert metrics["skipped"] == 1.0
    for old, variable in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_training_goes_on_after_a_gradient_that_is_not_finite():
    optimizer = ReducedAdamW(1e-3, weight_decay=1e-2)
    model, _ = one_step(optimizer, scaled(np.nan))
    step = make_train_step(model, optimizer, scaled(1.0), None, clip_norm=1.0)
    losses = [float(step(make_strategy("one_device"), make_batch())["loss"]) for _ in range(3)]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_decay_shrinks_matrices_and_leaves_vectors_alone():
    optimizer = ReducedAdamW(0.1, weight_decay=0.5)
    before = [w.numpy() for w in tiny.transducer(V, dropout=0.0).weights]
    model, _ = one_step(optimizer, scaled(0.0))
    assert {len(v.shape) for v in model.weights} >= {1, 2, 3}
    for old, variable in zip(before, model.weights, strict=True):
        factor = 1.0 if old.ndim < 2 else 1.0 - 0.1 * 0.5
        np.testing.assert_allclose(variable, factor * old, rtol=1e-5, atol=1e-8)


def test_the_update_is_that_of_keras_at_each_variables_own_rate():
    rng = np.random.default_rng(3)
    values = {"matrix": rng.normal(size=[5, 4]), "slow": rng.normal(size=[3, 2]), "vector": rng.normal(size=[7])}

    def make(name):
        return keras.Variable(values[name].astype("f"), name=name)

    ours = [make(name) for name in values]
    rates = {variable.path: 0.25 for variable in ours if variable.name == "slow"}
    options = {"weight_decay": 0.1, "beta_1": 0.8, "beta_2": 0.97, "epsilon": 1e-6}
    schedule = WarmupCosine(0.05, steps=8, warmup=3)
    optimizer = ReducedAdamW(schedule, rates=rates, **options)
    optimizer.build(ours)
    # Keras has one rate: what is slow there has an optimizer of its own, whose decay is not slow.
    theirs = [make(name) for name in values]
    plain = keras.optimizers.AdamW(schedule, **options)
    plain.exclude_from_weight_decay(var_list=[theirs[2]])
    slow = keras.optimizers.AdamW(WarmupCosine(0.25 * 0.05, steps=8, warmup=3), **{**options, "weight_decay": 0.4})
    for _ in range(6):
        gradients = [tf.constant(rng.normal(size=value.shape), tf.float32) for value in values.values()]
        optimizer.apply(gradients, ours)
        plain.apply(gradients[::2], theirs[::2])
        slow.apply(gradients[1:2], theirs[1:2])
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=1e-7)


def test_every_weight_moves(teacher_joint):  # noqa: F811
    before = [w.numpy() for w in tiny.transducer(V, dropout=0.0).weights]
    optimizer = ReducedAdamW(1e-3, weight_decay=0.0)
    model, metrics = one_step(optimizer, Objective(kl_weight=0.1), joint=teacher_joint)
    assert metrics["skipped"] == 0.0
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.any(variable.numpy() != old), variable.path


def test_micro_batches_add_up_to_the_batch(teacher_joint):  # noqa: F811
    whole, parts = Recorder(), Recorder()
    objective = Objective(kl_weight=0.1)
    _, expected = one_step(whole, objective, joint=teacher_joint)
    _, metrics = one_step(parts, objective, joint=teacher_joint, accumulation=3)
    assert metrics == pytest.approx(expected, rel=1e-5)
    for a, b in zip(parts.gradients, whole.gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"kl_weight": 0.1, "teacher_delay": (0, 1)}, "teacher_delay of several values"),
        ({"band": Band(acoustic_scale=0.2)}, "Band.acoustic_scale"),
    ],
)
def test_what_is_decided_over_the_whole_batch_does_not_go_with_micro_batches(setting, name):
    model, objective = tiny.transducer(V), Objective(**setting)
    with pytest.raises(UserError, match=f"{name}: decided over the whole batch, which Training.accumulation = 3 divid"):
        make_train_step(model, Recorder(), objective, None, clip_norm=1.0, accumulation=3)
    make_train_step(model, Recorder(), objective, None, clip_norm=1.0, jit_compile=True)


@pytest.mark.slow  # another process
def test_what_is_decided_over_the_whole_batch_is_so_on_replicas():
    program = [sys.executable, "-m", "tests.training.divided"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dropout_moves_on_from_one_micro_batch_to_the_next():
    drawn = []

    def objective(model, batch, joint, *, compiled=False):
        drawn.append(None)
        seed = tf.cast(model.encoder.blocks[0].seeds.next()[1], tf.float32)
        return {"total": tf.reduce_sum(model.joint.bias) + seed, "labels": tf.constant(1.0), "draw": seed}

    model = tiny.transducer(V)
    before = int(model.encoder.blocks[0].seeds.state.numpy()[1])
    _, metrics = one_step(Recorder(), objective, model=model, accumulation=3)
    assert len(drawn) == 1 and int(model.encoder.blocks[0].seeds.state.numpy()[1]) == before + 3
    assert metrics["draw"] == before + 1  # the mean of before, before + 1, before + 2


@pytest.mark.slow  # another process
def test_replicas_drop_differently_and_keep_one_state():
    program = [sys.executable, "-m", "tests.training.replicas"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_l2_adds_its_gradient_to_matrices():
    plain, drawn = Recorder(), Recorder()
    model, _ = one_step(plain, scaled(1.0), clip_norm=1e9)
    one_step(drawn, scaled(1.0), clip_norm=1e9, l2=0.5)
    for a, b, weight in zip(drawn.gradients, plain.gradients, model.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b + 0.5 * weight.numpy() * (len(weight.shape) > 1), atol=1e-5)


def test_the_decoder_has_its_own_rate():
    moved = []
    for rate in (1.0, 0.25):
        model = tiny.transducer(V, dropout=0.0)
        before = [v.numpy() for v in model.trainable_variables]
        optimizer = ReducedAdamW(1e-3, weight_decay=0.0, rates=decoder_rates(model, rate))
        one_step(optimizer, scaled(1.0), model=model)
        moved.append([v.numpy() - old for v, old in zip(model.trainable_variables, before, strict=True)])
    paths = [v.path for v in model.trainable_variables]
    slower = ["/prediction/" in f"/{path}" or "/joint/" in f"/{path}" for path in paths]
    assert 0 < sum(slower) < len(slower)
    for path, own, fast, slow in zip(paths, slower, *moved, strict=True):
        np.testing.assert_allclose(slow, fast * (0.25 if own else 1.0), atol=1e-7, err_msg=path)


class Fixed(Recorder):
    """A recorder at some step."""

    def __init__(self, iterations):
        self.iterations = iterations


def test_gradients_are_those_at_noisy_weights_which_are_clean_again_afterwards():
    model = tiny.transducer(V, dropout=0.0)
    clean = [v.numpy() for v in model.trainable_variables]
    noise = weight_noise(model.trainable_variables, 0.1, 3, seed=5)
    found = {}
    for step in (2, 3, 4):
        optimizer = found[step] = Fixed(step)
        one_step(optimizer, scaled(1.0), model=model, noise=noise)
        for variable, weight in zip(model.trainable_variables, clean, strict=True):
            np.testing.assert_array_equal(variable, weight)
    drawn = noise(tf.constant(3))
    for variable, weight, moved in zip(model.trainable_variables, clean, drawn, strict=True):
        assert (moved is None) == (weight.ndim < 2)
        if moved is not None:
            assert abs(np.std(moved) - 0.1) < 0.05
            variable.assign(weight + moved.numpy())
    at_moved, at_clean = Recorder(), Recorder()
    one_step(at_moved, scaled(1.0), model=model)
    one_step(at_clean, scaled(1.0))
    for i, (a, b) in enumerate(zip(at_moved.gradients, at_clean.gradients, strict=True)):
        np.testing.assert_allclose(found[3].gradients[i], a, atol=1e-6)
        np.testing.assert_allclose(found[2].gradients[i], b, atol=1e-6)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(found[3].gradients, found[4].gradients, strict=True))


@pytest.mark.slow
def test_a_compiled_step_equals_a_plain_one(teacher_joint):  # noqa: F811
    plain, compiled = Recorder(), Recorder()
    objective = Objective(kl_weight=0.1)
    _, expected = one_step(plain, objective, joint=teacher_joint)
    _, metrics = one_step(compiled, objective, joint=teacher_joint, jit_compile=True)
    assert metrics == pytest.approx(expected, rel=1e-4)
    for a, b in zip(compiled.gradients, plain.gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
