"""Messages of one line: what users read of an error or a text, wherever it is printed."""

from __future__ import annotations


def one_line(content: BaseException | str) -> str:
    r"""Return an error or a text as one line that can be printed and written anywhere.

    An error without a message is named by its type.

    Example:
        >>> one_line("a\n  b"), one_line(ValueError())
        ('a b', 'ValueError')
    """
    text = " ".join(str(content).encode("utf-8", "backslashreplace").decode().split())
    return text or (type(content).__name__ if isinstance(content, BaseException) else "")


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, its type where there is none.

    Example:
        >>> first_line(ValueError("no such model\nsee the documentation"))
        'no such model'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
