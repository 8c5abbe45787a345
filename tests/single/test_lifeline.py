"""Connecting the guardians of hosts; threads stand for ranks."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from ringreduce._lifecycle import lifeline
from ringreduce._lifecycle.lifeline import Edge, Lifeline, edges


def test_edges_join_each_guardian_to_those_of_the_host_above():
    assert edges([0, 0, 0], 8) == []
    assert edges([0, 1], 8) == [Edge(1, 0)]
    assert edges([0, 0, 1, 1, 1], 8) == [Edge(2, 0), Edge(2, 1), Edge(4, 0), Edge(4, 1)]
    assert edges([0, 1, 2, 3], 1) == [Edge(1, 0), Edge(2, 1), Edge(3, 2)]


def connect(host_of: Sequence[int], arity: int = 8) -> list[Lifeline]:
    """By rank."""
    size = len(host_of)
    barrier = threading.Barrier(size)
    said: list[Any] = [None] * size
    lines: list[Any] = [None] * size

    def run(rank: int) -> None:
        def exchange(item: Any) -> list[Any]:
            said[rank] = item
            barrier.wait(60)
            everyone = list(said)
            barrier.wait(60)
            return everyone

        lines[rank] = lifeline.connect(rank, host_of, arity, exchange)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return lines


def peers(lines: list[Lifeline]) -> set[tuple[int, int, bool]]:
    """(rank, peer, towards the root); the connections are closed."""
    found = {(rank, peer, up) for rank, line in enumerate(lines) for _, peer, up in line.links}
    for line in lines:
        for file, _, _ in line.links:
            os.close(file)
    return found


def test_all_are_connected():
    host_of = [0, 0, 1, 1, 2]
    lines = connect(host_of)
    assert [line.guardian for line in lines] == [0, 1, 0, 1, 0]
    assert len({line.doorbell for line in lines}) == 3
    below = {(edge.below, edge.above, True) for edge in edges(host_of, 8)}
    assert peers(lines) == below | {(above, one, False) for one, above, _ in below}


def test_a_connection_that_only_one_side_has_is_none(monkeypatch):
    call = lifeline._call

    def give_up(edge: Edge, *args: Any) -> socket.socket | None:
        made = call(edge, *args)
        if edge != Edge(2, 1) or made is None:
            return made
        return made.close()  # it was taken at the other end

    monkeypatch.setattr(lifeline, "_call", give_up)
    found = peers(connect([0, 0, 1]))
    assert found == {(2, 0, True), (0, 2, False)}


@pytest.mark.parametrize("missing", ["secret", "silent"])
def test_who_does_not_know_the_secret_is_not_taken(monkeypatch, missing):
    """And does not keep those out who do."""
    call = lifeline._call

    def intrude(edge: Edge, offer: Any, secret: bytes) -> socket.socket | None:
        with socket.create_connection((offer[0][-1], offer[1])) as silent:
            if missing == "silent":
                silent.sendall(b"?")
            else:
                assert call(edge, offer, b"another one") is None
        return call(edge, offer, secret)

    monkeypatch.setattr(lifeline, "_call", intrude)
    assert peers(connect([0, 1])) == {(1, 0, True), (0, 1, False)}
