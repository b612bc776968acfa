"""Messages of one line, from errors and texts."""

from __future__ import annotations


def one_line(content: BaseException | str) -> str:
    r"""Return an error or a text as one line that any terminal or file can hold.

    An error without a message is replaced by the name of its type.

    Example:
        >>> one_line("a\n  b"), one_line(ValueError())
        ('a b', 'ValueError')
    """
    text = " ".join(str(content).encode("utf-8", "backslashreplace").decode().split())
    return text or (type(content).__name__ if isinstance(content, BaseException) else "")


def shortened(text: str, limit: int = 200) -> str:
    """Return a text for a message; of a long one, beginning and end are kept.

    Args:
        text: The text.
        limit: Maximum number of characters returned, at least 40.

    Example:
        >>> shortened("a" * 50 + "z", 40)
        'aaaaaaaaaaaaaaaaaaaa ... aaaaaaaaaaaaaaz'
    """
    return text if len(text) <= limit else f"{text[: limit - 20]} ... {text[-15:]}"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message; the name of its type if it has none.

    Example:
        >>> first_line(ValueError("no such model\nsee the documentation"))
        'no such model'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
