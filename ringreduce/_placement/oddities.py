"""What is odd about the GPUs that the ranks take: pure functions of what all ranks have told.

Each oddity is told once a host, by the lowest rank concerned.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from ringreduce._placement.seats import Report, Seat, ranks, spans

Oddity = tuple[int, str]  # the rank that says it, the text
_Taken = tuple[Seat, Report, int]  # a rank that has a GPU, and the device that it takes
_SHOWN = 4  # parts of one text


def oddities(seats: Iterable[Seat]) -> list[Oddity]:
    """Everything to warn of, by host."""
    hosts: dict[int, list[_Taken]] = {}
    for seat in seats:
        if seat.report is not None:
            hosts.setdefault(seat.host, []).append((seat, seat.report, seat.report.device(seat.local_rank)))
    checks = (_shared, _disagreeing, _far)
    found = [check(there) for there in hosts.values() for check in checks]
    return [oddity for oddity in found if oddity is not None]


def _shared(there: Sequence[_Taken]) -> Oddity | None:
    """Two ranks on one GPU, or on one instance of a partitioned GPU."""
    users: dict[Hashable, list[_Taken]] = {}
    for seat, report, device in there:
        identity = report.gpus[device].uuid if report.gpus else report.entries()[device]
        users.setdefault(identity, []).append((seat, report, device))
    crowds = [crowd for crowd in users.values() if len(crowd) > 1]
    if not crowds:
        return None
    parts = [
        f"{ranks(seat.rank for seat, _, _ in crowd)} use {report.describe(device)}"
        for crowd in crowds
        for _, report, device in crowd[:1]
    ]
    return (
        min(crowd[0][0].rank for crowd in crowds),
        f"on {there[0][0].hostname} {_some(parts)}: ranks take turns on one GPU, and NCCL may refuse it. Start "
        "as many ranks on a host as it has GPUs, or choose others by torch.cuda.set_device before ringreduce.init",
    )


def _disagreeing(there: Sequence[_Taken]) -> Oddity | None:
    """Equal lists are right, and so are lists that have no GPU in common: each rank has its own."""
    by_name = all(report.gpus for _, report, _ in there)
    seen: dict[tuple[str, ...], list[int]] = {}
    texts: dict[tuple[str, ...], str] = {}
    for seat, report, _ in there:
        key = tuple(gpu.uuid for gpu in report.gpus) if by_name else tuple(report.entries())
        seen.setdefault(key, []).append(seat.rank)
        texts.setdefault(key, "not set" if report.visible is None else repr(report.visible))
    if sum(map(len, seen)) == len(set().union(*seen)):
        return None
    sides = [f"{texts[key]} on {ranks(who)}" for key, who in seen.items()]
    return (
        there[0][0].rank,
        f"on {there[0][0].hostname} CUDA_VISIBLE_DEVICES is {_some(sides)}: one device number means different GPUs. "
        "Set it alike on all ranks of a host, or give each rank GPUs of its own",
    )


def _far(there: Sequence[_Taken]) -> Oddity | None:
    """A rank that may use no core near its GPU."""
    parts = {}
    for seat, report, device in there:
        gpu = report.gpus[device] if report.gpus else None
        if gpu is not None and gpu.cores and not gpu.cores & seat.cores:
            near = f"cores {spans(gpu.cores)}"
            if gpu.nodes:
                near += f" (NUMA node {spans(gpu.nodes)})"
            parts[seat.rank] = f"rank {seat.rank} runs on cores {spans(seat.cores)}, and {gpu} is near {near}"
    if not parts:
        return None
    return (
        min(parts),
        f"on {there[0][0].hostname} {_some(list(parts.values()))}: copies between them take the long way. "
        "Bind each rank to cores near its GPU",
    )


def _some(parts: Sequence[str]) -> str:
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more
