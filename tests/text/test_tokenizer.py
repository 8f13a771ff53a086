import dataclasses
import gc
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys

import pytest
import sentencepiece
import tensorflow as tf
import tensorflow_text
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.spellings import SPELLINGS
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text import tokenizer as tokenizer_module
from tf_rnnt_kd.text.normalize import normal_form
from tf_rnnt_kd.text.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["ZERO ONE TWO", "THREE FOUR FIVE", "SIX SEVEN EIGHT NINE", "IT'S QUITE A ZOO"] * 3
SIZES = {"characters": None, "unigram": 25, "bpe": 40, "wordpiece": 45}
MODELS = {**dict.fromkeys(SIZES, "tokenizer.model"), "wordpiece": "vocab.txt"}


def train(folder, kind, texts=TEXTS, **changes):
    return train_tokenizer(texts, str(folder), **{"kind": kind, "vocabulary_size": SIZES[kind], **changes})


def train_large(folder, kind, texts):
    """As many pieces as the text allows."""
    try:
        return train(folder, kind, texts, vocabulary_size=None if kind == "characters" else 900)
    except UserError as error:
        return train(folder, kind, texts, vocabulary_size=int(re.search(r"reaches (\d+) at most", str(error))[1]))


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
        op = tensorflow_text.WordpieceTokenizer(os.path.join(trained.folder, "vocab.txt"), token_out_type=tf.int32)
        for text in [*TEXTS[:4], "ZEROONE OZ'Q QQQ", "TWOS EIGHTNINE"]:
            assert op.tokenize(text.split()).flat_values.numpy().tolist() == trained.encode(text)
        return
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


# Letters of several scripts and forms, marks of tokenizers, and what is invisible or no text at all.
_ALPHABET = [
    *"ABC'é#<>[]\\ıकคำև½ﬁＡ… \t\n\r\0\x1b\x1c\x85\xa0\xad\u200b\u200c\u200d\u2028\ufeff\ufffd\ufe0f\ue000\ud800\u3164",
    *("e\u0301", "\u1112\u1161\u11ab", "\u0915\u093c", "\U0001f469", "\ufdfa"),
    *("\u2581", "<unk>", "<s>", "</s>", "[UNK]", "<pad>", "<0x41>", "##", "[PAD]"),
]


@pytest.fixture(scope="module", params=SIZES)
def strange(request, tmp_path_factory):
    """A tokenizer whose training text has all of the alphabet that a text may have."""
    texts = [" ".join(letter for letter in _ALPHABET if not re.search("[\0\x1b\ufffd\ud800]", letter)), *TEXTS]
    return train_large(tmp_path_factory.mktemp(request.param), request.param, texts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(_ALPHABET), max_size=12).map("".join))
def test_any_text_at_all_comes_back_in_its_normal_form_or_is_refused(strange, text):
    try:
        ids = strange.encode(text)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert strange.blank_id not in ids
        assert strange.decode(ids) == normal_form(text)


@pytest.mark.parametrize("kind", SIZES)
def test_every_spelling_comes_back_in_its_normal_form(work_dir, kind):
    typed = [text for text, _ in SPELLINGS.values()]
    trained = train_large(work_dir, kind, typed)
    for text, expected in SPELLINGS.values():
        assert trained.decode(trained.encode(text)) == expected


# -- what is refused --


@pytest.mark.parametrize("mark", ["[UNK]", "<unk>", "<s>", "</s>", "\u2581"])
@pytest.mark.parametrize("kind", SIZES)
def test_marks_of_tokenizers_are_refused_where_they_were_trained_on_too(work_dir, kind, mark):
    """In the ids of wordpiece [UNK] was blank; of <unk> sentencepiece said to train on text that has it."""
    trained = train_large(work_dir, kind, [*TEXTS, f"HE SAID {mark} TO THEM"])
    with pytest.raises(UserError, match=f"^'HE SAID .* THEM' has '{re.escape(mark)}', which tokenizers and language"):
        trained.encode(f"HE SAID {mark} TO THEM")
    assert trained.decode(trained.encode("HE SAID TO THEM")) == "HE SAID TO THEM"


def test_wordpiece_spells_words_that_look_like_its_own_marks(work_dir):
    """`##TAG` lost its `##`: it is the name of the piece that ends a word in TAG."""
    trained = train(work_dir, "wordpiece", ["A ##TAG ##", "B TAG [UNKNOWN]"], vocabulary_size=90)
    for text in ("B ##TAG A##", "A##TAG ##", "### #", "[UNKNOWN] [UN"):
        assert trained.decode(trained.encode(text)) == text
        assert trained.blank_id not in trained.encode(text)


def test_a_word_of_any_length_is_spelled_in_good_time(work_dir):
    """TensorFlow's operation needs the cube of a word's length."""
    trained = train(work_dir, "wordpiece")
    word = "ZERO" * 50_000
    assert trained.decode(trained.encode(f"ONE {word}")) == f"ONE {word}"


@pytest.mark.parametrize("kind", SIZES)
def test_words_that_labels_do_not_spell_are_named(work_dir, kind):
    """Whatever a library may do to a text: no label is lost, and none is blank."""
    trained = train(work_dir, kind)
    ids, tokenize = trained.encode("ONE"), trained._tokenize
    for wrong in ([*ids, trained.blank_id], ids[:-1], []):
        broken = dataclasses.replace(
            trained, _tokenize=lambda text, wrong=wrong: wrong if "ONE" in text else tokenize(text)
        )
        with pytest.raises(UserError) as caught:
            broken.encode("ZERO ONE TWO")
        assert str(caught.value) == (
            f"the {kind} tokenizer in {work_dir} has no labels that spell 'ONE' in 'ZERO ONE TWO': correct the "
            "transcript, leave the utterance out, or take another kind of tokenizer"
        )
        assert broken.encode("ZERO TWO") == trained.encode("ZERO TWO")


def test_text_that_is_none_is_refused_in_training(work_dir):
    with pytest.raises(UserError, match=r"'B\\x00C' has the character U\+0000, which no text has"):
        train(work_dir / "new", "characters", ["A", "B\0C"])
    assert not (work_dir / "new").exists()


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


def _replace_model(folder, kind, model):
    """Writes another model, and the hash that fits it."""
    (folder / MODELS[kind]).write_bytes(model)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "sha256": hashlib.sha256(model + kind.encode()).hexdigest()}))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("model", [b"", b"garbage", b"\xff\xfe\0", b"A\nA\n", b"[UNK]\n\nA\n", b"[UNK]\nA\nA\n"])
def test_a_model_that_is_none_is_refused_though_its_hash_fits(work_dir, kind, model):
    train(work_dir, kind)
    _replace_model(work_dir, kind, model)
    with pytest.raises(
        UserError, match=f"{MODELS[kind]} is no model of a {kind} tokenizer that was trained here .*: del"
    ):
        load_tokenizer(str(work_dir))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_of_100_damaged_models_whose_hash_fits_each_is_read_or_refused_in_one_line(work_dir, kind):
    train(work_dir, kind)
    whole, rng = (work_dir / MODELS[kind]).read_bytes(), random.Random(5)
    for _ in range(100):
        model = bytearray(whole[: rng.choice([len(whole), rng.randrange(1, len(whole))])])
        for _ in range(rng.choice([1, 3, 10])):
            model[rng.randrange(min(len(model), 600))] = rng.randrange(256)
        _replace_model(work_dir, kind, bytes(model))
        try:
            assert load_tokenizer(str(work_dir)).pieces[0] == ""
        except UserError as error:
            assert "\n" not in str(error)


def test_a_model_of_sentencepiece_with_marks_of_sentences_is_refused(work_dir):
    """Its ids are others than ours: blank would be a word's, or <s> a text's."""
    train(work_dir, "bpe")
    for options in (
        {},
        {"unk_id": 0, "bos_id": 1, "eos_id": 2},
        {"unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_id": 0},
    ):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=40, minloglevel=2, model_type="bpe", **options
        )
        _replace_model(work_dir, "bpe", model.getvalue())
        with pytest.raises(UserError, match="keeps other places than the first for itself"):
            load_tokenizer(str(work_dir))


def test_training_again_replaces(work_dir):
    first = train(work_dir, "characters")
    second = train(work_dir, "characters", ["NEW"])
    assert load_tokenizer(str(work_dir)).hash == second.hash != first.hash
