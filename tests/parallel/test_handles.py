"""The life of an operation: who keeps its tensors and its name, after time-outs, interrupts and lost handles too."""

from __future__ import annotations

import ctypes
import gc
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from oracle import WORLD, assert_same, make, reduced, several_chunks
from runner.launch import PATIENCE

import ringreduce as rr

SMALL, LARGE = 5, several_chunks(torch.float32)


def total(size: int, numel: int) -> torch.Tensor:
    return reduced(range(size), numel, torch.float32, rr.Sum)


def owned(values: torch.Tensor) -> tuple[torch.Tensor, Callable[[], object]]:
    """A float32 tensor with these values, and a function that returns its memory as long as it is there."""
    memory = (ctypes.c_float * values.numel())()
    tensor = torch.frombuffer(memory, dtype=torch.float32).copy_(values)
    return tensor, weakref.ref(memory)


def assert_released(memory: Callable[[], object] = lambda: None) -> None:
    """The memory goes with nothing but a look at some handle. By all ranks."""
    other = rr.allreduce_async(torch.ones(1), name="other")
    end = time.monotonic() + PATIENCE
    while memory() is not None:
        rr.poll(other)
        assert time.monotonic() < end, "the memory is still there"
    rr.synchronize(other)


def late(rank: int, size: int) -> bool:
    """Whether this is the rank on which the others wait."""
    if size == 1:
        pytest.skip("needs a peer")
    return rank == size - 1


@pytest.mark.parametrize("numel", [SMALL, LARGE])
def test_a_dropped_handle_leaves_its_tensors_to_the_core(rank, size, numel):
    if late(rank, size):
        WORLD.Barrier()
        result = rr.allreduce_(make(rank, numel, torch.float32), name="dropped", op=rr.Sum)
        assert_same(result, total(size, numel), "sum")
        assert_released()
        return
    tensor, memory = owned(make(rank, numel, torch.float32))
    handle = rr.allreduce_async_(tensor, name="dropped", op=rr.Sum)
    del handle, tensor
    gc.collect()
    assert memory() is not None
    # It could not be told from another one of its name.
    with pytest.raises(ValueError, match=r"dropped.*in flight already"):
        rr.allreduce_async(torch.ones(numel), name="dropped", op=rr.Sum)
    WORLD.Barrier()
    assert_released(memory)


def test_a_dropped_broadcast_leaves_its_tensors_to_the_core(rank, size):
    sent = make(0, LARGE, torch.float32)
    if late(rank, size):
        WORLD.Barrier()
        assert_same(rr.broadcast_(torch.zeros(LARGE), 0, name="dropped broadcast"), sent, "broadcast")
        assert_released()
        return
    tensor, memory = owned(sent.clone())
    handle = rr.broadcast_async_(tensor, 0, name="dropped broadcast")
    del handle, tensor
    gc.collect()
    assert memory() is not None
    WORLD.Barrier()
    assert_released(memory)


class Alarm(Exception):
    """What a signal handler of the program raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.2)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.once
@pytest.mark.parametrize("numel", [SMALL, LARGE])
def test_an_interrupted_call_leaves_its_tensor_to_the_core(rank, size, numel, alarm):
    if late(rank, size):
        WORLD.Barrier()
        assert_same(rr.allreduce_(make(rank, numel, torch.float32), op=rr.Sum), total(size, numel), "sum")
        assert_released()
        return
    tensor, memory = owned(make(rank, numel, torch.float32))
    alarm()
    with pytest.raises(Alarm):
        rr.allreduce_(tensor, op=rr.Sum)
    del tensor
    gc.collect()
    assert memory() is not None
    WORLD.Barrier()
    assert_released(memory)


@pytest.mark.once
def test_results_and_inputs_are_released(rank, size):
    """Nothing of an operation stays once its result is gone."""
    tensor, memory = owned(make(rank, LARGE, torch.float32))
    result = rr.allreduce(tensor, name="released", op=rr.Sum)
    assert_same(result, total(size, LARGE), "sum")
    del tensor
    gc.collect()
    assert memory() is None


@pytest.mark.once
def test_a_wait_that_times_out_can_be_repeated(rank, size):
    mine = make(rank, 100, torch.float32)
    if late(rank, size):
        WORLD.Barrier()
        handle = rr.allreduce_async(mine, name="again", op=rr.Sum)
    else:
        handle = rr.allreduce_async(mine, name="again", op=rr.Sum)
        for timeout in (0.2, 0, 0.01):
            with pytest.raises(rr.RingreduceTimeoutError, match=r"'again'.*not submitted it"):
                rr.synchronize(handle, timeout=timeout)
            assert not rr.poll(handle)
        with pytest.raises(ValueError, match="in flight"):
            rr.allreduce_async(mine, name="again", op=rr.Sum)
        WORLD.Barrier()
    assert_same(rr.synchronize(handle), total(size, 100), "again")
    assert rr.synchronize(handle) is None
    assert_same(rr.allreduce(mine, name="again", op=rr.Sum), total(size, 100), "the name is free")


@pytest.mark.once
def test_a_time_without_end_and_bad_ones(rank, size):
    handle = rr.allreduce_async(make(rank, 100, torch.float32), op=rr.Sum)
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            rr.synchronize(handle, timeout=timeout)
    assert_same(rr.synchronize(handle, timeout=float("inf")), total(size, 100), "sum")


@pytest.mark.once
def test_what_the_limit_counts_from(rank, size, monkeypatch):
    """The submission; after a time-out the next call, for all operations of the handle.

    A call that counts from itself takes the limit each time. One that does not may do so on a busy machine: it
    is tried again.
    """
    is_late = late(rank, size)
    limit = 1.0
    if not is_late:
        monkeypatch.setenv("RINGREDUCE_TIMEOUT", str(limit))
    rr.shutdown()
    rr.init()
    tensors = [make(rank, 100, torch.float32), torch.ones(10, dtype=torch.int32)]
    submit = partial(rr.grouped_allreduce_async, tensors, op=rr.Sum)

    def time_out(handle: rr.Handle) -> float:
        """The seconds that it takes."""
        start = time.monotonic()
        with pytest.raises(rr.RingreduceTimeoutError):
            rr.synchronize(handle)
        return time.monotonic() - start

    def late_call(name: str) -> tuple[rr.Handle, float]:
        handle = submit(name=name)
        time.sleep(1.1 * limit)
        return handle, time_out(handle)

    handles: list[rr.Handle | None] = []
    for attempt in range(20):
        handle, seconds = (None, 0.0) if is_late else late_call(f"counted {attempt}")
        handles.append(handle)
        if was_quick := all(WORLD.allgather(seconds < limit)):
            break
    assert was_quick, "counted from the call"
    if not is_late:
        assert time_out(handles[-1]) >= limit, "no new limit"
    WORLD.Barrier()
    for attempt, handle in enumerate(handles):
        handle, results = handle or submit(name=f"counted {attempt}"), None
        while results is None:  # the late rank is as slow as the machine is
            try:
                results = rr.synchronize(handle)
            except rr.RingreduceTimeoutError:
                continue
        assert_same(results[0], total(size, 100), "float32")
        assert results[1].tolist() == [size] * 10
    WORLD.Barrier()
    monkeypatch.undo()
    rr.shutdown()
    rr.init()


def test_a_group_is_refused_as_a_whole(rank, size):
    """One of its names is taken on one rank: what it would have submitted before meets nothing later."""
    late(rank, size)
    stale = [torch.full((3,), 100.0), torch.full((4,), 100, dtype=torch.int32)]
    fresh = [make(rank, 3, torch.float32), torch.ones(4, dtype=torch.int32)]
    if rank == 0:
        taken = rr.allreduce_async(torch.ones(2, dtype=torch.int32), name="group.int32", op=rr.Sum)
        with pytest.raises(ValueError, match=r"group\.int32.*in flight"):
            rr.grouped_allreduce_async(stale, name="group", op=rr.Sum)
    WORLD.Barrier()
    if rank:
        taken = rr.allreduce_async(torch.ones(2, dtype=torch.int32), name="group.int32", op=rr.Sum)
    assert rr.synchronize(taken).tolist() == [size] * 2
    results = rr.grouped_allreduce(fresh, name="group", op=rr.Sum)
    assert_same(results[0], total(size, 3), "float32")
    assert results[1].tolist() == [size] * 4
