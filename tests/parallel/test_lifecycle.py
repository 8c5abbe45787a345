"""init and shutdown in one process, and what other processes started by it may do."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator

import pytest
import torch
from oracle import WORLD, assert_same, make, reduced
from torch.utils.data import DataLoader, Dataset

import ringreduce as rr


@pytest.fixture
def restarted() -> Iterator[None]:
    """Whatever the test does, the library runs afterwards."""
    yield
    rr.init()


def assert_works(rank: int, size: int) -> None:
    assert_same(
        rr.allreduce(make(rank, 101, torch.float32), op=rr.Sum), reduced(range(size), 101, torch.float32, rr.Sum), "sum"
    )
    assert rr.allgather_object(rank) == list(range(size))


@pytest.mark.hosts
@pytest.mark.usefixtures("restarted")
def test_fifty_times(rank, size):
    for round_ in range(50):
        rr.shutdown()
        assert not rr.is_initialized()
        rr.init()
        assert rr.is_initialized()
        assert (rr.rank(), rr.size()) == (rank, size)
        assert rr.allreduce(torch.tensor([round_]), name="round", op=rr.Sum).item() == round_ * size
    assert_works(rank, size)


@pytest.mark.usefixtures("restarted")
def test_init_and_shutdown_twice_do_nothing(rank, size):
    rr.init()
    assert_works(rank, size)
    rr.shutdown()
    rr.shutdown()
    assert not rr.is_initialized()
    rr.init()
    assert_works(rank, size)


@pytest.mark.usefixtures("restarted")
def test_handles_and_sets_left_over(rank, size):
    """An operation that nobody can finish fails at shutdown; ids and counters start anew."""
    process_set = rr.add_process_set([size - 1]) if size > 1 else None
    rr.allreduce_async(torch.ones(3))  # finished, never synchronized
    rr.barrier()
    pending = rr.allreduce_async(torch.ones(3), name="pending") if rank == 0 and size > 1 else None
    WORLD.Barrier()
    rr.shutdown()
    if pending is not None:
        with pytest.raises(rr.RingreduceError, match="pending"):
            rr.synchronize(pending)
    rr.init()
    assert_works(rank, size)
    if process_set is not None:
        with pytest.raises(ValueError, match="not registered"):
            rr.allreduce(torch.ones(1), process_set=process_set)
        again = rr.add_process_set([0])
        assert again.process_set_id == 1
        rr.remove_process_set(again)
    assert rr.allreduce(torch.ones(1), name="pending", op=rr.Sum).item() == size


@pytest.mark.usefixtures("restarted")
def test_process_sets_at_init(rank, size):
    rr.shutdown()
    chosen = rr.ProcessSet([size - 1])
    rr.init(process_sets=[chosen] if size > 1 else None)
    if size > 1:
        assert chosen.process_set_id == 1
        assert chosen.included() == (rank == size - 1)
    rr.shutdown()


@pytest.mark.usefixtures("restarted")
def test_calls_while_not_initialised():
    rr.shutdown()
    for question in (rr.rank, rr.size, rr.local_rank, rr.local_size, rr.cross_rank, rr.cross_size):
        with pytest.raises(ValueError, match="init"):
            question()
    one = torch.ones(2)
    for call in (
        lambda: rr.allreduce(one),
        lambda: rr.allreduce_(one),
        lambda: rr.allreduce_async(one),
        lambda: rr.grouped_allreduce([one]),
        lambda: rr.allgather(one),
        lambda: rr.broadcast(one, 0),
        lambda: rr.broadcast_(one, 0),
        lambda: rr.reducescatter(one),
        lambda: rr.reducescatter_into(torch.ones(2), one),
        lambda: rr.alltoall(one),
        lambda: rr.alltoall_into(torch.ones(2), one),
        lambda: rr.allgather_into(torch.ones(2), one),
        lambda: rr.reduce(one, 0),
        lambda: rr.reduce_(one, 0),
        lambda: rr.gather(one, 0),
        lambda: rr.scatter(one, 0),
        lambda: rr.send(one, 0),
        lambda: rr.recv(one, 0),
        lambda: rr.barrier(),
        lambda: rr.add_process_set([0]),
    ):
        with pytest.raises(rr.RingreduceError, match="init"):
            call()
    for call in (lambda: rr.broadcast_object(1), lambda: rr.allgather_object(1)):
        with pytest.raises((rr.RingreduceError, ValueError), match="init"):
            call()


class Squares(Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index * index)


@pytest.mark.once
def test_dataloader_with_workers(rank, size):
    """Its worker processes are forked from a process in which the library runs."""
    for _ in range(2):
        seen = 0
        for batch in DataLoader(Squares(), batch_size=8, num_workers=2):
            seen += int(rr.allreduce(batch.sum(), op=rr.Sum))
        assert seen == size * sum(index * index for index in range(24))
    assert_works(rank, size)


def in_forked_child(function) -> str:
    """What `function` returns, or the type and text of what it raises, in a forked child; where it hangs if it does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True, file=writer)
        try:
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.mark.once
@pytest.mark.parametrize(
    "call",
    [
        lambda: rr.allreduce(torch.ones(2)),
        lambda: rr.allreduce_(torch.ones(2)),
        lambda: rr.allreduce_async(torch.ones(2), name="child"),
        lambda: rr.barrier(),
        lambda: rr.broadcast_object(1),
        lambda: rr.init(),
    ],
    ids=["allreduce", "allreduce_", "allreduce_async", "barrier", "broadcast_object", "init"],
)
def test_a_forked_child_is_told(rank, size, call):
    text = in_forked_child(call)
    assert "RingreduceError" in text
    assert "fork" in text
    assert_works(rank, size)


@pytest.mark.once
def test_fork_with_an_operation_in_flight(rank, size):
    if size == 1:
        pytest.skip("needs a peer")
    handle = rr.allreduce_async(make(rank, 10_007, torch.float32), op=rr.Sum) if rank == 0 else None
    text = in_forked_child(lambda: rr.synchronize(handle) if handle is not None else rr.barrier())
    assert "RingreduceError" in text
    if handle is None:
        handle = rr.allreduce_async(make(rank, 10_007, torch.float32), op=rr.Sum)
    assert_same(rr.synchronize(handle), reduced(range(size), 10_007, torch.float32, rr.Sum), "after the fork")
