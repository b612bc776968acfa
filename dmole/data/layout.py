"""A layout: how the files of a task are written, and which side files it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dmole.data.items import Numbered, SourceFiles


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the files of a task are written.

    Args:
        items: Reads the items of a split.
        does: Short description.
        required: Side files without which test items cannot be read.
        optional: Further side files.
        prompt: Default prompt template of the questions; None leaves them unchanged.
        needs_prompt: Whether the task must set a prompt, because the files hold no question.
        published: Whether the files are published by third parties. Ids may repeat there and get
            a suffix.
    """

    items: Callable[[SourceFiles], Numbered]
    does: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    prompt: str | None = None
    needs_prompt: bool = False
    published: bool = True

    def check_side_files(self, given: Iterable[str]) -> None:
        """Reject missing and unknown side files.

        Raises:
            ValueError: If a side file is missing or unknown; the message names it and the
                allowed ones.
        """
        names = set(given)
        for name in self.required:
            if name not in names:
                raise ValueError(f"needs the side file {name!r}")
        allowed = (*self.required, *self.optional)
        for name in sorted(names.difference(allowed)):
            allowed_text = f"only {', '.join(allowed)}" if allowed else "none"
            raise ValueError(f"knows no side file {name!r}, {allowed_text}")
