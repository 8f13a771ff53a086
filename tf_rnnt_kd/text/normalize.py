"""The forms of a text: the one normal form that everything here reads, and transcripts as speech.

What a tokenizer reads, a record holds, a language model sees and an evaluation compares is `normal_form`. So two
spellings of one text that look alike, as decomposed accents or full width, are the same text everywhere.
"""

import re
import unicodedata

from tf_rnnt_kd.errors import UserError

# Invisible characters that arrange a line: soft hyphen, byte order mark, word joiner, marks and brackets of direction.
# Joiners (U+200C, U+200D) stay: Persian and the scripts of India are spelled with them.
_LAYOUT = [0xAD, 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
_INVISIBLE = {**dict.fromkeys(_LAYOUT), 0x200B: " "}  # a zero width space ends a word in Thai, Khmer and Burmese

# Control characters that are no white space, halves of a pair, the sign for what a decoder could not read, and
# code points that are no characters: what a file has that is damaged, or is not in the encoding it was read by.
_NO_TEXT = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd\ufdd0-\ufdef"
    + "".join(map(chr, (0x10000 * plane + 0xFFFE + last for plane in range(17) for last in (0, 1))))
    + "]"
)
_MARKS = re.compile(r"<unk>|</?s>|\[unk\]|\u2581", re.IGNORECASE)

# As LibriSpeech spells them.
_SPELLED = {"MR": "MISTER", "MRS": "MISSUS", "DR": "DOCTOR", "ST": "SAINT"}
_ABBREVIATION = re.compile(r"\b(" + "|".join(_SPELLED) + r")\.")
_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'"})


def normal_form(text: str) -> str:
    r"""Unicode's NFKC, with white space as one space and none at the ends, and without invisible marks of layout.

    Any text has one, and the normal form of a normal form is itself.

        "cafe\u0301"   -> "café"           decomposed accents, Hangul in parts, letters in their Arabic forms
        "ﬁne ＡＢ ½"    -> "fine AB 1⁄2"    ligatures, full width, fractions
        "a\u2028 \tb"   -> "a b"            all of Unicode's white space, zero width space among it
        "co\u00adop"    -> "coop"           soft hyphens, byte order marks, marks of direction
    """
    return " ".join(unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).split())


def clean_text(text: str) -> str:
    """The normal form of a text that people wrote.

    Raises:
      UserError: it holds what no text has, as NUL.
    """
    found = _NO_TEXT.search(text)
    if found:
        raise UserError(
            f"{text[:80]!r} has the character U+{ord(found[0]):04X}, which no text has: correct the text, or the "
            "encoding of its file (UTF-8)"
        )
    return normal_form(text)


def spoken_text(text: str) -> str:
    """The normal form of a transcript.

    Raises:
      UserError: it holds what no text has, or a mark of tokenizers and language models in place of words: `<unk>`,
        `[UNK]`, `<s>`, `</s>` or U+2581. Nobody says these, and as labels they would be blank, or mistaken for others.
    """
    text = clean_text(text)
    found = _MARKS.search(text)
    if found:
        raise UserError(
            f"{text[:80]!r} has {found[0]!r}, which tokenizers and language models keep for themselves: write what was "
            "said in its place, or leave the utterance out"
        )
    return text


def normalize_transcript(text: str) -> str:
    """Upper case with MR. MRS. DR. ST. spelled out, and nothing but A-Z, apostrophes and single spaces.

    Accents are dropped (É becomes E), `&` becomes AND, other characters become spaces. Digits become spaces too:
    numbers can be read in more than one way, so spell them out first or leave such sentences out.
    """
    text = unicodedata.normalize("NFKD", normal_form(text).translate(_APOSTROPHES)).upper()
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = _ABBREVIATION.sub(lambda match: _SPELLED[match[1]] + " ", text).replace("&", " AND ")
    words = re.sub(r"[^A-Z']", " ", text).split()
    return " ".join(word for word in words if word.strip("'"))
