"""Who has not called `init`, found without MPI and without the rank that waits: it hangs in MPI and holds the GIL.

    the ranks of a host        processes that have a rank's variables, from the launcher that started this one
    who has called init        those that have a memfd with a certain name: nothing is left behind, however they end
    the others                 what the kernel says of them

Run as a program, without ringreduce and torch, by the thread that keeps init's deadline:

    python -E -S arrivals.py PID SECONDS first|each
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

try:
    from ringreduce._runtime import processes
except ImportError:  # as a program
    import processes  # type: ignore[import-not-found,no-redef]

_NAME = "ringreduce-init"
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Within it this process has called `init`, for all who look."""
    file = -1
    with contextlib.suppress(OSError):
        file = os.memfd_create(f"{_NAME}-{os.getpid()}", os.MFD_CLOEXEC)
    try:
        yield
    finally:
        if file >= 0:
            os.close(file)


def question(seconds: float, who: str) -> list[str]:
    """The command that says who has not come to this process's `init`."""
    if not sys.executable or getattr(sys, "frozen", False):  # no interpreter of its own
        return []
    libraries = os.environ.get("LD_LIBRARY_PATH")  # it gets no more of the environment
    env = [] if libraries is None else ["/usr/bin/env", f"LD_LIBRARY_PATH={libraries}"]
    return [*env, sys.executable, "-E", "-S", __file__, str(os.getpid()), f"{seconds:g}", who]


def report(me: int, seconds: float, each: bool) -> str:
    """Who is missing; "" on all ranks of a host but the first that has come, unless `each` is to say it."""
    ranks = _ranks_here(me)
    arrived = {rank for rank, pids in ranks.items() if any(map(_has_mark, pids))}
    mine = next((rank for rank, pids in ranks.items() if me in pids), None)
    if mine is None or (not each and mine != min(arrived | {mine})):
        return ""
    missing = {rank: _innermost(pids) for rank, pids in sorted(ranks.items()) if rank not in arrived}
    looks = processes.look_at(list(missing.values()))
    told = [f"rank {rank} (pid {pid}) has not called init(): {looks[pid]}" for rank, pid in missing.items()]
    told += _unseen(ranks, _environ(me)) or ([] if told else ["all ranks of this host have called init()"])
    return f"ringreduce: init() has waited for {seconds:g} s on {socket.gethostname()}: {'; '.join(told)}"


def _unseen(ranks: Mapping[int, list[int]], environ: Mapping[str, str]) -> list[str]:
    """Ranks that have no process here, as far as the launcher has told how many there are."""
    size, local = _number(environ, _SIZES), _number(environ, _LOCAL_SIZES)
    if size is None or local is None:
        return []
    others = [rank for rank in range(size) if rank not in ranks]
    ended = local - len(ranks)
    if ended <= 0:
        return [f"of other hosts' ranks ({_show(others)}) nothing is known here"] if others else []
    if local == size:
        return [f"{_show(others)} {'has' if len(others) == 1 else 'have'} ended, or cannot be seen from here"]
    have = "has" if ended == 1 else "have"
    return [f"{ended} of the {local} ranks of this host {have} ended, or cannot be seen from here, of {_show(others)}"]


def _show(ranks: list[int]) -> str:
    most = ", ".join(map(str, ranks[:16])) + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {most}"


def _number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return next((int(environ[name]) for name in names if environ.get(name, "").isdigit()), None)


def _ranks_here(me: int) -> dict[int, list[int]]:
    """The processes of each rank that my launcher has started on this host."""
    launcher = _launcher(me)
    ranks: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if (
            name.isdigit()
            and (rank := _number(_environ(int(name)), _RANKS)) is not None
            and _launcher(int(name)) == launcher
        ):
            ranks.setdefault(rank, []).append(int(name))
    return ranks


def _launcher(pid: int) -> int:
    """The nearest ancestor that is no rank."""
    while pid > 0 and _number(_environ(pid), _RANKS) is not None:
        pid = _parent(pid)
    return pid


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
    return 0


def _innermost(pids: list[int]) -> int:
    """The rank's own process, where a script has started it."""
    parents = {_parent(pid) for pid in pids}
    return min([pid for pid in pids if pid not in parents] or pids)


def _environ(pid: int) -> dict[str, str]:
    """As it was when the program began; nothing of a process that has ended, or is another user's."""
    with contextlib.suppress(OSError):
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(entry.partition("=")[::2] for entry in entries if "=" in entry)
    return {}


def _has_mark(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for file in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{file}").startswith(f"/memfd:{_NAME}-"):
                    return True
    return False


if __name__ == "__main__":
    if text := report(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "each"):
        print(text, file=sys.stderr, flush=True)
