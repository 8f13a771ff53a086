"""What counts as the same word: functions that references and hypotheses pass through before words are compared."""

import difflib
import functools
import importlib.metadata
import unicodedata
import warnings
from collections.abc import Callable
from typing import NamedTuple

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.text.normalize import normal_form

Normaliser = Callable[[str], str]  # any text -> words with one space between them

DEFAULT = "none"
_WHISPER = "whisper-normalizer"
_OURS = "1"  # goes up whenever one of the functions below changes what it gives

_JOINS = str.maketrans({"_": " ", "/": " ", "\u200c": " ", "\u200d": None})
_APOSTROPHES = "'\u2018\u2019\u02bc`\u00b4"
_NO_APOSTROPHES = dict.fromkeys(map(ord, _APOSTROPHES))


class Scoring(NamedTuple):
    """How error rates were counted, as `results.json` says it: rates are comparable where both are equal.

    Attributes:
      normaliser: a name of `NORMALISERS`.
      version: of what it does.
    """

    normaliser: str = DEFAULT
    version: str = _OURS


def case_and_punctuation(text: str) -> str:
    """Case and punctuation do not count: Unicode's case folding, no apostrophes, other punctuation is white space.

    Accents, digits and symbols such as $ count. What is folded is the same for all languages: Turkish I is i.

        "Don't, Mr. O\u2019Neil!"     -> "dont mr oneil"
        "Straße -- well-known"   -> "strasse well known"
        "3.5 % für 20 €"         -> "3 5 für 20 €"
    """
    text = normal_form(normal_form(text).casefold()).translate(_NO_APOSTROPHES)
    return normal_form("".join(" " if unicodedata.category(each).startswith("P") else each for each in text))


def none(text: str) -> str:
    """Nothing beyond the normal form that every text has here: `text.normalize.normal_form`.

    "Don't  stop\u2026" -> "Don't stop..."
    """
    return normal_form(text)


def whitespace(text: str) -> str:
    """What is written between words does not count: hyphens, dashes, `_`, `/` and U+200C are white space.

    "well-known and/or e\u2013mail"  -> "well known and or e mail"
    "Don't."                    -> "Don't."
    """
    text = normal_form(text).translate(_JOINS)
    return normal_form("".join(" " if unicodedata.category(each) == "Pd" else each for each in text))


def whisper_english(text: str) -> str:
    """As the error rates of Whisper on English are counted (Radford et al. 2022, appendix C), by its own code.

    Lower case, contractions and titles written out, numbers in digits, American spelling; brackets and what is in them
    go, and so do hmm, uh and um. A possessive is taken for "is": the same on both sides, as a rule.

        "Uh, Mr. Brown can't (laughs)"  -> "mister brown can not"
        "twenty-two grey cats"          -> "22 gray cats"

    Raises:
      UserError: the package that holds it is not installed.
    """
    return normal_form(_open_whisper()(normal_form(text)))


@functools.cache
def _open_whisper() -> Normaliser:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape in one of its docstrings
            from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError(
            f"the normaliser 'whisper_english' needs the package {_WHISPER}: pip install 'tf_rnnt_kd[whisper]', or "
            "choose another one"
        ) from error
    return EnglishTextNormalizer()


NORMALISERS: dict[str, Normaliser] = {
    each.__name__: each for each in (none, whitespace, case_and_punctuation, whisper_english)
}


def scoring(normaliser: str) -> Scoring:
    """The scoring by a normaliser of that name, as it is here and now.

    Raises:
      UserError: there is none, or the package that holds it is not installed.
    """
    if normaliser not in list(NORMALISERS):
        near = difflib.get_close_matches(str(normaliser), NORMALISERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"normaliser {normaliser!r} is none of {', '.join(NORMALISERS)}: choose one of them{hint}")
    if normaliser != whisper_english.__name__:
        return Scoring(normaliser)
    _open_whisper()
    return Scoring(normaliser, f"{_WHISPER} {importlib.metadata.version(_WHISPER)}")
