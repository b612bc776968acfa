"""What keeps a run from being lost: signals, faults of other processes, the run folder's lock."""

from dmole.reliability.peers import PeerError, PeerWatch
from dmole.reliability.run_folder import RunLock, claim_run, find_run
from dmole.reliability.signals import Interrupted, Interruption

__all__ = [
    "Interrupted",
    "Interruption",
    "PeerError",
    "PeerWatch",
    "RunLock",
    "claim_run",
    "find_run",
]
