"""Asynchronous operations: any order, any thread, many at once, and nothing waits for a straggler."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from oracle import WORLD, assert_same, make, reduced, several_chunks

import ringreduce as rr


def total(size: int, numel: int) -> torch.Tensor:
    return reduced(range(size), numel, torch.float32, rr.Sum)


def shuffled(items: list, seed: int) -> list:
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [items[i] for i in order]


def test_poll_while_a_peer_is_missing(rank, size):
    if size == 1:
        pytest.skip("needs a peer")
    mine = make(rank, 100, torch.float32)
    handle = None
    if rank != size - 1:
        handle = rr.allreduce_async(mine, name="late", op=rr.Sum)
        assert not any(rr.poll(handle) for _ in range(1_000))
    WORLD.Barrier()  # the last rank submits only now
    if handle is None:
        handle = rr.allreduce_async(mine, name="late", op=rr.Sum)
    while not rr.poll(handle):
        pass
    assert_same(rr.synchronize(handle), total(size, 100), "late")


def test_not_complete_inside_the_call():
    """A program may count on doing something between submission and completion."""
    tensors = [torch.ones(several_chunks(torch.float32)) for _ in range(50)]
    polls = []
    for tensor in tensors:
        handle = rr.allreduce_async_(tensor, op=rr.Max)
        polls.append(rr.poll(handle))
        rr.synchronize(handle)
    assert not all(polls)


@pytest.mark.smoke
def test_another_order_on_each_rank(rank, size):
    numels = [1 + 37 * k for k in range(40)]
    handles = {}
    for k in shuffled(list(range(40)), seed=rank):
        handles[k] = rr.allreduce_async(make(rank, numels[k], torch.float32), name=f"op {k}", op=rr.Sum)
    for k in shuffled(list(range(40)), seed=100 + rank):
        assert_same(rr.synchronize(handles[k]), total(size, numels[k]), f"op {k}")


@pytest.mark.hosts
def test_a_pending_operation_holds_up_nobody(rank, size):
    """Every kind runs while operations of every kind wait for the last rank."""
    late = rank == size - 1

    def submit() -> list:
        return [
            rr.allreduce_async(make(rank, 11, torch.float32), name="pending", op=rr.Sum),
            rr.allgather_async(make(rank, (rank, 2), torch.float32), name="pending"),
            rr.broadcast_async(make(rank, 5, torch.float32), 0, name="pending"),
            rr.alltoall_async(make(rank, size, torch.float32), name="pending"),
            rr.reducescatter_async(make(rank, size, torch.float32), name="pending", op=rr.Sum),
        ]

    handles = [] if late else submit()
    for numel in (1, 1_000, several_chunks(torch.float32)):
        assert_same(rr.allreduce(make(rank, numel, torch.float32), op=rr.Sum), total(size, numel), "meanwhile")
        assert rr.allgather(torch.tensor([rank])).tolist() == list(range(size))
        assert rr.broadcast(torch.tensor([rank]), size - 1).item() == size - 1
        assert rr.alltoall(torch.full((size,), rank)).tolist() == list(range(size))
        rr.barrier()
    if late:
        handles = submit()
    results = [rr.synchronize(handle) for handle in handles]
    assert_same(results[0], total(size, 11), "allreduce")
    assert_same(results[1], torch.cat([make(r, (r, 2), torch.float32) for r in range(size)]), "allgather")
    assert_same(results[2], make(0, 5, torch.float32), "broadcast")
    assert_same(results[3][0], torch.stack([make(r, size, torch.float32)[rank] for r in range(size)]), "alltoall")
    assert_same(results[4], total(size, size)[rank : rank + 1], "reducescatter")


def test_a_name_in_flight(rank, size):
    mine = make(rank, 9, torch.float32)
    handle = rr.allreduce_async(mine, name="twice", op=rr.Sum)
    with pytest.raises(ValueError, match="twice"):
        rr.allreduce_async(mine, name="twice", op=rr.Sum)
    gather = rr.allgather_async(mine, name="twice")  # matched by kind and name
    assert_same(rr.synchronize(handle), total(size, 9), "first use")
    assert_same(rr.allreduce(mine, name="twice", op=rr.Sum), total(size, 9), "second use")
    assert rr.synchronize(gather).numel() == 9 * size


@pytest.mark.hosts
def test_many_in_flight(rank, size):
    handles = [rr.allreduce_async(torch.tensor([rank + k]), name=f"many {k}", op=rr.Sum) for k in range(500)]
    ranks = size * (size - 1) // 2
    assert [rr.synchronize(handle).item() for handle in handles] == [ranks + k * size for k in range(500)]


def test_unnamed_operations_are_matched_by_order(rank, size):
    handles = [rr.allreduce_async(torch.full((k % 7 + 1,), k * (rank + 1)), op=rr.Sum) for k in range(100)]
    factor = size * (size + 1) // 2
    for k, handle in enumerate(handles):
        assert rr.synchronize(handle).tolist() == [k * factor] * (k % 7 + 1)


def test_handles_keep_their_buffers_alive(rank, size):
    numel = several_chunks(torch.float32)
    handles = []
    for k in range(6):
        handles.append(rr.allreduce_async(make(rank + k, numel, torch.float32), name=f"kept {k}", op=rr.Sum))
        torch.full((numel,), float("nan"))  # would reuse the memory if it were free
    gc.collect()
    for k, handle in enumerate(handles):
        expected = reduced([other + k for other in range(size)], numel, torch.float32, rr.Sum)
        assert_same(rr.synchronize(handle), expected, f"kept {k}")


@pytest.mark.once
def test_dropped_handles(rank, size):
    """The operation still runs for the peers, its buffers stay until it is done, its name is free."""
    numel = several_chunks(torch.float32)
    for k in range(4):
        handle = rr.allreduce_async(make(rank + k, numel, torch.float32), name=f"dropped {k}", op=rr.Sum)
        if k % size == rank:
            del handle
            gc.collect()
            torch.full((numel,), float("nan"))
        else:
            expected = reduced([other + k for other in range(size)], numel, torch.float32, rr.Sum)
            assert_same(rr.synchronize(handle), expected, f"dropped by rank {k % size}")
    rr.barrier()
    assert_same(rr.allreduce(make(rank, 3, torch.float32), name="dropped 0", op=rr.Sum), total(size, 3), "again")


def test_in_place_result_is_there_after_synchronize(rank, size):
    tensor = make(rank, 5_003, torch.float32)
    handle = rr.allreduce_async_(tensor, op=rr.Sum)
    assert rr.synchronize(handle) is tensor
    assert_same(tensor, total(size, 5_003), "in place")


def test_handles_are_used_once():
    handle = rr.allreduce_async(torch.ones(3), op=rr.Max)
    assert rr.synchronize(handle).tolist() == [1.0] * 3
    assert rr.synchronize(handle) is None
    with pytest.raises(ValueError, match="handle"):
        rr.poll(handle)


def in_threads(functions: list) -> None:
    """Runs the functions in threads at once; raises what the first of them raised."""
    failures = []

    def guarded(function) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_synchronize_in_another_thread(rank, size):
    handles = [rr.allreduce_async(make(rank, 1_009, torch.float32), op=rr.Sum) for _ in range(8)]

    def wait(handle) -> None:
        assert_same(rr.synchronize(handle), total(size, 1_009), "in a thread")

    in_threads([lambda handle=handle: wait(handle) for handle in handles])


def test_several_threads_submit(rank, size):
    """Named operations, as the order of the threads differs by rank."""

    def work(thread: int) -> None:
        for k in range(30):
            numel = 1 + 100 * thread + k
            result = rr.allreduce(make(rank, numel, torch.float32), name=f"thread {thread} op {k}", op=rr.Sum)
            assert_same(result, total(size, numel), f"thread {thread} op {k}")

    in_threads([lambda thread=thread: work(thread) for thread in range(4)])


def test_submitted_while_the_main_thread_waits(rank, size):
    """A thread that waits inside the library does not keep others out of it."""
    if size == 1:
        pytest.skip("needs a peer")
    first = make(rank, 10, torch.float32)
    if rank == 0:
        thread = threading.Thread(target=lambda: rr.allreduce(first, name="released", op=rr.Sum), daemon=True)
        thread.start()
        result = rr.allreduce(first, name="waited for", op=rr.Sum)
        thread.join()
    else:  # submit what rank 0 waits for only after what its thread submits is through
        rr.allreduce(first, name="released", op=rr.Sum)
        result = rr.allreduce(first, name="waited for", op=rr.Sum)
    assert_same(result, total(size, 10), "waited for")
