"""Messages of one line, from errors, texts and values of unknown origin."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from typing import Any

_ENCODED = re.compile(r"[A-Za-z0-9+/=]{120,}")
"""Base64: no word is that long, and long paths hold other characters."""


def one_line(content: BaseException | str) -> str:
    r"""Return an error or a text as one line that any terminal or file can hold.

    A character that is not visible is written as its escape: control characters, which can move
    the cursor or color the terminal, marks that reverse the direction of text, characters without
    width, and halves of surrogate pairs. An error without a message is replaced by the name of
    its type.

    Example:
        >>> one_line("a\n  b"), one_line(ValueError())
        ('a b', 'ValueError')
        >>> print(one_line("\x1b[31mred"))
        \x1b[31mred
    """
    text = visible(" ".join(str(content).split()))
    return text or (type(content).__name__ if isinstance(content, BaseException) else "")


def shortened(text: str, limit: int = 200) -> str:
    """Return a text for a message: without encoded content, and cut in the middle if it is long.

    Args:
        text: The text.
        limit: Maximum number of characters returned, at least 40.

    Example:
        >>> shortened("a b " * 20 + "z", 40)
        'a b a b a b a b a b  ... b a b a b a b z'
        >>> shortened("image iVBORw0KGgo" + "A" * 5000)
        'image iVBORw0KGgoAAAAA... (5011 characters)'
    """
    text = _ENCODED.sub(lambda run: f"{run[0][:16]}... ({len(run[0])} characters)", text)
    return text if len(text) <= limit else f"{text[: limit - 20]} ... {text[-15:]}"


def visible(text: str, keep: str = "") -> str:
    r"""Return a text in which every character is visible or a space; others become an escape.

    Args:
        text: The text.
        keep: Characters to leave unchanged, such as the newline.

    Example:
        >>> print(visible("name\u202e\x07"))
        name\u202e\x07
    """
    if text.isprintable():
        return text
    return "".join(
        character if _is_visible(character) or character in keep else _escape(character)
        for character in text
    )


def show(text: str) -> None:
    """Print a text of one or more lines with all characters visible.

    Raises:
        OSError: If the output cannot be written, for example into a file on a full disk.
    """
    try:
        print(visible(text, keep="\n"), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        raise OSError(error.errno, error.strerror, "standard output") from error


def json_text(content: Any, indent: int | None = 2) -> str:
    r"""Return JSON for the terminal: characters that are not visible are written as escapes.

    Args:
        content: Plain values.
        indent: Spaces of an indentation; None writes a single line.

    Example:
        >>> json_text("größe\u202e\x9b")
        '"größe\\u202e\\u009b"'
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        character
        if _is_visible(character) or character == "\n"
        else json.dumps(character)[1:-1]  # one or two escapes of four digits
        for character in text
    ).replace("\x7f", "\\u007f")


def excerpt(value: object, length: int = 60, *, quote: bool = True) -> str:
    r"""Return a value as a part of a line, cut after a number of characters.

    Args:
        value: The value.
        length: Most characters.
        quote: Whether a text is quoted.

    Example:
        >>> excerpt(["a", 1]), excerpt("abcdef", 3, quote=False)
        ("['a', 1]", 'abc...')
    """
    if isinstance(value, str):  # a value may be long: cut it before it is escaped
        value = value[: length + 1]
    text = one_line(repr(value) if quote or not isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[:length]}..."


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message; the name of its type if it has none.

    Example:
        >>> first_line(ValueError("no such model\nsee the documentation"))
        'no such model'
    """
    return visible((str(error).strip() or type(error).__name__).splitlines()[0])


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
