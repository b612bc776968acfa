"""The two tokenizers of the caption metrics."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dmole.metrics.treebank import tokenize_python

__all__ = ["Tokenizer", "coco_folder", "resolve_tokenizer", "tokenize", "tokenize_ptb"]

Tokenizer = Literal["ptb", "python"]

PTB_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
PTB_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"

# Tokens that COCO evaluation drops. The list is upper case but the tokenizer's output is lower
# case, so brackets survive as "-lrb-"; published CIDEr figures include them.
_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
_PTB_PUNCTUATION = frozenset(_DROPPED.split())


def resolve_tokenizer(choice: Literal["auto", "ptb", "python"]) -> Tokenizer:
    """Return the tokenizer to use: "auto" is "ptb" if Java is on the path, else "python".

    Raises:
        ValueError: If the choice is unknown, or is "ptb" without Java on the path.
    """
    if choice not in ("auto", "ptb", "python"):
        raise ValueError(f"tokenizer must be 'auto', 'ptb' or 'python', got {choice!r}")
    java = shutil.which("java") is not None
    if choice == "ptb" and not java:
        raise ValueError("tokenizer 'ptb' needs a Java runtime, but no `java` is on the path")
    if choice == "auto":
        return "ptb" if java else "python"
    return choice


def tokenize_ptb(texts: Sequence[str]) -> list[str]:
    """Return texts tokenized by the Stanford PTB tokenizer, in lower case, without punctuation.

    One Java process handles the whole list (seconds for 25,000 captions).

    Raises:
        ValueError: If Java fails or returns a different number of lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.txt"
        # no newline at the end, as in COCO evaluation: it affects how a final "a." is tokenized
        lines = "\n".join(" ".join(text.split()) for text in texts)
        source.write_bytes(lines.encode(errors="replace"))  # JSON can hold half a surrogate pair
        program = ["java", "-cp", str(coco_folder() / PTB_JAR), PTB_CLASS]
        options = ["-encoding", "UTF-8", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*program, *options, str(source)], capture_output=True, check=False)
    output = done.stdout.decode(errors="replace").split("\n")[: len(texts)]
    if done.returncode or len(output) != len(texts):
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the PTB tokenizer failed on {len(texts)} texts: {reason}")
    return [" ".join(w for w in line.split() if w not in _PTB_PUNCTUATION) for line in output]


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
