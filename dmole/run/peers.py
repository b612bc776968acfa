"""Ends all processes of a run soon after one of them has failed or is lost, and names the cause.

The launchers (Lightning's observer of its children, torchrun's agent, `srun --kill-on-bad-exit`)
end the other processes too, but not as well: Lightning's kills them without a message, torchrun's
sends SIGTERM, which a process in a collective operation never handles. Without `PeerWatch`, the
others print a traceback of 70 lines about a closed connection below the cause.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dmole.distributed import is_distributed
from dmole.messages import one_line
from dmole.run.channel import Channel, Message, Peer
from dmole.run.connecting import connect_ranks

_PERIOD = 1.0  # seconds between two checks
_EXIT_TIMEOUT = 20.0  # seconds after which a failed process exits even if it is blocked


class PeerError(ValueError):
    """Another process failed; the message comes from that process."""


class PeerWatch:
    """Reports a failure to the other processes, and ends this process when another one failed.

    A process that waits in a collective operation does not notice that another process has ended,
    or notices it late, with a message that hides the cause. So each rank has a channel to rank 0
    that a thread reads: a failure is a message, and a process that is killed closes the channel or
    falls silent.

    Args:
        advice: Returns how to resume the run, for the message about a lost rank.
    """

    def __init__(self, advice: Callable[[], str] = str) -> None:
        self._advice = advice
        self._channels: list[Channel] = []
        self._rank = 0
        self._stopped = threading.Event()
        self._cause = threading.Lock()  # held by the first who reports a failure
        self._children: dict[int, subprocess.Popen[Any]] = {}

    def start(self, children: Sequence[subprocess.Popen[Any]] = ()) -> None:
        """Start watching. All processes must call it; it has no effect in a single process.

        Args:
            children: Processes of the ranks 1, 2, ... if this one started them.
        """
        if self._channels or not is_distributed():
            return
        self._children = dict(enumerate(children, start=1))
        self._channels = connect_ranks()
        self._rank = dist.get_rank()
        for channel in self._channels:
            watch = threading.Thread(target=self._watch, args=(channel,), name="dmole-peers")
            watch.daemon = True
            watch.start()

    def stop(self) -> None:
        """Stop watching, at the end of the run."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._send_to_all(ended=True)
            self._settle()

    def announce(self, error: BaseException) -> BaseException:
        """Report a failure to the other processes and return the error to raise.

        If another process has failed before or is lost, the error is a consequence. Then this
        process ends here with a message about the other one.

        Args:
            error: The error in this process.
        """
        if not self._channels:
            return error
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            # as collective operations raise once another process is gone
            self._stopped.wait(max(channel.patience for channel in self._channels))
        if not self._cause.acquire(blocking=False):
            time.sleep(_EXIT_TIMEOUT)  # the thread that watches ends this process
            return error
        timer = threading.Timer(_EXIT_TIMEOUT, os._exit, (1,))
        timer.daemon = True
        timer.start()
        self._send_to_all(failed=f"rank {self._rank} failed: {one_line(error)}")
        self.stop()
        return error

    def _watch(self, channel: Channel) -> None:
        while channel.is_open and not self._stopped.is_set():
            for peer, messages in channel.receive(_PERIOD):
                self._handle(peer, messages)
        channel.close()

    def _handle(self, peer: Peer, messages: Sequence[Message] | None) -> None:
        """Handle what another rank has sent; None is its end."""
        if messages is None and not peer.ended:
            self._leave(self._loss_of(peer))
        for message in messages or ():
            peer.ended = peer.ended or "ended" in message
            if "failed" in message:
                self._leave(message["failed"])

    def _loss_of(self, peer: Peer) -> str:
        """Return a message about a rank that ended without one."""
        text, child = f"{peer.name} is lost", self._children.get(peer.rank)
        if child is not None:
            text += f": {describe_end(child)}"
        advice = self._advice()
        return f"{text}; {advice}" if advice else text

    def _leave(self, cause: str) -> None:
        # the main thread may hang in a collective operation and cannot raise an error
        if self._stopped.is_set() or not self._cause.acquire(blocking=False):
            return
        self._send_to_all(failed=cause)
        os.write(2, f"dmole: rank {self._rank} ends: {cause}\n".encode())
        self._settle()
        os._exit(1)

    def _send_to_all(self, **content: Any) -> None:
        for channel in self._channels:
            channel.send(**content)

    def _settle(self) -> None:
        for channel in self._channels:
            channel.settle()


def describe_end(child: subprocess.Popen[Any], patience: float = 5.0) -> str:
    """Return how a child process ended.

    Args:
        child: A process that is about to end or has ended.
        patience: Seconds to wait for its end.
    """
    try:
        status = child.wait(patience)
    except subprocess.TimeoutExpired:
        return "it closed its connection but still runs"
    if status == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when memory runs out"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def watch_children(children: Sequence[subprocess.Popen[Any]]) -> Callable[[], None]:
    """End this process soon after one of its children has ended, until the ranks are connected.

    Args:
        children: Processes of the ranks 1, 2, ...

    Returns:
        A function that ends the watch.
    """
    connected = threading.Event()

    def watch() -> None:
        while not connected.wait(_PERIOD / 4):
            for rank, child in enumerate(children, start=1):
                if child.poll() is not None and not connected.is_set():
                    for other in children:
                        other.kill()
                    end = f"rank {rank} (process {child.pid}) is lost: {describe_end(child)}"
                    os.write(2, f"dmole: {end}, before all ranks were connected\n".encode())
                    os._exit(1)

    threading.Thread(target=watch, name="dmole-children", daemon=True).start()
    return connected.set


def watch_parent(parent: int) -> None:
    """End this process soon after its parent has ended, for whatever reason.

    Before the processes are connected, no other mechanism reports the end of the parent, and this
    process would wait for half an hour.

    Args:
        parent: Id of the process that started this one.

    Raises:
        PeerError: If the parent has ended already.
    """
    if os.getppid() != parent:
        raise PeerError("the process that started this one is gone")
    threading.Thread(target=_leave_with, args=(parent,), name="dmole-parent", daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD)
    os.write(2, b"dmole: the process that started this one is gone\n")
    os._exit(1)
