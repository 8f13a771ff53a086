"""Transcripts as speech: what was said, in the letters that tokenizers know."""

import re
import unicodedata

# As LibriSpeech spells them.
_SPELLED = {"MR": "MISTER", "MRS": "MISSUS", "DR": "DOCTOR", "ST": "SAINT"}
_ABBREVIATION = re.compile(r"\b(" + "|".join(_SPELLED) + r")\.")
_APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'"})


def normalize_transcript(text: str) -> str:
    """Upper case with MR. MRS. DR. ST. spelled out, and nothing but A-Z, apostrophes and single spaces.

    Accents are dropped (É becomes E), `&` becomes AND, other characters become spaces. Digits become spaces too:
    numbers can be read in more than one way, so spell them out first or leave such sentences out.
    """
    text = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).upper()
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = _ABBREVIATION.sub(lambda match: _SPELLED[match[1]] + " ", text).replace("&", " AND ")
    words = re.sub(r"[^A-Z']", " ", text).split()
    return " ".join(word for word in words if word.strip("'"))
