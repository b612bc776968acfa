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


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message; the name of its type if it has none.

    Example:
        >>> first_line(ValueError("no such model\nsee the documentation"))
        'no such model'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
