import numpy as np
import pytest
import tensorflow as tf

from tests.models.layers import check_layer
from tf_rnnt_kd.models.conformer import ConformerBlock, ConformerEncoder, Convolution, FeedForward

FEATURES, FRAMES = 48, 12


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def features(batch=2, seed=0):
    return random(batch, FEATURES, 10, seed=seed)


def make_encoder(causal, num_blocks=1, left_context=4, dropout=0.0, **options):
    encoder = ConformerEncoder(8, num_blocks, 2, 3, causal, left_context if causal else None, dropout, **options)
    encoder.build((None, None, 10))
    return encoder


@pytest.fixture(scope="module")
def causal():
    return make_encoder(True)


@pytest.fixture(scope="module")
def full():
    return make_encoder(False)


# -- the parts --


def test_feed_forward():
    check_layer(lambda: FeedForward(8, dropout=0.1), [random(2, 5, 8)], (2, 5, 8))


@pytest.mark.parametrize("causal", [False, True])
def test_convolution(causal):
    check_layer(lambda: Convolution(8, 3, causal, dropout=0.1), [random(2, 5, 8), np.array([5, 2])], (2, 5, 8))


@pytest.mark.parametrize("causal", [False, True])
def test_block(causal):
    inputs = [random(2, 5, 8), np.array([5, 5]), np.ones([2, 1, 5, 5], bool)]
    check_layer(lambda: ConformerBlock(8, 2, 3, causal, dropout=0.1), inputs, (2, 5, 8))


@pytest.mark.parametrize("causal", [False, True])
def test_encoder(causal):
    inputs = [features(), np.array([FEATURES, 20])]
    make = lambda: ConformerEncoder(8, 1, 2, 3, causal, 4 if causal else None)  # noqa: E731
    check_layer(make, inputs, (2, FRAMES, 8))


@pytest.mark.parametrize(("kernel_size", "causal", "left"), [(3, False, 1), (4, False, 1), (3, True, 2), (4, True, 3)])
def test_convolution_reaches_as_far_as_its_kernel(kernel_size, causal, left):
    layer = Convolution(8, kernel_size, causal)
    plain = layer(random(1, 12, 8), np.array([12])).numpy()
    changed = random(1, 12, 8)
    changed[:, 6] += 1.0
    reached = np.flatnonzero(np.any(layer(changed, np.array([12])).numpy() != plain, axis=(0, 2)))
    right = kernel_size - 1 - left
    np.testing.assert_array_equal(reached, np.arange(6 - right, 6 + left + 1))


@pytest.mark.parametrize("causal", [False, True])
def test_convolution_does_not_see_padding(causal):
    layer = Convolution(8, 5, causal)
    dirty = random(1, 9, 8)
    dirty[:, 6:] = np.nan
    alone = layer(random(1, 9, 8)[:, :6], np.array([6]))
    np.testing.assert_allclose(layer(dirty, np.array([6]))[:, :6], alone, atol=1e-6)


# -- the encoder --


@pytest.mark.parametrize("num_features", [0, 5, 20, 31])
@pytest.mark.parametrize("kind", ["causal", "full"])
def test_nan_in_padding_changes_nothing(kind, num_features, request):
    encoder = request.getfixturevalue(kind)
    lengths = np.array([num_features, FEATURES])
    clean, dirty = features(), features()
    dirty[0, num_features:] = np.nan
    clean[0, num_features:] = 7.0
    outputs = encoder(dirty, lengths).numpy()
    valid = num_features // 4
    np.testing.assert_array_equal(outputs[0, :valid], encoder(clean, lengths)[0, :valid])
    np.testing.assert_array_equal(outputs[1], encoder(clean, lengths)[1])
    assert np.all(np.isfinite(outputs))
    if valid:
        alone = encoder(features()[:1, : 4 * valid], np.array([4 * valid]))
        np.testing.assert_allclose(outputs[:1, :valid], alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "full"])
def test_nan_in_padding_leaves_gradients_finite(kind, request):
    encoder = request.getfixturevalue(kind)
    dirty = features()
    dirty[0, 20:] = np.nan
    with tf.GradientTape() as tape:
        outputs = encoder(dirty, np.array([20, FEATURES]))
        loss = tf.reduce_sum(outputs[0, :5] ** 3) + tf.reduce_sum(outputs[1] ** 3)
    for gradient in tape.gradient(loss, [v.value for v in encoder.trainable_variables]):
        assert np.all(np.isfinite(gradient))


def test_first_outputs_of_a_causal_encoder_do_not_depend_on_later_input(causal):
    lengths = np.array([FEATURES, FEATURES])
    plain = causal(features(), lengths).numpy()
    for n in (1, 4, 11):
        changed = features()
        changed[:, 4 * n :] = random(2, FEATURES - 4 * n, 10, seed=9)
        np.testing.assert_array_equal(causal(changed, lengths)[:, :n], plain[:, :n])
        np.testing.assert_allclose(causal(features(), np.array([4 * n] * 2))[:, :n], plain[:, :n], atol=1e-6)


def test_first_outputs_of_a_full_encoder_do_depend_on_later_input(full):
    changed = features()
    changed[:, -1] += 1.0
    lengths = np.array([FEATURES, FEATURES])
    assert np.any(full(changed, lengths).numpy()[:, 0] != full(features(), lengths).numpy()[:, 0])


def test_a_causal_encoder_forgets_what_is_older_than_its_context(causal):
    changed = features(1)
    changed[:, 0] += 10.0
    lengths = np.array([FEATURES])
    differs = np.any(causal(changed, lengths).numpy() != causal(features(1), lengths).numpy(), axis=(0, 2))
    # Feature 0 enters frames 0 and 1 (two kernels of 3 with stride 2); then 4 frames of attention and 2 of convolution.
    assert differs[:7].all() and not differs[8:].any()


def test_a_causal_encoder_needs_a_context():
    with pytest.raises(ValueError, match="a causal encoder needs left_context"):
        ConformerEncoder(8, 1, 2, 3, causal=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 3, "training_chunks": (2, 6, 4)}, r"\(3, 2, 6, 4\) must divide the largest"),
        ({"chunk": 2, "causal": False}, "full context has no chunks"),
        ({"training_chunks": (1, 2), "causal": False}, "full context has no chunks"),
    ],
)
def test_chunks_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**{"causal": True, **options})


def test_frames_see_their_chunk_to_its_end_and_no_further():
    encoder, lengths = make_encoder(True, num_blocks=2, chunk=3), np.array([FEATURES])
    plain = encoder(features(1), lengths).numpy()
    for t in range(FRAMES):
        changed = features(1)
        changed[:, 4 * t + 3] += 10.0  # the last feature of frame t: also heard in frame t + 1
        first = np.flatnonzero(np.any(encoder(changed, lengths).numpy() != plain, axis=(0, 2)))[0]
        assert first == t // 3 * 3


@pytest.mark.parametrize(("left_context", "chunk"), [(0, 1), (1, 1), (4, 1), (11, 1), (30, 1), (4, 2), (5, 4), (2, 6)])
def test_attention_in_blocks_sees_the_window(left_context, chunk):
    encoder = make_encoder(True, left_context=left_context, chunk=chunk)
    query, key = np.mgrid[:FRAMES, :FRAMES]
    expected = (key >= query - left_context) & (key < (query // chunk + 1) * chunk) & (key < FRAMES - 1)
    mask = encoder._offline_mask(tf.constant([FRAMES - 1]), FRAMES, False).numpy()[0, 0]  # [K, S, W]
    found = np.zeros([FRAMES, FRAMES], bool)
    for k, s, w in zip(*np.nonzero(mask), strict=True):
        t, source = k * mask.shape[1] + s, (k + 1) * mask.shape[1] - mask.shape[2] + w
        assert t >= FRAMES or source >= 0
        if t < FRAMES:
            found[t, source] = True
    np.testing.assert_array_equal(found, expected)


def test_training_draws_its_chunk_and_evaluation_does_not():
    encoder, lengths = make_encoder(True, chunk=2, training_chunks=(1, 2, 4)), np.array([FEATURES])
    by_chunk = {}
    for chunk in (1, 2, 4):
        fixed = make_encoder(True, chunk=chunk)
        fixed.set_weights(encoder.get_weights())
        by_chunk[chunk] = fixed(features(1), lengths).numpy()
    seen = set()
    for _ in range(20):
        outputs = encoder(features(1), lengths, training=True).numpy()
        (chunk,) = (c for c, expected in by_chunk.items() if np.allclose(outputs, expected, atol=1e-5))
        seen.add(chunk)
        np.testing.assert_allclose(encoder(features(1), lengths), by_chunk[2], atol=1e-5)
    assert seen == {1, 2, 4}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_recomputed_blocks_give_the_same_gradient(causal, compiled):
    encoder = make_encoder(causal, num_blocks=2, dropout=0.3)
    inputs, lengths = tf.constant(features()), tf.constant([FEATURES, 20])
    seeds = [v for v in encoder.variables if "seed" in v.path]

    def step(inputs, lengths):
        with tf.GradientTape() as tape:
            outputs = encoder(inputs, lengths, training=True)
            loss = tf.reduce_sum(outputs[0] ** 3) + tf.reduce_sum(outputs[1, :5] ** 3)
        return loss, tape.gradient(loss, [v.value for v in encoder.trainable_variables])

    before = [v.numpy() for v in seeds]
    results = []
    for rematerialise in (False, True):
        encoder.rematerialise = rematerialise
        for variable, value in zip(seeds, before, strict=True):
            variable.assign(value)
        results.append(tf.function(step, autograph=False, jit_compile=compiled)(inputs, lengths))
        after = [v.numpy() for v in seeds]
    assert any(np.any(old != new) for old, new in zip(before, after, strict=True))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-6)
    for found, expected in zip(results[1][1], results[0][1], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_dropout_changes_the_output_in_training_only():
    encoder = make_encoder(False, dropout=0.3)
    lengths = np.array([FEATURES, FEATURES])
    quiet = encoder(features(), lengths)
    np.testing.assert_array_equal(encoder(features(), lengths), quiet)
    assert np.any(encoder(features(), lengths, training=True).numpy() != quiet.numpy())


def test_full_encoder_has_no_stream(full):
    assert full.left_context is None and not full.causal


# -- streaming --


def make_stream(encoder, batch):
    """`encoder.stream` traced once for chunks of any size, none included."""
    state = encoder.initial_state(batch)
    signature = [tf.TensorSpec([batch, None, 10]), *[tf.TensorSpec(s.shape, s.dtype) for s in state]]
    return tf.function(lambda chunk, *state: encoder.stream(chunk, state), input_signature=signature, autograph=False)


def random_cuts(rng, total):
    """Chunks of 0 to 5 frames that add up to `total`."""
    sizes = []
    while sum(sizes) < total:
        sizes.append(min(int(rng.integers(0, 6)), total - sum(sizes)))
    return [0, *sizes, 0]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_random_chunks_equal_offline(chunk):
    encoder, total = make_encoder(True, num_blocks=2, chunk=chunk), 40  # ten contexts long
    inputs = random(2, 4 * total, 10)
    offline = encoder(inputs, np.array([4 * total] * 2))
    stream = make_stream(encoder, 2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        state, parts, start = encoder.initial_state(2), [], 0
        for size in (chunk * count for count in random_cuts(rng, total // chunk)):
            frames, state = stream(inputs[:, start : start + 4 * size], *state)
            assert frames.shape == (2, size, 8)
            parts.append(frames)
            start += 4 * size
        np.testing.assert_allclose(tf.concat(parts, 1), offline, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3])
def test_rows_that_stand_in_different_places_equal_offline(chunk):
    encoder, lengths = make_encoder(True, num_blocks=2, chunk=chunk), np.array([31, 17, 6])
    inputs = random(3, 4 * 31, 10)
    offline = encoder(inputs, 4 * lengths)
    state, parts, seen = encoder.initial_state(3), [[], [], []], np.zeros([3], int)
    signature = [tf.TensorSpec([3, None, 10]), tf.TensorSpec([3], tf.int32)]
    stream = tf.function(
        lambda features, num_frames, *state: encoder.stream(features, state, num_frames),
        input_signature=[*signature, *[tf.TensorSpec(s.shape, s.dtype) for s in state]],
        autograph=False,
    )
    rng = np.random.default_rng(1)
    while any(seen < lengths):
        sizes = np.minimum(chunk * rng.integers(0, 4, 3), lengths - seen)  # some rows wait while others go on
        batch = np.full([3, 4 * max(sizes), 10], 1e3, np.float32)
        for row, (start, size) in enumerate(zip(seen, sizes, strict=True)):
            batch[row, : 4 * size] = inputs[row, 4 * start : 4 * (start + size)]
        frames, state = stream(tf.constant(batch), tf.constant(sizes, tf.int32), *state)
        for row, size in enumerate(sizes):
            parts[row].append(frames[row, :size])
        seen = seen + sizes
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(tf.concat(parts[row], 0), offline[row, :length], atol=1e-4)


def test_an_empty_chunk_leaves_the_state_as_it_is(causal):
    stream = make_stream(causal, 2)
    _, state = stream(features()[:, :12], *causal.initial_state(2))
    frames, after = stream(features()[:, :0], *state)
    assert frames.shape == (2, 0, 8)
    for old, new in zip(state, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_state_keeps_its_shapes_and_has_the_batch_first(causal):
    stream = make_stream(causal, 3)
    state = causal.initial_state(3)
    _, after = stream(features(3), *state)
    assert [s.shape for s in after] == [s.shape for s in state] and [s.dtype for s in after] == [s.dtype for s in state]
    assert all(s.shape[0] == 3 for s in state)


def test_streams_of_a_batch_do_not_see_each_other(causal):
    stream = make_stream(causal, 2)
    other = features()
    other[1] = 50.0
    frames, _ = stream(other, *causal.initial_state(2))
    expected, _ = stream(features(), *causal.initial_state(2))
    np.testing.assert_array_equal(frames[0], expected[0])
