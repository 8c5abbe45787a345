"""One rank of test_step_cost.py: steady steps, plain ones and reduced ones, with what they cost noted.

    python step_cost_rank.py FILE

System calls are noted by strace from outside: the file says which threads count, and calls of
access() on paths under /mark, which do not exist, say where steps begin and end.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mpi4py import MPI

RANK = MPI.COMM_WORLD.rank
if hosts := os.environ.get("STEP_COST_HOSTS"):
    os.environ["RINGREDUCE_HOST_ID"] = hosts.split(",")[RANK]

import ringreduce as rr  # noqa: E402  # after its environment is set

WARM_UP, STEPS = 5, 20
COUNTERS = ("sends", "receives", "tests", "others")
counter = ctypes.CDLL(os.environ["LD_PRELOAD"])


def calls() -> dict[str, int]:
    """MPI calls of this process so far."""
    return {name: ctypes.c_long.in_dll(counter, f"mpi_{name}").value for name in COUNTERS}


def threads() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}


def trainer(reduced: bool) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(24)))  # 6 MiB
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if reduced:
        optimizer = rr.DistributedOptimizer(optimizer, model.named_parameters())
    inputs = torch.randn(4, 256)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(model(inputs).square().mean())
        optimizer.step()

    return step, optimizer


def measure(name: str, step: Callable[[], None]) -> dict[str, int]:
    """MPI calls of steady steps."""
    for _ in range(WARM_UP):
        step()
    rr.barrier()
    before = calls()
    os.access(f"/mark/{name}/begin", os.F_OK)
    for _ in range(STEPS):
        step()
    os.access(f"/mark/{name}/end", os.F_OK)
    after = calls()
    rr.barrier()
    return {key: after[key] - before[key] for key in COUNTERS}


def main(file: str) -> None:
    torch.set_num_threads(1)
    of_others = threads() - {os.getpid()}  # MPI's, torch's
    rr.init()
    result: dict[str, object] = {"steps": STEPS, "threads": [os.getpid(), *(threads() - of_others - {os.getpid()})]}
    plain, _ = trainer(reduced=False)
    result["plain"] = measure("plain", plain)
    reduced, optimizer = trainer(reduced=True)
    result["reduced"] = measure("reduced", reduced)
    plan = optimizer._ringreduce_exchange._step.planning.plan  # type: ignore[attr-defined]
    result["buckets"] = [bucket.elements * bucket.dtype.itemsize for bucket in plan.buckets]
    # The counter counts: one message to ourselves.
    before = calls()["sends"]
    request = MPI.COMM_WORLD.Isend(bytearray(1), dest=RANK, tag=1)
    MPI.COMM_WORLD.Recv(bytearray(1), source=RANK, tag=1)
    request.Wait()
    result["seen"] = calls()["sends"] - before
    Path(f"{file}.{RANK}").write_text(json.dumps(result))
    rr.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
