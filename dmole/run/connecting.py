"""Connects rank 0 with the other ranks, so that each side learns how the other one ends."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Sequence

import torch.distributed as dist

from dmole.distributed import broadcast, gather_objects
from dmole.run.channel import Channel, Message, Peer
from dmole.run.links import SocketChannel, accept_all, connect, listen
from dmole.run.store_channel import SILENCE, StoreChannel, open_store

log = logging.getLogger("dmole")


def connect_ranks() -> list[Channel]:
    """Connect rank 0 with all others; all ranks must call it.

    A rank that cannot reach a free port of rank 0, as behind a firewall between nodes, uses the
    store at MASTER_PORT. Rank 0 uses both ways if some ranks reach it.

    Returns:
        On rank 0 channels to all other ranks, on each other rank the channel to rank 0.

    Raises:
        OSError: If a rank can be reached in neither way.
    """
    if dist.get_rank() == 0:
        return _connect_others()
    offer = broadcast(Message())  # that of rank 0
    channel = _channel_to_first(offer)
    near = isinstance(channel, SocketChannel)
    gather_objects(Message() if near else _introduction())
    return [channel]


def _channel_to_first(offer: Message) -> Channel:
    """Return the channel of another rank to rank 0."""
    own, first = _introduction(), Peer(offer["rank"], offer["process"], offer["host"])
    address = (os.environ["MASTER_ADDR"], offer["port"])
    try:
        return SocketChannel([connect(address, first, {"key": offer["key"], **own})])
    except OSError:  # refused, filtered, or without a route
        return StoreChannel(open_store(), offer["key"], own["rank"], [first], waits=False)


def _connect_others() -> list[Channel]:
    """Return the channels of rank 0."""
    size = dist.get_world_size()
    with listen(size) as server:
        port, key = server.getsockname()[1], secrets.token_hex(16)
        broadcast({"port": port, "key": key, **_introduction()})
        far = [Peer(**introduction) for introduction in gather_objects(Message()) if introduction]
        channels: list[Channel] = []
        if len(far) < size - 1:
            channels.append(SocketChannel(accept_all(server, key, size - 1 - len(far))))
    if far:
        channels.append(StoreChannel(open_store(), key, 0, far, waits=True))
        log.warning(_describe(far, port))
    return channels


def _describe(far: Sequence[Peer], port: int) -> str:
    ranks = ", ".join(str(peer.rank) for peer in far)
    return (
        f"rank {ranks} cannot connect to port {port} of rank 0 on {socket.gethostname()}: watched "
        f"through MASTER_PORT {os.environ['MASTER_PORT']}, where the loss of a rank is noticed "
        f"after {SILENCE:.0f} seconds instead of at once"
    )


def _introduction() -> Message:
    return {"rank": dist.get_rank(), "process": os.getpid(), "host": socket.gethostname()}
