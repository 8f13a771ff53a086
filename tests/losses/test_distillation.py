import numpy as np
import pytest
import tensorflow as tf

from tests.losses.batches import lattice_batch
from tests.losses.test_transducer import VECTORS, needs_vectors
from tests.oracles import divergence
from tests.oracles.joint import finite_differences
from tf_rnnt_kd.losses import collapsed_lattice_kl, lattice_kl


def lattice(batch, **options):
    return lattice_kl(batch.teacher, batch.student, batch.num_frames, batch.num_labels, **options)


def collapsed(batch, **options):
    return collapsed_lattice_kl(*batch, **options)


def student_gradient(function, batch, **options):
    student = tf.constant(batch.student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        kl = function(batch._replace(student=student), **options)
    return tape.gradient(kl, student).numpy()


def per_utterance(batch, function):
    """What `function(teacher, student, labels)` gives for each utterance without its padding."""
    return [
        function(batch.utterance(batch.teacher, b), batch.utterance(batch.student, b), batch.labels_of(b))
        for b in range(len(batch.labels))
    ]


def padded(batch, gradients):
    result = np.zeros(batch.student.shape)
    for b, gradient in enumerate(gradients):
        batch.utterance(result, b)[...] = gradient
    return result


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_lattice_kl_sums_the_kl_of_every_node(seed, temperature):
    batch = lattice_batch(seed)
    wanted = per_utterance(batch, lambda p, q, _: divergence.lattice_kl(p, q, temperature))
    np.testing.assert_allclose(lattice(batch, temperature=temperature), wanted, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_lattice_kl_gradient_is_student_minus_teacher_at_each_node(temperature):
    batch = lattice_batch(0)
    wanted = padded(batch, per_utterance(batch, lambda p, q, _: divergence.lattice_kl_gradient(p, q, temperature)))
    found = student_gradient(lattice, batch, temperature=temperature)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.any(found)


@pytest.mark.parametrize("blank_id", [0, 2, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_collapsed_kl_sums_the_kl_of_three_classes(blank_id, temperature):
    batch = lattice_batch(1, blank_id=blank_id)
    wanted = per_utterance(batch, lambda *pql: divergence.collapsed_lattice_kl(*pql, blank_id, temperature))
    np.testing.assert_allclose(collapsed(batch, blank_id=blank_id, temperature=temperature), wanted, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_collapsed_kl_gradient_equals_finite_differences(temperature):
    batch = lattice_batch(2, frames=3, labels=2, vocabulary=4)

    def numeric(teacher, student, labels):
        function = lambda q: divergence.collapsed_lattice_kl(teacher, q, labels, 0, temperature)  # noqa: E731
        return finite_differences(function, [student])[0]

    wanted = padded(batch, per_utterance(batch, numeric))
    np.testing.assert_allclose(student_gradient(collapsed, batch, temperature=temperature), wanted, atol=1e-5)


def test_collapsed_kl_of_two_classes_is_the_lattice_kl_where_a_label_comes_next():
    batch = lattice_batch(3, vocabulary=2)
    np.testing.assert_allclose(collapsed(batch), lattice(batch), rtol=1e-5)


@needs_vectors
def test_stored_reference_vector():
    inputs = next(case for case in VECTORS["rnnt_loss"] if case["name"] == "big_B2_T4_U2_V3")
    case = VECTORS["lattice_kl"]["cases"][0]
    student = tf.constant(inputs["logits"])
    teacher = student[::-1]
    labels, *lengths = (tf.constant(case[key]) for key in ("labels", "logit_lengths", "label_lengths"))
    with tf.GradientTape() as tape:
        tape.watch(student)
        kl = lattice_kl(teacher, student, *lengths)
    np.testing.assert_allclose(kl, case["kl_sum_per_example"], rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(kl, student), case["grad_student_logits_of_sum"], atol=1e-6)
    found = collapsed_lattice_kl(teacher, student, labels, *lengths, blank_id=case["blank"])
    np.testing.assert_allclose(found, case["collapsed3_sum_per_example"], rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("function", [lattice, collapsed])
def test_kl_and_gradient_vanish_when_student_is_teacher(function, scale):
    batch = lattice_batch(4, scale=scale)
    batch = batch._replace(teacher=batch.student)
    np.testing.assert_array_equal(function(batch), np.zeros(3))
    np.testing.assert_allclose(student_gradient(function, batch), np.zeros(batch.student.shape), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_collapsed_kl_is_at_most_the_full_one_and_neither_is_negative(seed):
    batch = lattice_batch(seed, vocabulary=7)
    full, three = lattice(batch).numpy(), collapsed(batch).numpy()
    assert np.all(three <= full) and np.all(three >= 0)


@pytest.mark.parametrize("function", [lattice, collapsed])
def test_teacher_has_no_gradient(function):
    batch = lattice_batch(5)
    teacher = tf.constant(batch.teacher)
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        kl = function(batch._replace(teacher=teacher))
    assert tape.gradient(kl, teacher) is None


@pytest.mark.parametrize("function", [lattice, collapsed])
def test_padding_does_not_change_kl_or_gradient(function):
    batch = lattice_batch(6)
    clean = batch._replace(teacher=np.nan_to_num(batch.teacher), student=np.nan_to_num(batch.student))
    np.testing.assert_array_equal(function(batch), function(clean))
    np.testing.assert_array_equal(student_gradient(function, batch), student_gradient(function, clean))


def test_a_class_the_teacher_excludes_adds_nothing():
    batch = lattice_batch(7, batch=1)
    batch.teacher[..., 3] = -np.inf
    with np.errstate(invalid="ignore"):
        wanted = per_utterance(batch, lambda p, q, _: divergence.lattice_kl(p, q))
    np.testing.assert_allclose(lattice(batch), wanted, rtol=1e-5)
    batch.student[..., 3] = -np.inf
    assert np.all(np.isfinite(lattice(batch))) and np.all(np.isfinite(student_gradient(lattice, batch)))
    assert np.all(np.isfinite(collapsed(batch))) and np.all(np.isfinite(student_gradient(collapsed, batch)))


@pytest.mark.parametrize("function", [lattice, collapsed])
def test_a_class_only_the_student_excludes_is_infinitely_far(function):
    batch = lattice_batch(8, batch=1)
    batch.student[..., 0] = -np.inf
    assert function(batch).numpy().tolist() == [np.inf]
    assert np.all(np.isfinite(student_gradient(function, batch)))


@pytest.mark.parametrize("function", [lattice, collapsed])
def test_a_batch_without_labels_has_one_column(function):
    batch = lattice_batch(9, labels=0)
    oracles = {
        lattice: lambda p, q, _: divergence.lattice_kl(p, q),
        collapsed: lambda *pql: divergence.collapsed_lattice_kl(*pql, 0),
    }
    np.testing.assert_allclose(function(batch), per_utterance(batch, oracles[function]), rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float64])
@pytest.mark.parametrize("function", [lattice, collapsed])
def test_any_floating_dtype_gives_float32(function, dtype):
    batch = lattice_batch(10)
    rounded = batch._replace(teacher=tf.cast(batch.teacher, dtype), student=tf.cast(batch.student, dtype))
    found = function(rounded)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, function(batch), rtol=0.05)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("function", [lattice_kl, collapsed_lattice_kl])
def test_eager_graph_and_xla_agree(function, compiled):
    batch = lattice_batch(11)
    rest = batch[3:] if function is lattice_kl else batch[2:]

    def step(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            kl = function(teacher, student, *map(tf.constant, rest))
        return kl, tape.gradient(kl, student)

    arguments = tf.constant(batch.teacher), tf.constant(batch.student)
    signature = None if compiled else [tf.TensorSpec([None] * 4)] * 2
    found = tf.function(step, input_signature=signature, jit_compile=compiled)(*arguments)
    for values, wanted in zip(found, step(*arguments), strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [lattice_kl, collapsed_lattice_kl])
def test_a_logit_at_plus_infinity_stays_visible(loss):
    logits = np.random.default_rng(0).normal(size=[2, 4, 3, 6]).astype(np.float32)
    logits[0, 1, 1, 3] = np.inf
    student, labels = tf.constant(logits), [] if loss is lattice_kl else [tf.constant([[1, 2], [3, 4]])]
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss(tf.zeros_like(student), student, *labels, tf.constant([4, 4]), tf.constant([2, 2]))
    gradient = tape.gradient(values, student)
    assert not np.all(np.isfinite(gradient[0])) and np.all(np.isfinite(gradient[1])) and np.isfinite(values[1])
