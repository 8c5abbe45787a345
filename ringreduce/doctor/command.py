"""The command: its options, and what it can look at where something is missing."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Sequence

from ringreduce.doctor import needs, show
from ringreduce.doctor.check import FAILED, Check

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def main(arguments: Sequence[str]) -> int:
    """Look, try, print on rank 0; 0 only if all that should work works."""
    options = _parse(arguments)
    found = needs.look()
    if not needs.library_is_there(found):
        return _say_what_is_missing(found, options.json)
    from ringreduce.doctor import examination

    return examination.run(found, options.json, options.timeout)


def launched_rank() -> int:
    """This process's rank, as the launcher says."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)


def _say_what_is_missing(found: Sequence[Check], json: bool) -> int:
    if launched_rank() == 0:
        print((show.as_json if json else show.as_text)({"versions": needs.versions()}, [], found))
    else:  # it may be there on rank 0's host
        for check in found:
            if check.status == FAILED:
                print(f"ringreduce doctor: rank {launched_rank()}: {check.name}: {check.text}", file=sys.stderr)
    if "mpi4py.MPI" in sys.modules:
        from ringreduce._runtime import mpi

        atexit.register(mpi.finalize)
    return 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ringreduce doctor",
        description="Say what there is on this machine, and try each path with a small real collective. "
        "Under mpirun: on all ranks. Exit status 0 only if all that should work works.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument(
        "--timeout", type=float, default=60, metavar="SECONDS", help="longest time that each check may take (60)"
    )
    options = parser.parse_args(arguments)
    if options.timeout <= 0:
        parser.error("--timeout: expected a number of seconds above 0")
    return options
