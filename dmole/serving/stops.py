"""Ends an answer before the first stop sequence while its text arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Lets text through up to the stop sequence that is complete first.

    Text that may be the beginning of a stop sequence is held back until it is known not to be one.

    Args:
        stops: The sequences, none of them empty.

    Attributes:
        stopped: Whether a stop sequence was found.

    Example:
        >>> stop = StopFilter(["END"])
        >>> stop.feed("one E"), stop.feed("N two"), stop.feed("END three"), stop.stopped
        ('one ', 'EN two', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return the text that may be shown after a new piece."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [
            (place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0
        ]
        if found:  # the one that is complete first, so that the pieces do not matter
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """Return the text held back, now that no more will come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of the text that begins a stop sequence."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
