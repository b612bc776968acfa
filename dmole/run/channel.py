"""What a rank knows of another one, and how it hears from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Message: TypeAlias = dict[str, Any]


@dataclass(eq=False)
class Peer:
    """Another rank.

    Args:
        rank: The rank; -1 until it has introduced itself.
        process: Its process id.
        host: Name of its host.
        ended: Whether it has announced its end.
    """

    rank: int = -1
    process: int = 0
    host: str = ""
    ended: bool = False

    @property
    def name(self) -> str:
        """Rank, process id and host, for messages."""
        return f"rank {self.rank} (process {self.process} on {self.host})"


class Channel(Protocol):
    """Carries messages between this rank and some others.

    Attributes:
        patience: Seconds after which the loss of a rank is noticed.
    """

    patience: float

    @property
    def is_open(self) -> bool:
        """Whether a message may still arrive."""

    def send(self, **content: Any) -> None:
        """Send a message to all ranks of the channel; those that are gone miss it."""

    def receive(self, seconds: float) -> list[tuple[Peer, list[Message] | None]]:
        """Wait for messages and return them by rank; None for a rank that sends no more."""

    def settle(self) -> None:
        """Wait until what was sent arrives even if this process ends now."""

    def close(self) -> None:
        """Close the channel, in the thread that receives."""
