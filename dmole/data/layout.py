"""What a layout is: how the files of a task are written, and what it needs beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dmole.data.items import Numbered, Source


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of a task are written.

    Args:
        items: Reads the items of a split.
        does: What the layout is, in a few words.
        required: Side files without which test items cannot be read.
        optional: Further side files.
        prompt: Wording of the questions where the task does not say; None leaves them as they are.
        wants_prompt: Whether the task must say, because the files hold no question.
        published: Whether the files are others', in which ids may repeat; those get a number.
    """

    items: Callable[[Source], Numbered]
    does: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    prompt: str | None = None
    wants_prompt: bool = False
    published: bool = True

    def check_side_files(self, given: Iterable[str]) -> None:
        """Refuse names of side files that are missing or unknown.

        Raises:
            ValueError: If one is; the message names it and those there are.
        """
        names = set(given)
        for name in self.required:
            if name not in names:
                raise ValueError(f"needs the side file {name!r}")
        known = (*self.required, *self.optional)
        for name in sorted(names.difference(known)):
            known_text = f"only {', '.join(known)}" if known else "none"
            raise ValueError(f"knows no side file {name!r}, {known_text}")
