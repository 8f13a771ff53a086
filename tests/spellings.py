"""Texts as people type them, and their normal form: the cases of which recognisers without a fault had errors."""

import unicodedata

SPELLINGS = {
    "composed": ("café fête", "café fête"),
    "decomposed accents": (unicodedata.normalize("NFD", "café fête"), "café fête"),
    "decomposed Vietnamese": (unicodedata.normalize("NFD", "tiếng việt"), "tiếng việt"),
    "Hangul in parts": (unicodedata.normalize("NFD", "안녕 세계"), "안녕 세계"),
    "ligatures": ("ﬁne ﬂow", "fine flow"),
    "ellipsis": ("well… yes", "well... yes"),
    "full width": ("ＡＢ ＣＤ", "AB CD"),
    "half width": ("ｶﾞｷﾞ", "ガギ"),
    "Arabic presentation forms": ("\ufedf\ufe92\ufee6 \ufefb", "\u0644\u0628\u0646 \u0644\u0627"),
    "Thai": ("น้ำ ทำ", "น\u0e49\u0e4d\u0e32 ท\u0e4d\u0e32"),
    "Hindi nukta": ("\u095b\u0930\u093e \u095c", "\u091c\u093c\u0930\u093e \u0921\u093c"),
    "Armenian": ("և Երևան", "եւ Երեւան"),
    "fractions": ("½ ¼", "1\u20442 1\u20444"),
    "no-break space": ("a\u00a0b\u202fc", "a b c"),
    "zero width space": ("a\u200bb", "a b"),
    "line separators": ("a\u2028b\u2029c\x85d\re\x1cf", "a b c d e f"),
    "soft hyphen": ("co\u00adop", "coop"),
    "soft hyphen before an accent": ("cafe\u00ad\u0301", "café"),
    "byte order mark": ("\ufeffa b", "a b"),
    "marks of direction": ("\u200fשלום\u200e \u2067a\u2069", "שלום a"),
    "joiners": ("می\u200cخواهم", "می\u200cخواهم"),
}
