"""A caption tokenizer without Java that splits words as the Penn Treebank does.

Its rules are derived from the output of the Java tokenizer of COCO evaluation;
`experiments/tokenizer_parity.py` measures the agreement of the two.
"""

from __future__ import annotations

import re

# marks that combine with the letter before them
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0e31\u0e34-\u0e3a"
_WORD = rf"(?:[^\W_¹²³¼½¾⅓⅔]|[{_MARKS}])+"
_LETTER = r"[^\W\d_¹²³¼½¾⅓⅔]"

_ABBREVIATIONS = """
    mr mrs ms messrs dr st jr sr vs etc inc ltd co cos corp ave blvd rd ft mt prof gen lt sgt gov
    sen sens rep reps col capt cpl pvt adm maj cmdr pres hon rev supt bros bldg dept est jan feb
    mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri al cf assn assoc p sq
    ct tel ext ariz ala calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn
    tenn va vt wis wyo mfg invt elec natl intl pty plc cie bhd wm jos esq univ ph
"""
_CAPITAL_ABBREVIATIONS = "Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_UNSEEN = r"\ufe0f\u200b-\u200f\ufeff\U00010000-\U0010ffff"  # joiners and beyond the first plane

# the first matching alternative wins
_TOKEN = re.compile(
    "|".join(
        (
            r"(?:https?://|www\.)\S*[^\s.,!?;:'\")\]]",
            r"(?<!\w)\w[\w.+-]*@\w[\w-]*(?:\.\w+)*",
            r"[@#][^\W\d_]\w*",
            r"</?[A-Za-z][A-Za-z0-9]*/?>",
            r"(?<!\S)[:;=]-?(?:[()]|[DP](?!\w))",
            r"(?<!\w)(?:[Cc]\+\+|[CFcf]\#(?!\w))",
            r"'[nN]'|'(?:em|n|til|cause|s|re|ve|ll|d|m|\d\ds?)(?!\w)|(?i:'t(?=(?:is|was)\b))",
            r"\u2019\d\ds?(?!\w)|[Yy]'(?=all\b)",
            rf"(?i:{'|'.join(_ABBREVIATIONS.split())}|ph\.d)\.(?!{_LETTER})",
            rf"(?:{_CAPITAL_ABBREVIATIONS})\.(?!{_LETTER})",
            r"(?i:nos?|figs?|pp)\.(?=\s?\d)",
            rf"(?:{_LETTER}\.)+(?!{_LETTER})|(?:{_LETTER}\.)+{_LETTER}(?!\w)",
            rf"[-+]?\d*(?:[.,:]\d+)+(?:-{_LETTER}\w*(?:-\w+)*)?",
            r"[-+]\d+",
            r"[A-Z]+(?:&[A-Z]+)+(?![^\W_])",
            r"(?:US|A)\$",
            rf"{_WORD}(?:[-_/]{_WORD}|(?<!\d)\.(?=[^\W\d_]){_WORD})*"
            rf"(?:['\u2019](?![nN]['\u2019]){_WORD})*",
            r"[!?]{2,}|-{2,}|\*{2,}|\#{2,}|_+",
            r"[¹²³¼½¾⅓⅔]",
            r"[^\w\s'\"`.,?!:;\u2026\u2013\u2014\u00ab\u00bb\u2039\u203a\u201c\u201d\u2018\u2019\-"
            rf"{_UNSEEN}]",
        )
    )
)

_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "€": "$",
    "£": "#",
    "¢": "cents",
    "¼": "1/4",
    "½": "1/2",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "cannot": "can not",
    "gonna": "gon na",
    "wanna": "wan na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
}
_CLITICS = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m", "'n")
_WITH_APOSTROPHE = re.compile(r"ma'am|n't|y'|[dlo]'\w{2,}")


def tokenize_python(text: str) -> str:
    """Return lower-cased words separated by spaces, without punctuation and without Java.

    Hyphenated words, acronyms (u.s.), abbreviations, times, decimals and addresses stay whole.
    Currency signs and the endings ``n't 's 're 've 'll 'd 'm`` are split off, as in the Penn
    Treebank. Brackets are spelled out, as in COCO evaluation; other punctuation is dropped. The
    result agrees with the Java tokenizer on ordinary captions but not on every text, so the metric
    records which tokenizer was used.

    Args:
        text: A caption.

    Example:
        >>> tokenize_python("The boy's father can't pay $5.00!")
        "the boy 's father ca n't pay $ 5.00"
    """
    tokens: list[str] = []
    for match in _TOKEN.findall(text):
        token = match.lower()
        if token[0] in ":;=" and token[-1] in "()":
            tokens.append(token[:-1] + _SPELLED[token[-1]])
        elif token.strip("-"):
            tokens += _parts(token) if token[0].isalnum() else [_SPELLED.get(token, token)]
    return " ".join(tokens)


def _parts(word: str) -> list[str]:
    """Return a word without its endings, followed by the endings."""
    if "'" not in word and "\u2019" not in word:
        return [_SPELLED.get(word, word)]
    word = word.replace("\u2019", "'")
    endings: list[str] = []
    while True:
        ending = next((each for each in _CLITICS if word.endswith(each) and word != each), None)
        if ending is None:
            break
        word = word.removesuffix(ending)
        endings.append(ending)
    whole = "'" not in word or _WITH_APOSTROPHE.fullmatch(word)
    stems = [word] if whole else [stem for stem in word.split("'") if stem]
    return stems + endings[::-1]
