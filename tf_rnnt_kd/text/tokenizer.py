"""Text to label ids and back. Id 0 is the transducer's blank: it takes the unknown piece's slot and spells nothing."""

import collections
import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import sentencepiece
import tensorflow as tf
import tensorflow_text
from pydantic import with_config
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib
from typing_extensions import TypedDict

from tf_rnnt_kd import files
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text.normalize import clean_text, spoken_text

BLANK_ID = 0
KINDS = ("characters", "unigram", "bpe", "wordpiece")

_DESCRIPTION = "tokenizer.json"
_MODEL_FILES = {**dict.fromkeys(KINDS, "tokenizer.model"), "wordpiece": "vocab.txt"}
_MODEL_TYPES = {"characters": "char", "unigram": "unigram", "bpe": "bpe"}
_WORD_START = "\u2581"  # sentencepiece's mark
_SUFFIX = "##"  # wordpiece's mark of what does not start a word
_UNKNOWN = "[UNK]"
_MOST_BYTES = 1 << 28  # of a model; one of a million pieces has fewer
_LONGEST_LEARNT = 1000  # characters of a word; all its parts lie in memory when wordpiece learns


@with_config(files.CLOSED)
class Description(TypedDict):
    """`tokenizer.json`; the sha256 is that of kind and model."""

    kind: Literal[KINDS]
    vocabulary_size: files.Positive
    sha256: files.Sha256


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A trained tokenizer, opened by `load_tokenizer`.

    Attributes:
      kind: one of `KINDS`.
      folder: where it was loaded from.
      hash: sha256 of its kind and model; equal hashes mean equal ids.
      pieces: [V] text of each id, with a space where a word starts: a hypothesis is its pieces, joined and stripped.
    """

    kind: str
    folder: str
    hash: str
    pieces: list[str]
    _tokenize: Callable[[str], list[int]]

    @property
    def vocabulary_size(self) -> int:
        """V, with blank."""
        return len(self.pieces)

    @property
    def blank_id(self) -> int:
        return BLANK_ID

    def encode(self, text: str) -> list[int]:
        """Label ids of a transcript: no blank is among them, and `decode` gives `normal_form(text)` back.

        Raises:
          UserError: `text` has characters that were not in the training text, or words that labels cannot spell.
        """
        text = spoken_text(text)
        unknown = sorted(set(text) - self._alphabet)
        if unknown:
            raise UserError(
                f"the tokenizer in {self.folder} does not know {' '.join(map(repr, unknown))} in {text[:80]!r}: "
                "normalise the transcript, or train the tokenizer on text that has them"
            )
        ids = self._tokenize(text)
        if not self._spells(ids, text):
            raise self._unspeakable(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of label ids; blanks spell nothing."""
        return "".join(self.pieces[i] for i in ids).strip()

    def _spells(self, ids: Sequence[int], text: str) -> bool:
        return BLANK_ID not in ids and self.decode(ids) == text

    def _unspeakable(self, text: str) -> UserError:
        words = [word for word in text.split() if not self._spells(self._tokenize(word), word)]
        named = " ".join(repr(word[:40]) for word in words[:5]) or "it"
        return UserError(
            f"the {self.kind} tokenizer in {self.folder} has no labels that spell {named} in {text[:80]!r}: correct "
            "the transcript, leave the utterance out, or take another kind of tokenizer"
        )

    @functools.cached_property
    def _alphabet(self) -> set[str]:
        # Every character of the training text is a piece of its own, so no text over them can hit the unknown piece.
        characters = {piece.strip() for piece in self.pieces if len(piece.strip()) == 1}
        return characters | {" " for piece in self.pieces if piece.startswith(" ")}


def train_tokenizer(texts: Iterable[str], folder: str, *, kind: str, vocabulary_size: int | None = None) -> Tokenizer:
    """Trains a tokenizer and writes it to `folder`; the same texts give the same bytes.

    Args:
      texts: transcripts; their normal form is learnt.
      folder: made if missing; receives the model and `tokenizer.json`.
      kind: `characters` (one piece a character, for small corpora), `unigram`, `bpe` or `wordpiece`.
      vocabulary_size: V, with blank. None for `characters`, whose text decides; an upper limit for `wordpiece`.

    Raises:
      UserError: there is no text, the text does not allow that vocabulary size, or has characters that no text has.
    """
    if kind not in KINDS:
        raise UserError(f"tokenizer kind {kind!r} is none of {', '.join(KINDS)}: choose one of them")
    if vocabulary_size is None and kind != "characters":
        raise UserError(f"a {kind} tokenizer needs a vocabulary size: set it, to 256 for example")
    texts = [text for text in map(clean_text, texts) if text]
    if not texts:
        raise UserError("no text to train the tokenizer on: check that the corpus has transcripts")
    train = _train_wordpiece if kind == "wordpiece" else _train_sentencepiece
    model = train(texts, kind, vocabulary_size)
    os.makedirs(folder, exist_ok=True)
    files.write_atomically(os.path.join(folder, _MODEL_FILES[kind]), model)
    num_pieces = len(_open_model(model, kind)[0])
    description = {"kind": kind, "vocabulary_size": num_pieces, "sha256": _hash(model, kind)}
    files.write_json(os.path.join(folder, _DESCRIPTION), description)
    return load_tokenizer(folder)


def load_tokenizer(folder: str) -> Tokenizer:
    """Opens what `train_tokenizer` wrote.

    Raises:
      UserError: there is no tokenizer in `folder`, or its files are not what was written.
    """
    remedy = f"delete {folder} and train the tokenizer again"
    try:
        description = files.read_json(os.path.join(folder, _DESCRIPTION), Description, remedy=remedy)
        path = os.path.join(folder, _MODEL_FILES[description["kind"]])
        model = files.read_bytes(path, _MOST_BYTES, remedy=remedy)
    except files.Missing as error:
        raise UserError(f"{error.path} is missing, so {folder} holds no tokenizer: train one there") from error
    if _hash(model, description["kind"]) != description["sha256"]:
        raise files.Damaged(path, f"its sha256 is not that of {_DESCRIPTION}", remedy)
    try:
        pieces, tokenize = _open_model(model, description["kind"])
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        what = f"{path} is no model of a {description['kind']} tokenizer that was trained here"
        raise UserError(f"{what} ({str(error).partition(chr(10))[0]}): {remedy}") from error
    if len(pieces) != description["vocabulary_size"]:
        raise files.Damaged(path, f"it has {len(pieces)} pieces, {_DESCRIPTION} says another number", remedy)
    return Tokenizer(description["kind"], folder, description["sha256"], pieces, tokenize)


def _hash(model: bytes, kind: str) -> str:
    return files.sha256_of(model + kind.encode())


# -- training --


def _train_sentencepiece(texts: list[str], kind: str, vocabulary_size: int | None) -> bytes:
    if kind == "characters":
        options = _character_options(texts, vocabulary_size)
    else:
        options = {"vocab_size": vocabulary_size}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=_MODEL_TYPES[kind],
            **options,
            # Blank takes the unknown's slot; sentence marks have no sound.
            unk_id=BLANK_ID,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            character_coverage=1.0,
            # `identity` would do, but makes tensorflow-text print a line wherever the model is loaded.
            normalization_rule_name="nfkc",
            max_sentence_length=1 << 24,  # bytes; longer ones would be left out in silence
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _size_error(kind, vocabulary_size, str(error)) from error
    return model.getvalue()


def _character_options(texts: list[str], vocabulary_size: int | None) -> dict[str, Any]:
    num_characters = len(set().union(*texts))
    if vocabulary_size not in (None, num_characters + 1):
        raise UserError(
            f"the text has {num_characters} characters, so a characters tokenizer has {num_characters + 1} pieces with "
            f"blank, not {vocabulary_size}: leave the vocabulary size out"
        )
    # No space before the first word: it would be one more label to emit in every utterance, with nothing to hear.
    return {"vocab_size": num_characters + 1, "add_dummy_prefix": False, "use_all_vocab": True}


def _size_error(kind: str, vocabulary_size: int | None, message: str) -> UserError:
    largest = re.search(r"set it to a value <= (\d+)", message)
    if largest:
        return UserError(
            f"vocabulary size {vocabulary_size} is too large for this text: a {kind} tokenizer reaches {largest[1]} "
            "at most; choose a smaller one"
        )
    smallest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if smallest:
        return _too_small(kind, vocabulary_size, int(smallest[1]))
    return UserError(f"sentencepiece cannot train a {kind} tokenizer of size {vocabulary_size} on this text: {message}")


def _too_small(kind: str, vocabulary_size: int | None, smallest: int) -> UserError:
    return UserError(
        f"vocabulary size {vocabulary_size} is too small for this text: its characters alone make a {kind} tokenizer "
        f"of {smallest}; choose a larger one"
    )


def _train_wordpiece(texts: list[str], kind: str, vocabulary_size: int) -> bytes:
    counts = collections.Counter(word for text in texts for word in text.split())
    longest = min(max(map(len, counts)), _LONGEST_LEARNT)
    learned = wordpiece_tokenizer_learner_lib.learn(
        sorted(counts.items()),
        vocab_size=vocabulary_size,
        reserved_tokens=[_UNKNOWN],
        lower_thresh=1,
        max_token_length=longest,
        max_unique_chars=1 << 20,
        slack_ratio=0.01,  # the search for a threshold ends this near to the wanted size
        joiner=_SUFFIX,
    )
    characters = sorted(set().union(*counts))
    needed = [*characters, *(_SUFFIX + character for character in characters)]
    if vocabulary_size < 1 + len(needed):
        raise _too_small(kind, vocabulary_size, 1 + len(needed))
    # The learner overshoots when no threshold fits, and orders pieces by use: what is cut off is what is rarest.
    optional = [piece for piece in learned if piece not in {_UNKNOWN, _SUFFIX, *needed}]
    return "".join(f"{piece}\n" for piece in [_UNKNOWN, *needed, *optional][:vocabulary_size]).encode()


# -- opening --


def _open_model(model: bytes, kind: str) -> tuple[list[str], Callable[[str], list[int]]]:
    """The text of each id, and the function from text to ids; ValueError, RuntimeError or OpError for garbage."""
    return _open_wordpiece(model) if kind == "wordpiece" else _open_sentencepiece(model)


def _open_sentencepiece(model: bytes) -> tuple[list[str], Callable[[str], list[int]]]:
    _check_sentencepiece(model)
    tokenizer = tensorflow_text.SentencepieceTokenizer(model, out_type=tf.int32)
    names = tokenizer.id_to_string(tf.range(tokenizer.vocab_size())).numpy()
    pieces = [name.decode().replace(_WORD_START, " ") for name in names]

    def tokenize(text: str) -> list[int]:
        nonlocal tokenizer
        try:
            return tokenizer.tokenize(text).numpy().tolist()
        except tf.errors.NotFoundError:
            # The model lives in a cached kernel of TensorFlow, and tf.random.set_seed drops those: load it again.
            tokenizer = tensorflow_text.SentencepieceTokenizer(model, out_type=tf.int32)
            return tokenizer.tokenize(text).numpy().tolist()

    return ["", *pieces[1:]], tokenize


def _check_sentencepiece(model: bytes) -> None:
    """The library itself reads more closely than the operation, which leaves out rules of spelling that are damaged."""
    found = sentencepiece.SentencePieceProcessor(model_proto=model)
    others = [i for i in range(found.get_piece_size()) if found.is_control(i) or found.is_unused(i) or found.is_byte(i)]
    if found.unk_id() != BLANK_ID or others:
        raise ValueError("it keeps other places than the first for itself")


def _open_wordpiece(model: bytes) -> tuple[list[str], Callable[[str], list[int]]]:
    names = model.decode().split("\n")[:-1]
    pieces = [name.removeprefix(_SUFFIX) if name.startswith(_SUFFIX) else " " + name for name in names]
    if names[:1] != [_UNKNOWN] or len(set(pieces)) < len(pieces) or any(len(piece.split()) != 1 for piece in pieces):
        raise ValueError("its lines are not [UNK] and different pieces")
    pieces[0] = ""
    ids = {piece: label for label, piece in enumerate(pieces) if label != BLANK_ID}
    longest = max(map(len, pieces))

    @functools.lru_cache(1 << 16)
    def spell(word: str) -> list[int]:
        """The longest piece at every place, as wordpiece has it; a space before the word tells its first piece."""
        labels, start = [], 0
        while start < len(word):
            ends = range(min(len(word), start + longest), start, -1)
            end = next((end for end in ends if word[start:end] in ids), None)
            if end is None:
                return [BLANK_ID]
            labels.append(ids[word[start:end]])
            start = end
        return labels

    return pieces, lambda text: [label for word in text.split() for label in spell(f" {word}")]
