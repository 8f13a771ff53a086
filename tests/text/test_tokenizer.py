import gc
import hashlib
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf
import tensorflow_text
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text import tokenizer as tokenizer_module
from tf_rnnt_kd.text.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["ZERO ONE TWO", "THREE FOUR FIVE", "SIX SEVEN EIGHT NINE", "IT'S QUITE A ZOO"] * 3
SIZES = {"characters": None, "unigram": 25, "bpe": 40, "wordpiece": 45}
MODELS = {**dict.fromkeys(SIZES, "tokenizer.model"), "wordpiece": "vocab.txt"}


def train(folder, kind, texts=TEXTS, **changes):
    return train_tokenizer(texts, str(folder), **{"kind": kind, "vocabulary_size": SIZES[kind], **changes})


@pytest.fixture(scope="module", params=SIZES)
def trained(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp(request.param), request.param)


# -- ids and text --


def test_text_survives_encoding_and_decoding(trained):
    for text in [*TEXTS[:4], "  ZERO \t ONE\n", "QUITE", "ZZZ QQ'Q", ""]:
        ids = trained.encode(text)
        assert trained.blank_id not in ids
        assert all(0 < i < trained.vocabulary_size for i in ids)
        assert trained.decode(ids) == " ".join(text.split())


@settings(max_examples=25, deadline=None)
@given(st.text("ZEROINTW' ", max_size=30))
def test_any_text_over_the_alphabet_survives(trained, text):
    ids = trained.encode(text)
    assert trained.blank_id not in ids
    assert trained.decode(ids) == " ".join(text.split())


def test_decoding_joins_pieces(trained):
    ids = [i % trained.vocabulary_size for i in range(0, 300, 7)]
    assert trained.decode(ids) == "".join(trained.pieces[i] for i in ids).strip()
    assert len(trained.pieces) == trained.vocabulary_size


def test_blank_is_id_zero_and_spells_nothing(trained):
    assert trained.blank_id == 0 and trained.pieces[0] == ""
    ids = trained.encode("ZERO ONE")
    with_blanks = [label for i in ids for label in (0, i, 0)]
    assert trained.decode(with_blanks) == "ZERO ONE"
    assert all(trained.pieces[1:])


def test_pieces_agree_with_tensorflow_text(trained):
    """Whoever exports the model detokenizes by the op: it must give the same text."""
    if trained.kind == "wordpiece":
        pytest.skip("has no detokenizer that serving uses")
    with open(os.path.join(trained.folder, "tokenizer.model"), "rb") as file:
        op = tensorflow_text.SentencepieceTokenizer(file.read(), out_type=tf.int32)
    for text in TEXTS[:4]:
        ids = trained.encode(text)
        assert op.detokenize(ids).numpy().decode().strip() == trained.decode(ids)
        assert op.tokenize(text).numpy().tolist() == ids


def test_a_tokenizer_survives_seeding_and_other_tokenizers(trained):
    """tensorflow-text keeps the model where `tf.random.set_seed` forgets it, and equal models in the same place."""
    expected = trained.encode(TEXTS[0])
    for _ in range(3):
        tf.random.set_seed(1)
        assert trained.encode(TEXTS[0]) == expected
        other = load_tokenizer(trained.folder)
        assert other.encode(TEXTS[0]) == expected
        del other
        gc.collect()
        assert trained.encode(TEXTS[0]) == expected


def test_characters_are_one_label_each(work_dir):
    trained = train(work_dir, "characters")
    assert trained.vocabulary_size == len(set("".join(TEXTS))) + 1
    assert [trained.pieces[i] for i in trained.encode("TWO ONE")] == list("TWO ONE")


@pytest.mark.parametrize(("kind", "start"), [("unigram", " "), ("bpe", " "), ("wordpiece", " ")])
def test_pieces_of_words_show_where_a_word_starts(work_dir, kind, start):
    trained = train(work_dir, kind)
    pieces = [trained.pieces[i] for i in trained.encode("ZERO ONE")]
    assert pieces[0].startswith(start)
    assert "".join(pieces) == " ZERO ONE"


@pytest.mark.parametrize("texts", [["A"], ["A B"], ["IT'S"], ["ÉTÉ ŽE"]])
def test_characters_need_hardly_any_text(work_dir, texts):
    trained = train(work_dir, "characters", texts)
    assert trained.vocabulary_size == len(set(texts[0])) + 1
    assert trained.decode(trained.encode(texts[0])) == texts[0]


def test_a_very_long_sentence_counts(work_dir):
    trained = train(work_dir, "characters", ["A B " * 5000 + "Q"])
    assert trained.decode(trained.encode("Q")) == "Q"


@pytest.mark.parametrize("kind", SIZES)
def test_a_very_long_word_is_not_lost(work_dir, kind):
    word = "ZERO" * 60
    trained = train(work_dir, kind)
    assert trained.decode(trained.encode(word)) == word


# -- what is refused --


def test_unknown_characters_are_named(trained):
    with pytest.raises(UserError) as caught:
        trained.encode("ZERO b É")
    assert str(caught.value) == (
        f"the tokenizer in {trained.folder} does not know 'b' 'É' in 'ZERO b É': "
        "normalise the transcript, or train the tokenizer on text that has them"
    )


def test_a_space_is_unknown_to_characters_of_single_words(work_dir):
    trained = train(work_dir, "characters", ["AB"])
    with pytest.raises(UserError, match="does not know ' ' in 'A B'"):
        trained.encode("A B")


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("unigram", 500, "size 500 is too large for this text: a unigram tokenizer reaches 28 at most; choose"),
        ("bpe", 500, r"vocabulary size 500 is too large for this text: a bpe tokenizer reaches \d+ at most; choose"),
        ("unigram", 5, "size 5 is too small .*: its characters alone make a unigram tokenizer of 20; choose"),
        ("bpe", 5, "vocabulary size 5 is too small .*: its characters alone make a bpe tokenizer of 20; choose"),
        ("wordpiece", 5, "vocabulary size 5 is too small .*: its characters alone make a wordpiece tokenizer of 37"),
        ("characters", 5, "19 characters, so a characters tokenizer has 20 pieces with blank, not 5: leave"),
        ("bpe", None, "a bpe tokenizer needs a vocabulary size: set it"),
        ("words", 10, "tokenizer kind 'words' is none of characters, unigram, bpe, wordpiece: choose"),
    ],
)
def test_impossible_vocabularies_are_refused(work_dir, kind, size, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(TEXTS, str(work_dir / "new"), kind=kind, vocabulary_size=size)
    assert not (work_dir / "new").exists()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_largest_possible_vocabulary_named_is_possible(work_dir, kind):
    with pytest.raises(UserError) as caught:
        train(work_dir, kind, vocabulary_size=500)
    largest = int(re.search(r"reaches (\d+) at most", str(caught.value))[1])
    assert train(work_dir, kind, vocabulary_size=largest).vocabulary_size == largest


def test_characters_accept_the_size_that_they_have(work_dir):
    assert train(work_dir, "characters", vocabulary_size=20).vocabulary_size == 20


@pytest.mark.parametrize("size", [37, 40, 1000])
def test_wordpiece_stays_below_its_limit(work_dir, size):
    trained = train(work_dir, "wordpiece", vocabulary_size=size)
    assert 37 <= trained.vocabulary_size <= size
    assert trained.decode(trained.encode("QQ ZOO'Q")) == "QQ ZOO'Q"


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_text_is_refused(work_dir, texts):
    with pytest.raises(UserError, match="no text to train the tokenizer on: check that the corpus has transcripts"):
        train(work_dir, "characters", texts)


def test_an_error_of_sentencepiece_is_passed_on(work_dir, monkeypatch):
    def fail(**_):
        raise RuntimeError("something new")

    monkeypatch.setattr(tokenizer_module.sentencepiece.SentencePieceTrainer, "train", fail)
    with pytest.raises(UserError, match="cannot train a bpe tokenizer of size 40 on this text: something new"):
        train(work_dir, "bpe")


# -- files --


def test_loading_gives_the_same_tokenizer(trained):
    loaded = load_tokenizer(trained.folder)
    assert (loaded.kind, loaded.hash, loaded.pieces) == (trained.kind, trained.hash, trained.pieces)
    assert loaded.encode(TEXTS[0]) == trained.encode(TEXTS[0])


def test_the_hash_is_that_of_model_and_kind(trained):
    with open(os.path.join(trained.folder, MODELS[trained.kind]), "rb") as file:
        assert trained.hash == hashlib.sha256(file.read() + trained.kind.encode()).hexdigest()


@pytest.mark.parametrize("kind", SIZES)
def test_equal_texts_give_equal_hashes_and_files(work_dir, kind):
    first, second = train(work_dir / "a", kind), train(work_dir / "b", kind, iter(TEXTS))
    assert first.hash == second.hash
    for name in os.listdir(work_dir / "a"):
        assert (work_dir / "a" / name).read_bytes() == (work_dir / "b" / name).read_bytes()
    assert sorted(os.listdir(work_dir / "a")) == sorted(["tokenizer.json", MODELS[kind]])
    assert train(work_dir / "c", kind, [*TEXTS, "ONE ONE ONE SIX"]).hash != first.hash or kind == "characters"


@pytest.mark.slow
def test_hashes_do_not_depend_on_the_process(work_dir):
    code = (
        "import sys; from tests.text.test_tokenizer import SIZES, train\n"
        "print([train(f'{sys.argv[1]}/{kind}', kind).hash for kind in SIZES])"
    )
    hashes = []
    for seed in "1", "2":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(work_dir / seed)]
        hashes.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert hashes[0] == hashes[1] and len(hashes[0]) > 4 * 64


@pytest.mark.parametrize("kind", SIZES)
def test_training_and_use_are_silent(work_dir, kind, capfd):
    trained = train(work_dir, kind)
    trained.encode("ZERO")
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_tokenizer_is_refused(work_dir):
    with pytest.raises(UserError, match="tokenizer.json is missing, so .* holds no tokenizer: train one there"):
        load_tokenizer(str(work_dir))


def test_a_missing_model_is_named(trained, work_dir):
    copy = train(work_dir, trained.kind)
    os.remove(work_dir / MODELS[copy.kind])
    with pytest.raises(UserError, match=f"{MODELS[copy.kind]} is missing, so .* holds no tokenizer"):
        load_tokenizer(copy.folder)


@pytest.mark.parametrize("kind", SIZES)
def test_a_flipped_byte_in_the_model_is_noticed(work_dir, kind):
    train(work_dir, kind)
    path = work_dir / MODELS[kind]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{MODELS[kind]} is damaged: its sha256 is not that of tokenizer.json; delete"):
        load_tokenizer(str(work_dir))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "no", "sha256": ""}', "\xff"])
def test_a_damaged_description_is_noticed(work_dir, text):
    train(work_dir, "characters")
    (work_dir / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="tokenizer.json is damaged: .*; delete .* and train the tokenizer again"):
        load_tokenizer(str(work_dir))


def test_training_again_replaces(work_dir):
    first = train(work_dir, "characters")
    second = train(work_dir, "characters", ["NEW"])
    assert load_tokenizer(str(work_dir)).hash == second.hash != first.hash
