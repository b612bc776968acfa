"""A run: its state, checkpoints, signals, failures and folder."""

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
