"""Every way of doing a collective that `ringreduce bench` times gives the right result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch.distributed as dist

pytest.importorskip("mpi4py")

from ringreduce.bench.collectives import COLLECTIVES, GLOO_TYPES, MPI_TYPES, Buffers, Unsupported
from ringreduce.bench.job import Job
from ringreduce.bench.measure import alternate
from ringreduce.bench.turns import Effort

pytestmark = pytest.mark.pair  # whatever the ranks, the same contenders
WAYS = [(name, library) for name, collective in COLLECTIVES.items() for library in collective.ways]
DTYPES = ("float32", "int16", "bfloat16")  # all libraries have the first, Gloo lacks the second, MPI the third
ELEMENTS = 60  # a multiple of 1, 2, 3 and 4 ranks


@pytest.fixture(scope="module")
def job(rr):
    result = Job.meet()
    result.start_torch()
    yield result
    dist.destroy_process_group()
    result.comm.Free()


def can(library, name, dtype):
    if "reduce" not in name or library in ("ringreduce", "arena"):
        return True
    return dtype in (MPI_TYPES if library == "mpi" else GLOO_TYPES)


# That a library lacks a dtype is a matter of the all-reduce; the others move bytes.
@pytest.mark.parametrize(
    ("name", "library", "dtype"),
    [
        pytest.param(*way, dtype, marks=[pytest.mark.thorough] * (way[0] != "allreduce" and dtype != DTYPES[0]))
        for way in WAYS
        for dtype in DTYPES
    ],
)
def test_results_are_right(job, name, library, dtype):
    """`contender` checks the result; it raises where a library cannot do it."""
    buffers = Buffers(job, dtype, ELEMENTS)
    with buffers.closing:
        if can(library, name, dtype):
            contender = COLLECTIVES[name].contender(library, buffers)
            timing = alternate(job, [contender], Effort(2, 60.0))[library]
            assert timing.samples == 2
        else:
            with pytest.raises(Unsupported, match=f"{library} has no {dtype}"):
                COLLECTIVES[name].contender(library, buffers)


@pytest.mark.parametrize("name", list(COLLECTIVES))
def test_wrong_results_are_noticed_by_all_ranks(job, size, name):
    """Doing nothing is no collective, as soon as there are two ranks."""
    if size == 1:
        pytest.skip("with one rank nothing is right")
    one = COLLECTIVES[name]
    idle = type(one)(**{**vars(one), "ways": {"idle": lambda b: (b.part, lambda: None, b.data)}})
    with pytest.raises(AssertionError, match=f"idle: {name} of {ELEMENTS} float32 gives a wrong result"):
        idle.contender("idle", Buffers(job, "float32", ELEMENTS))


def test_a_sample_lasts_from_the_first_begin_to_the_last_end(job, rank, size):
    """Here the ranks work one after the other; by its own clock each needs 1 s."""
    assert job.durations([(10.0 + rank, 11.0 + rank), (20.0, 21.0)]) == [float(size), 1.0]


def test_a_call_lasts_from_the_last_begin_to_the_last_end(job, rank, size):
    assert job.latencies([(10.0 + rank, 11.0 + rank), (20.0 - rank, 21.0 + 2 * rank)]) == [1.0, 2.0 * size - 1]


def test_machines_clocks_are_not_compared(job, rank):
    apart = replace(job, machines=[f"host{r}" for r in range(job.size)])
    assert apart.durations([(10.0 + rank, 11.0 + rank)]) == [1.0]
    assert apart.latencies([(10.0 + rank, 11.0 + rank)]) == [1.0]


def test_memcpy_copies_what_a_result_holds(job):
    buffers = Buffers(job, "int32", ELEMENTS)
    contender = COLLECTIVES["allreduce"].contender("memcpy", buffers)
    contender.rewrite(7)
    contender.call()
    assert buffers.target.tolist() == [7] * ELEMENTS
