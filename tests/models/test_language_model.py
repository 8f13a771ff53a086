import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tests.models.layers import dtype_policy
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.saving import load_language_model, load_model, save_model

LABELS = np.array([[1, 4, 4, 2], [3, 1, 2, 2], [2, 2, 2, 2]], np.int32)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(5, width=6, num_layers=2)


def test_scores_are_log_probabilities_in_float32_whatever_the_process_computes_in():
    def make():
        return LanguageModel(5, width=6, num_layers=2)

    layer = make()
    check = layer(LABELS)
    assert check.shape == (3, 5, 5) and check.dtype == tf.float32
    np.testing.assert_allclose(np.exp(check).sum(2), 1.0, atol=1e-5)
    with dtype_policy("mixed_bfloat16"):  # a search in bfloat16 is given the same scores
        twin = make()
        twin.set_weights(layer.get_weights())
        np.testing.assert_array_equal(twin(LABELS), check)
        np.testing.assert_array_equal(twin.initial(3)[0], layer.initial(3)[0])


def test_one_label_at_a_time_equals_all_at_once(model):
    log_probs, state = model.initial(3)
    steps = [log_probs]
    for label in LABELS.T:
        log_probs, state = model.step(tf.constant(label), state)
        steps.append(log_probs)
    np.testing.assert_allclose(tf.stack(steps, 1), model(LABELS), atol=1e-6)


@pytest.mark.parametrize("ends", [[True] * 3, [False, True, False]])
def test_a_sentence_costs_its_labels_and_its_end_where_it_ends(model, ends):
    num_labels = np.array([4, 2, 0], np.int32)
    log_probs = model(LABELS).numpy().astype(np.float64)
    found = model.negative_log_likelihood(LABELS, num_labels, np.array(ends)).numpy()
    for row, (length, end) in enumerate(zip(num_labels, ends, strict=True)):
        wanted = -sum(log_probs[row, place, LABELS[row, place]] for place in range(length))
        wanted -= log_probs[row, length, 0] if end else 0.0
        assert found[row] == pytest.approx(wanted, rel=1e-5)


def test_what_lies_beyond_the_last_label_changes_neither_loss_nor_gradient(model):
    num_labels, ends = np.array([3, 1, 0], np.int32), np.array([True, True, True])

    def both(labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.negative_log_likelihood(labels, num_labels, ends))
        return [loss, *tape.gradient(loss, [v.value for v in model.trainable_variables])]

    other = np.where(np.arange(4) < num_labels[:, None], LABELS, 3)
    for ours, theirs in zip(both(LABELS), both(other.astype(np.int32)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(np.any(value) for value in both(LABELS))


def test_dropout_is_for_training_only():
    model = LanguageModel(5, width=6, dropout=0.5)
    np.testing.assert_array_equal(model(LABELS), model(LABELS))
    assert np.any(model(LABELS, training=True) != model(LABELS, training=True))


def test_it_comes_back_exactly_and_is_not_taken_for_a_transducer(work_dir, toy_tokenizer):
    model = LanguageModel(toy_tokenizer.vocabulary_size, width=6, num_layers=2, dropout=0.3)
    written = save_model(model, toy_tokenizer, str(work_dir / "language"))
    loaded, tokenizer, found = load_language_model(str(work_dir / "language"))
    assert found == written and loaded.get_config() == model.get_config()
    assert tokenizer.hash == toy_tokenizer.hash
    np.testing.assert_array_equal(loaded(LABELS), model(LABELS))
    with pytest.raises(UserError, match="holds a language model where a transducer is wanted"):
        load_model(str(work_dir / "language"))
    save_model(tiny.transducer(), toy_tokenizer, str(work_dir / "transducer"))
    with pytest.raises(UserError, match="holds a transducer where a language model is wanted"):
        load_language_model(str(work_dir / "transducer"))
