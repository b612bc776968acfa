"""A run: its state, checkpoints, signals, failures and folder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmole.run.peers import PeerError, PeerWatch
    from dmole.run.run_folder import RunLock, claim_run, find_run
    from dmole.run.signals import Interrupted, Interruption

__all__ = [
    "Interrupted",
    "Interruption",
    "PeerError",
    "PeerWatch",
    "RunLock",
    "claim_run",
    "find_run",
]

_FILES = {
    "Interrupted": "signals",
    "Interruption": "signals",
    "PeerError": "peers",
    "PeerWatch": "peers",
    "RunLock": "run_folder",
    "claim_run": "run_folder",
    "find_run": "run_folder",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a run folder is read without Lightning."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
