"""Who takes part in a job: what the ranks tell each other when they meet, and what follows from it."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

from ringreduce._core import load_settings, offer_memory, setting_texts
from ringreduce._placement import placement
from ringreduce._placement.seats import Report, Seat
from ringreduce.errors import RingreduceError


class Rank(NamedTuple):
    """What a rank tells all others when they meet."""

    host_id: str | None  # RINGREDUCE_HOST_ID
    shm_leader: int  # first rank with which MPI says it shares memory
    hostname: str
    pid: int
    pid_namespace: int  # two ranks know each other's pids if it is the same
    cores: frozenset[int]
    settings: tuple[tuple[str, str], ...]  # those that must agree
    problem: str | None  # a setting that cannot be read
    gpus: Report | None  # None: no GPU
    word: tuple[int, int] | None  # for trying whether its memory can be read: address and value


def introduce(comm: Any, rank: int) -> Rank:
    """What this rank has to tell; collective over `comm`."""
    leader = rank
    if comm is not None:
        from mpi4py import MPI

        neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
        leader = neighbours.bcast(rank)
        neighbours.Free()
    settings: tuple[tuple[str, str], ...] = ()
    problem = None
    try:
        settings = load_settings()
    except ValueError as error:
        problem = str(error)
    texts = dict(setting_texts())
    host_id = texts["RINGREDUCE_HOST_ID"] or None
    word = None if texts["RINGREDUCE_SINGLE_COPY"] == "off" else offer_memory()
    return Rank(
        host_id, leader, socket.gethostname(), os.getpid(), _pid_namespace(),
        frozenset(os.sched_getaffinity(0)), settings, problem, placement.look(os.environ), word,
    )  # fmt: skip


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # a sandbox: there is one for all
        return 0


def check_builds(builds: list[str]) -> None:
    """RingreduceError if they differ. Strings, since another build may not be able to read this one's objects."""
    if len(set(builds)) > 1:
        said = {build: [r for r, other in enumerate(builds) if other == build] for build in builds}
        raise RingreduceError(
            "the ranks run different builds of ringreduce: "
            + "; ".join(f"{build} on rank(s) {ranks}" for build, ranks in said.items())
            + ": install the same one on all hosts"
        )


def check_settings(everyone: list[Rank]) -> None:
    """The same error on all ranks for a setting that cannot be read, or that must agree and does not."""
    for rank, one in enumerate(everyone):
        if one.problem is not None:
            raise ValueError(f"rank {rank}: {one.problem}")
    for rank, one in enumerate(everyone):
        for (name, value), (_, first) in zip(one.settings, everyone[0].settings, strict=True):
            if value != first:
                raise RingreduceError(
                    f"{name} is {first} on rank 0 and {value} on rank {rank}: set it alike on all ranks "
                    "(mpirun passes a variable on to other hosts only when told to, as with -x or -genv)"
                )


def number_hosts(everyone: list[Rank]) -> list[int]:
    """World rank -> host, numbered by first appearance."""
    without = [r for r, one in enumerate(everyone) if one.host_id is None]
    if without and len(without) < len(everyone):
        raise RingreduceError(
            f"RINGREDUCE_HOST_ID is not set on rank(s) {without}, but on others: set it on all ranks or on none"
        )
    keys = [one.shm_leader if one.host_id is None else one.host_id for one in everyone]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def seats(everyone: list[Rank], host_of: list[int]) -> list[Seat]:
    """Where each rank is, for choosing GPUs."""
    taken = [0] * (max(host_of) + 1)
    result = []
    for rank, (host, one) in enumerate(zip(host_of, everyone, strict=True)):
        result.append(Seat(rank, host, one.hostname, taken[host], one.cores, one.gpus))
        taken[host] += 1
    return result


def crowding(everyone: list[Rank]) -> dict[str, float]:
    """Ranks for each core, by machine (pretended hosts share a machine)."""
    result = {}
    for name in {one.hostname for one in everyone}:
        there = [one for one in everyone if one.hostname == name]
        result[name] = len(there) / len(frozenset().union(*(one.cores for one in there)))
    return result
