"""The ranks of a benchmark: how they meet, start together and share a clock.

Everything here goes through mpi4py, not through ringreduce, which is being measured.
"""

from __future__ import annotations

import array
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

import ringreduce as rr
from ringreduce._runtime import running
from ringreduce.bench import link

TORCH_TIMEOUT = timedelta(minutes=10)


class Refused(Exception):
    """What was asked for cannot be done here. Every rank finds so, and exits by itself."""


@dataclass
class Job:
    """All ranks of this run. `comm` is an mpi4py communicator of the benchmark's own."""

    comm: Any
    rank: int
    size: int
    host_of: list[int]  # rank -> host, pretended ones included
    machines: list[str]  # rank -> hostname

    @classmethod
    def meet(cls) -> Job:
        """Over all MPI ranks, with ringreduce running or without. Collective."""
        try:
            from mpi4py import MPI  # after init(), which settles who finalises MPI
        except (ImportError, RuntimeError) as error:
            raise Refused(f"the benchmark needs mpi4py and an MPI library ({error})") from None
        world = MPI.COMM_WORLD
        machines = world.allgather(MPI.Get_processor_name())
        context = running.current
        host_of = context.host_of if context else [[*dict.fromkeys(machines)].index(one) for one in machines]
        return cls(world.Dup(), world.rank, world.size, host_of, machines)

    @property
    def hosts(self) -> int:
        return max(self.host_of) + 1

    @property
    def on_this_machine(self) -> int:
        return self.machines.count(self.machines[self.rank])

    @property
    def scattered(self) -> bool:
        """Whether ranks leave a barrier far apart: they share cores, or are on several machines."""
        return self.on_this_machine < self.size or self.size > len(os.sched_getaffinity(0))

    def barrier(self) -> None:
        self.comm.Barrier()

    def largest(self, values: Iterable[float]) -> list[float]:
        """The largest over ranks of each element."""
        from mpi4py import MPI

        result = array.array("d", values)
        self.comm.Allreduce(MPI.IN_PLACE, [result, MPI.DOUBLE], op=MPI.MAX)
        return list(result)

    def longest(self, seconds: float) -> float:
        """The largest over ranks."""
        return self.largest([seconds])[0]

    def durations(self, spans: Sequence[tuple[float, float]]) -> list[float]:
        """What ranks did from begin to end, each by its own time.perf_counter(), as one duration each.

        On one machine, which has one clock, it lasts from the first rank's begin to the last
        one's end: a rank that waits for a core is not done. Machines' clocks cannot be
        compared, so over several it is the longest that a rank took.
        """
        if len(set(self.machines)) > 1:
            return self.largest(end - begin for begin, end in spans)
        begins, ends = self.largest(-begin for begin, _ in spans), self.largest(end for _, end in spans)
        return [end + begin for begin, end in zip(begins, ends, strict=True)]

    def latencies(self, spans: Sequence[tuple[float, float]]) -> list[float]:
        """The same from the last rank's begin: what a call takes once all have come to it."""
        if len(set(self.machines)) > 1:
            return self.durations(spans)
        begins, ends = self.largest(begin for begin, _ in spans), self.largest(end for _, end in spans)
        return [end - begin for begin, end in zip(begins, ends, strict=True)]

    def start_torch(self, backend: str = "gloo", interface: str | None = None, **options: Any) -> None:
        """torch.distributed, over Gloo on loopback where all ranks share a machine.

        Args:
            interface: network interface between machines; by default the one with a route.
            options: more of init_process_group's.
        """
        if dist.is_initialized():
            return
        several = len(set(self.machines)) > 1
        interface = (interface or link.default_interface()) if several else "lo"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        host = link.address_of(interface) if several else "127.0.0.1"
        store = TCPStore(host, 0, self.size, is_master=True, wait_for_workers=False) if self.rank == 0 else None
        host, port = self.comm.bcast((host, store.port) if store else None)
        if store is None:
            store = TCPStore(host, port, self.size, is_master=False)
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=TORCH_TIMEOUT, **options
        )


@contextmanager
def joined(library: bool = True) -> Iterator[Job]:
    """All ranks, the cores shared out among them; one rank's failure ends the job.

    Args:
        library: whether to start ringreduce. Without it there is MPI, and nothing else.
    """
    if library:
        rr.init()
    job = Job.meet()
    try:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // job.on_this_machine))
        yield job
        if dist.is_initialized():
            dist.destroy_process_group()
        if library:
            rr.shutdown()
    except Refused:
        raise
    except BaseException as error:
        if isinstance(error, rr.RingreduceError):
            print(f"ringreduce: rank {job.rank}: {error}", file=sys.stderr)
        elif not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        sys.stderr.flush()
        if job.size > 1:
            job.comm.Abort(1)  # the peers wait for this rank
        raise SystemExit(1) from error
