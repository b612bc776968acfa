"""A thread that learns of signals while the main thread is blocked in a call of a C library."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_written_to = -1  # the descriptor that the interpreter copies signals to; -1: none


@contextmanager
def copied_signals(handle: Callable[[int, float | None], bool]) -> Iterator[None]:
    """Give a copy of each signal with a Python handler to a thread, in a ``with`` statement.

    Must be entered in the main thread.

    Args:
        handle: Receives the number of the signal and the seconds since the first one that it
            accepted, None before that. Returns whether it accepts the signal.
    """
    global _written_to
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = _written_to
    replaced = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _written_to = writer
    thread = threading.Thread(target=_read, args=(reader, handle), name="dmole-signals")
    thread.daemon = True
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(replaced)
        _written_to = before
        os.close(writer)


def _read(reader: int, handle: Callable[[int, float | None], bool]) -> None:
    first: float | None = None
    while data := os.read(reader, 1):
        now = time.monotonic()
        if handle(data[0], None if first is None else now - first) and first is None:
            first = now
    os.close(reader)


def _stop_copies() -> None:
    """Keep a forked loader worker from reporting its signals to the parent."""
    global _written_to
    if _written_to >= 0:
        signal.set_wakeup_fd(-1)
        os.close(_written_to)
        _written_to = -1


os.register_at_fork(after_in_child=_stop_copies)
