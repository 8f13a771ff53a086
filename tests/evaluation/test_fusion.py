import json

import numpy as np
import pytest
import tensorflow as tf

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint, evaluate_records, make_decoder
from tf_rnnt_kd.evaluation.fusion import NO_FUSION, Weights, fuse, open_language_model
from tf_rnnt_kd.evaluation.results import read_transcriptions
from tf_rnnt_kd.models.language_model import LanguageModel
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.text.arpa import write_arpa
from tf_rnnt_kd.text.ngrams import estimate_ngrams
from tf_rnnt_kd.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def ngrams(tmp_path_factory, toy_tokenizer):
    """A file of 3-grams that knows two words."""
    path = str(tmp_path_factory.mktemp("ngrams") / "lm.arpa")
    sentences = [toy_tokenizer.encode(text) for text in ("ABBA", "BAD")]
    write_arpa(path, estimate_ngrams(sentences, 3, toy_tokenizer.vocabulary_size), toy_tokenizer.pieces)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, toy_teacher, toy_tokenizer):
    folder = str(tmp_path_factory.mktemp("fusion") / "teacher")
    save_model(toy_teacher, toy_tokenizer, folder)
    return folder


def test_a_folder_and_a_file_are_opened_and_scored_as_they_are(ngrams, toy_tokenizer, work_dir):
    model = LanguageModel(toy_tokenizer.vocabulary_size, width=6)
    hashed = save_model(model, toy_tokenizer, str(work_dir))
    scorer, found = open_language_model(str(work_dir), toy_tokenizer)
    np.testing.assert_array_equal(scorer.initial(2)[0], model.initial(2)[0])
    assert found == hashed
    scorer, found = open_language_model(ngrams, toy_tokenizer)
    log_probs, state = scorer.initial(2)
    assert np.argmax(log_probs[0]) in toy_tokenizer.encode("AB") and len(found) == 64
    (after,) = toy_tokenizer.encode("A")
    assert scorer.step(tf.constant([after, after]), state)[0].shape == (2, toy_tokenizer.vocabulary_size)


def test_a_language_model_of_other_labels_is_refused(toy_tokenizer, work_dir):
    other = train_tokenizer(["SOME OTHER TEXT"], str(work_dir / "other"), kind="characters")
    save_model(LanguageModel(other.vocabulary_size, width=4), other, str(work_dir / "language"))
    with pytest.raises(UserError, match="was trained on labels of another tokenizer"):
        open_language_model(str(work_dir / "language"), toy_tokenizer)
    write_arpa(str(work_dir / "x.arpa"), estimate_ngrams([[1, 2]], 2, other.vocabulary_size), other.pieces)
    with pytest.raises(UserError, match="is no label of the tokenizer"):
        open_language_model(str(work_dir / "x.arpa"), toy_tokenizer)
    with pytest.raises(UserError, match="no trained model in"):
        open_language_model(str(work_dir / "nowhere"), toy_tokenizer)


def test_no_weight_is_no_fusion(toy_teacher, ngrams, toy_tokenizer):
    scorer, _ = open_language_model(ngrams, toy_tokenizer)
    assert fuse(toy_teacher, scorer, NO_FUSION) is None and fuse(toy_teacher, None, NO_FUSION) is None


def test_every_weight_is_in_the_scores(toy_teacher, ngrams, toy_tokenizer):
    """The next label's scores are the sum that `Weights` says."""
    scorer, _ = open_language_model(ngrams, toy_tokenizer)
    found = fuse(toy_teacher, scorer, Weights(0.5, 0.25, 0.125)).initial(3)[0][:, 1:]
    predicted, _ = toy_teacher.initial_prediction(3)
    internal = tf.nn.log_softmax(toy_teacher.join(tf.zeros_like(predicted), predicted)[:, 1:])
    wanted = 0.5 * scorer.initial(3)[0][:, 1:] - 0.25 * internal + 0.125
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow  # traces three searches
def test_the_command_decodes_with_the_weights_and_says_so(
    checkpoint, ngrams, toy_teacher, toy_tokenizer, toy_records, work_dir
):
    weights = Weights(0.8, 0.1, 0.5)
    options = {"beam": 3, "language_model": ngrams, "weights": weights}
    evaluate_checkpoint(checkpoint, [toy_records.folder], str(work_dir / "fused" / "results.json"), **options)
    scorer, found = open_language_model(ngrams, toy_tokenizer)
    decode = make_decoder(toy_teacher, beam=3, label_scorer=fuse(toy_teacher, scorer, weights))
    wanted = [t.hypothesis for t in evaluate_records(toy_teacher, toy_tokenizer, toy_records, decode=decode)]
    assert [t.hypothesis for t in read_transcriptions(str(work_dir / "fused"), "records")] == wanted
    plain = evaluate_records(toy_teacher, toy_tokenizer, toy_records, decode=make_decoder(toy_teacher, beam=3))
    assert [t.hypothesis for t in plain] != wanted
    search = json.loads((work_dir / "fused" / "results.json").read_text())["search"]
    assert search["language_model"] == found and search["weight"] == 0.8 and search["internal_weight"] == 0.1
