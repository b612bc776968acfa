"""The two tokenizers that caption metrics can count words with."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Tokenizer = Literal["ptb", "python"]

PTB_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
PTB_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"

# What COCO evaluation drops. The list is upper-case where the tokenizer's output is lower-case,
# so brackets survive as "-lrb-"; published CIDEr figures contain them.
_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
_PTB_PUNCTUATION = frozenset(_DROPPED.split())

_TITLES = r"(?:mr|mrs|ms|dr|st|jr|sr|vs|etc)\."
_ACRONYM = r"(?:[^\W\d_]\.){2,}"
_NUMBER = r"\d+(?:[.,:/]\d+)*(?:[^\W\d_]+)?"
_WORD = r"[^\W\d_]\w*(?:[-&']\w+)*"
_TOKEN = re.compile(rf"{_TITLES}|{_ACRONYM}|{_NUMBER}|{_WORD}|[$£€%#&@+=*()\[\]{{}}]")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SUFFIX = re.compile(r"^(.+?)(n't|'(?:s|re|ve|ll|d|m))$")


def resolve_tokenizer(choice: Literal["auto", "ptb", "python"]) -> Tokenizer:
    """Return the tokenizer to use: "auto" is PTB where Java is on the path, else our own.

    Raises:
        ValueError: If the choice is unknown, or "ptb" is asked for without Java.
    """
    if choice not in ("auto", "ptb", "python"):
        raise ValueError(f"tokenizer must be 'auto', 'ptb' or 'python', got {choice!r}")
    java = shutil.which("java") is not None
    if choice == "ptb" and not java:
        raise ValueError("tokenizer 'ptb' needs a Java runtime, but no `java` is on the path")
    if choice == "auto":
        return "ptb" if java else "python"
    return choice


def tokenize_python(text: str) -> str:
    """Return lower-cased words separated by spaces, without punctuation and without Java.

    Keeps hyphenated words, acronyms (u.s.), times and decimals whole, splits off currency signs
    and the endings ``n't 's 're 've 'll 'd 'm`` as the Penn Treebank does, spells brackets out
    as COCO evaluation leaves them, drops the rest. Agrees with the Java tokenizer on ordinary
    captions but not on every text, so the metric records which tokenizer ran.

    Example:
        >>> tokenize_python("The boy's father can't pay $5.00!")
        "the boy 's father ca n't pay $ 5.00"
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("\u2019", "'")):
        ending = _SUFFIX.match(token)
        tokens.extend(ending.groups() if ending else (_BRACKETS.get(token, token),))
    return " ".join(tokens)


def tokenize_ptb(texts: Sequence[str]) -> list[str]:
    """Return texts as the Stanford PTB tokenizer splits them, lower-cased, without punctuation.

    One Java process serves the whole list (seconds for 25,000 captions).

    Raises:
        ValueError: If Java fails, or answers with another number of lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.txt"
        # no newline at the end: COCO evaluation has none, and it decides how a final "a." is read
        lines = "\n".join(" ".join(text.split()) for text in texts)
        source.write_bytes(lines.encode(errors="replace"))  # JSON can hold halves of characters
        program = ["java", "-cp", str(coco_folder() / PTB_JAR), PTB_CLASS]
        options = ["-encoding", "UTF-8", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*program, *options, str(source)], capture_output=True, check=False)
    found = done.stdout.decode(errors="replace").split("\n")[: len(texts)]
    if done.returncode or len(found) != len(texts):
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the PTB tokenizer failed on {len(texts)} texts: {reason}")
    return [" ".join(w for w in line.split() if w not in _PTB_PUNCTUATION) for line in found]


@lru_cache(maxsize=1)
def coco_folder() -> Path:
    """Return the folder of the package that holds the Java programs of COCO evaluation.

    Raises:
        ValueError: If it is not installed.
    """
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("package pycocoevalcap, which holds the Java programs, is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Return texts as words separated by spaces."""
    if tokenizer == "ptb":
        return tokenize_ptb(texts)
    return [tokenize_python(text) for text in texts]
