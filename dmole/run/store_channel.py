"""Messages between ranks through the store at MASTER_PORT, where no other port is open.

Each rank has one page in the store, with all that it has said and a number that grows. A rank
whose number stands still is lost.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined] # of an extension

from dmole.run.channel import Message, Peer

SILENCE = 60.0
"""Seconds of silence after which a rank is lost."""

_BEAT = 1.0  # seconds between two visits of the store
_FAREWELL = 5.0  # seconds in which other ranks must read the last message


def open_store() -> Store:
    """Return a connection of its own to the store through which the processes were connected.

    Raises:
        OSError: If there is none at MASTER_ADDR and MASTER_PORT.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SILENCE))
    except RuntimeError as error:
        raise OSError(f"cannot reach the store at {host} port {port}: {error}") from error


class StoreChannel:
    """Pages of this rank and some others in a store.

    A thread of its own visits the store: a visit to a host without power lasts for minutes.

    Args:
        store: The store.
        prefix: Of the keys, different in every run.
        rank: This rank.
        peers: The other ranks.
        waits: Whether the store may end with this process, so that the others must have read its
            last message before.
    """

    def __init__(
        self, store: Store, prefix: str, rank: int, peers: Sequence[Peer], *, waits: bool
    ) -> None:
        self.patience = SILENCE + _FAREWELL
        self._store = store
        self._prefix = prefix
        self._rank = rank
        self._waits = waits
        self._said: list[Message] = []
        self._posted = 0  # messages in the store
        self._beat = 0
        self._pages: dict[int, Message] = {}
        self._peers = {peer.rank: peer for peer in peers}  # those that are not lost
        self._silent = dict.fromkeys(self._peers, 0.0)  # seconds
        self._handled: dict[int, tuple[int, int]] = dict.fromkeys(self._peers, (0, 0))
        self._broken = False
        self._closed = threading.Event()
        self._news, self._wake = threading.Event(), threading.Event()
        threading.Thread(target=self._visit, name="dmole-store", daemon=True).start()

    @property
    def is_open(self) -> bool:
        """Whether a message may still arrive."""
        return bool(self._peers)

    def send(self, **content: Any) -> None:
        """Send a message to all ranks of the channel; those that are gone miss it."""
        self._said.append(content)
        self._wake.set()

    def receive(self, seconds: float) -> list[tuple[Peer, list[Message] | None]]:
        """Wait for messages and return them by rank; None for a rank that sends no more."""
        begin = time.monotonic()
        self._news.wait(seconds)
        self._news.clear()
        # not more than was waited: this process may have been suspended like the others
        waited = min(time.monotonic() - begin, seconds)
        found: list[tuple[Peer, list[Message] | None]] = []
        for rank, peer in list(self._peers.items()):
            if messages := self._read(rank, waited):
                found.append((peer, messages))
            if self._broken or self._silent[rank] > SILENCE:
                del self._peers[rank]
                found.append((peer, None))
        return found

    def _read(self, rank: int, waited: float) -> list[Message]:
        """Return the new messages of a rank, and note how long it is silent."""
        beat, count = self._handled[rank]
        page = self._pages.get(rank, {"beat": 0, "messages": []})
        self._silent[rank] = 0.0 if page["beat"] != beat else self._silent[rank] + waited
        self._handled[rank] = (page["beat"], len(page["messages"]))
        new: list[Message] = page["messages"][count:]
        return new

    def settle(self) -> None:
        """Wait until what was sent arrives even if this process ends now."""
        deadline = time.monotonic() + _FAREWELL
        while not (self._broken or self._is_settled()) and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(_BEAT / 20)

    def _is_settled(self) -> bool:
        unread = [rank for rank in self._peers if self._waits and not self._has_left(rank)]
        return not self._peers or (self._posted == len(self._said) and not unread)

    def _has_left(self, rank: int) -> bool:
        """Return whether a rank has said its last word, which it says after it has read ours."""
        messages = self._pages.get(rank, {"messages": []})["messages"]
        return any("ended" in message or "failed" in message for message in messages)

    def close(self) -> None:
        """End the visits to the store."""
        self.settle()
        self._closed.set()
        self._wake.set()

    def _visit(self) -> None:
        try:
            while not self._closed.is_set():
                self._write_page()
                self._read_pages()
                self._wake.wait(_BEAT)
                self._wake.clear()
        except RuntimeError:  # the host of the store is gone, usually with rank 0
            self._broken = True
            self._news.set()

    def _write_page(self) -> None:
        messages = list(self._said)
        self._beat += 1
        page = {"beat": self._beat, "messages": messages}
        self._store.set(self._key(self._rank), json.dumps(page))
        self._posted = len(messages)

    def _read_pages(self) -> None:
        for rank in list(self._peers):
            if rank in self._pages or self._store.check([self._key(rank)]):
                page = json.loads(self._store.get(self._key(rank)))
                news = page["messages"] != self._pages.get(rank, {"messages": []})["messages"]
                self._pages[rank] = page
                if news:
                    self._news.set()

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"
