"""A run and what keeps it from being lost: state, checkpoints, signals, failures, the folder."""

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
