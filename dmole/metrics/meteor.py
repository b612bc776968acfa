"""METEOR, computed by the Java program of COCO evaluation in one process per set."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import IO

from dmole.metrics.tokenizers import coco_folder

METEOR_JAR = "meteor-1.5.jar"


def meteor_missing() -> str:
    """Return a message about a missing requirement of METEOR; empty if none is missing."""
    if shutil.which("java") is None:
        return "METEOR needs a Java runtime, but no `java` is on the path"
    if not (coco_folder() / "meteor" / METEOR_JAR).is_file():
        return f"METEOR needs {METEOR_JAR}, which the installed pycocoevalcap does not hold"
    return ""


def require_meteor() -> None:
    """Raise an error if METEOR cannot be computed.

    Raises:
        ValueError: If the Java runtime or the METEOR program is missing.
    """
    missing = meteor_missing()
    if missing:
        raise ValueError(missing)


def meteor(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Return METEOR of a whole set and of each sample, in 0..1.

    Args:
        predictions: Tokens separated by spaces, one text per sample.
        references: Texts in the same form, one or more per sample.

    Raises:
        ValueError: If the Java runtime is missing or the program fails.

    Source:
        Denkowski and Lavie, 2014, https://aclanthology.org/W14-3348, version 1.5.
    """
    require_meteor()
    command = ["java", "-Xmx2G", "-jar", METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        with subprocess.Popen(
            command,
            cwd=coco_folder() / "meteor",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                assert process.stdin is not None  # both are pipes
                assert process.stdout is not None
                return _query(process.stdin, process.stdout, predictions, references)
            finally:
                process.kill()
    except BrokenPipeError as error:  # also raised when the pipe is closed
        raise ValueError(f"METEOR ended early on {len(predictions)} texts") from error


def _query(
    requests: IO[bytes],
    replies: IO[bytes],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
) -> tuple[float, list[float]]:
    """Run the protocol: one line of counts per sample, then the scores of all samples."""
    statistics = []
    for text, accepted in zip(predictions, references, strict=True):
        fields = ["SCORE", *map(_field, accepted), _field(text)]
        requests.write((" ||| ".join(fields) + "\n").encode(errors="replace"))
        requests.flush()
        statistics.append(replies.readline().decode().strip())
    requests.write((" ||| ".join(["EVAL", *statistics]) + "\n").encode())
    requests.flush()
    per_sample = [_number(replies.readline()) for _ in predictions]
    return _number(replies.readline()), per_sample


def _field(text: str) -> str:
    """Return a text without the field and line separators of the protocol."""
    return " ".join(text.replace("|||", "").split())


def _number(line: bytes) -> float:
    try:
        return float(line)
    except ValueError as error:
        raise ValueError(f"METEOR answered {line.decode(errors='replace').strip()!r}") from error
