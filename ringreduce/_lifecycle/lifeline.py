"""Connecting the hosts' guardians for news of life and death (csrc/liveness/lifeline.h): at `init`, once.

    exchange ──► where each host's guardians listen, and a secret ──► connect, prove to know it ──► sockets for the core

Each side sends a nonce and then HMAC-SHA256, by the secret, over its role, both nonces and both ranks, so that an
answer is good for one connection in one direction. Nobody listens any more when `init` is over.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ringreduce import _core

_PATIENCE_S = 5.0  # with a connection that does not come
_WARNING = 1  # RINGREDUCE_LOG
_BACKLOG = 2048  # two for each host below
_NONCE = 16  # bytes
_PROOF = hashlib.sha256().digest_size
_HELLO = struct.Struct("!II")  # the ranks that call and that are called

Exchange = Callable[[Any], list[Any]]


class Lifeline(NamedTuple):
    """What the engine takes."""

    guardian: int = -1  # of this rank's host: 0, 1, or -1 for a rank that is none
    doorbell: str = ""  # "": all ranks are on one host
    links: Sequence[tuple[int, int, bool]] = ()  # file descriptor (the taker's), peer, whether it is towards the root


class Edge(NamedTuple):
    """A connection: `below` calls `above`."""

    below: int
    above: int


def guardians(host_of: Sequence[int]) -> list[tuple[int, int]]:
    """By host, its lowest and its highest rank."""
    hosts = range(max(host_of) + 1)
    ranks = [[r for r, at in enumerate(host_of) if at == host] for host in hosts]
    return [(of[0], of[-1]) for of in ranks]


def edges(host_of: Sequence[int], arity: int) -> list[Edge]:
    """A tree of hosts, with a connection from each guardian to each one of the host above."""
    on = guardians(host_of)
    hosts = range(1, len(on))
    return list(dict.fromkeys(Edge(b, a) for host in hosts for b in on[host] for a in on[(host - 1) // arity]))


def connect(rank: int, host_of: Sequence[int], arity: int, exchange: Exchange) -> Lifeline:
    """Collective over all ranks. A connection that does not come about is warned of, and missing."""
    if max(host_of) == 0:
        return Lifeline()
    own = guardians(host_of)[host_of[rank]]
    mine = [edge for edge in edges(host_of, arity) if rank in edge]
    expected = {edge.below for edge in mine if edge.above == rank}
    calls = [edge for edge in mine if edge.below == rank]
    with contextlib.ExitStack() as closing:
        listener = closing.enter_context(contextlib.closing(found)) if expected and (found := _listen()) else None
        offer = (_addresses(), listener.getsockname()[1]) if listener else None
        offers = exchange((offer, secrets.token_bytes(32) if rank == 0 else b""))
        secret: bytes = offers[0][1]
        above = {edge.above: one for edge in calls if (one := _call(edge, offers[edge.above][0], secret))}
        below = _answer(listener, rank, expected, secret) if listener else {}
    # One that only this side holds for made would look like a death.
    known = exchange([*above, *below])
    links = []
    for peer, one in [*above.items(), *below.items()]:
        if rank in known[peer]:
            links.append((_detach(one), peer, peer in above))
        else:
            one.close()
    missing = sorted((expected | {edge.above for edge in calls}) - {peer for _, peer, _ in links})
    if missing:
        _core.log(
            _WARNING,
            f"no TCP connection to rank(s) {missing} on other hosts (a firewall?): that a rank dies there, or the host "
            "fails, is noticed at RINGREDUCE_TIMEOUT only",
        )
    guardian = own.index(rank) if rank in own else -1
    return Lifeline(guardian, f"ringreduce-{secret[:8].hex()}-{host_of[rank]}-", links)


def _detach(connection: socket.socket) -> int:
    connection.setblocking(False)
    return connection.detach()


def _listen() -> socket.socket | None:
    with contextlib.suppress(OSError, ValueError):  # no IPv6 here
        return socket.create_server(("::", 0), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    with contextlib.suppress(OSError):
        return socket.create_server(("", 0), backlog=_BACKLOG)
    return None


def _addresses() -> list[str]:
    """Of this host, the loopback's last."""
    found = set()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        found = {lines[at - 1].split()[-1] for at, line in enumerate(lines) if "host LOCAL" in line}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address, _, _, scope, _, _ = line.split()
            if scope == "00":  # global
                found.add(str(ipaddress.ip_address(bytes.fromhex(address))))
    loopback = {one for one in found if ipaddress.ip_address(one).is_loopback}
    return sorted(found - loopback) + sorted(loopback)


def _call(edge: Edge, offer: tuple[list[str], int] | None, secret: bytes) -> socket.socket | None:
    """A connection to whoever listens at the addresses and the port, and knows the secret; None if nobody answers."""
    if offer is None:
        return None
    addresses, port = offer
    end = time.monotonic() + _PATIENCE_S
    for at, address in enumerate(addresses):
        share = (end - time.monotonic()) / (len(addresses) - at)
        if share <= 0:
            break
        with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
            connection = closing.enter_context(socket.create_connection((address, port), timeout=share))
            nonce = secrets.token_bytes(_NONCE)
            connection.sendall(_HELLO.pack(*edge) + nonce)
            theirs = _receive(connection, _NONCE + _PROOF)
            if hmac.compare_digest(theirs[_NONCE:], _proof(secret, b"above", edge, nonce, theirs[:_NONCE])):
                connection.sendall(_proof(secret, b"below", edge, nonce, theirs[:_NONCE]))
                _receive(connection, 1)  # it was taken
                closing.pop_all()
                return connection
    return None


def _answer(listener: socket.socket, rank: int, expected: set[int], secret: bytes) -> dict[int, socket.socket]:
    """The connections of those who are expected and know the secret, as far as they come in time."""
    taken: dict[int, socket.socket] = {}
    end = time.monotonic() + _PATIENCE_S + 1
    while set(taken) != expected and (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
            connection = closing.enter_context(listener.accept()[0])
            connection.settimeout(min(left, 1.0))
            hello = _receive(connection, _HELLO.size + _NONCE)
            edge, nonce = Edge(*_HELLO.unpack(hello[: _HELLO.size])), hello[_HELLO.size :]
            if edge.above != rank or edge.below not in expected - set(taken):
                continue
            own = secrets.token_bytes(_NONCE)
            connection.sendall(own + _proof(secret, b"above", edge, nonce, own))
            if hmac.compare_digest(_receive(connection, _PROOF), _proof(secret, b"below", edge, nonce, own)):
                connection.sendall(b"!")
                taken[edge.below] = connection
                closing.pop_all()
    return taken


def _proof(secret: bytes, role: bytes, edge: Edge, below: bytes, above: bytes) -> bytes:
    """`below`, `above`: the nonces of both."""
    return hmac.digest(secret, role + _HELLO.pack(*edge) + below + above, "sha256")


def _receive(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        part = connection.recv(nbytes - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return data
