"""Process sets: members run collectives among themselves, in overlapping sets at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from oracle import WORLD, assert_same, average_ulps, make, reduced, several_chunks

import ringreduce as rr
from ringreduce._runtime import running


@pytest.fixture
def add() -> Iterator[Callable[[list[int]], rr.ProcessSet]]:
    """add_process_set, undone after the test."""
    added = []

    def register(ranks: list[int]) -> rr.ProcessSet:
        added.append(rr.add_process_set(ranks))
        return added[-1]

    yield register
    for process_set in added:
        rr.remove_process_set(process_set)


def needs(size: int, least: int) -> None:
    if size < least:
        pytest.skip(f"needs {least} ranks")


def test_the_global_set(rank, size):
    world = rr.global_process_set
    assert (world.process_set_id, world.ranks, world.size(), world.rank()) == (0, list(range(size)), size, rank)
    assert world.included()
    assert rr.remove_process_set(world) is False
    assert rr.allreduce(torch.ones(2), op=rr.Sum, process_set=world).tolist() == [size, size]


def test_add_and_remove(rank, size):
    needs(size, 2)
    process_set = rr.add_process_set(rr.ProcessSet([size - 1]))
    assert process_set.ranks == [size - 1]
    assert process_set.size() == 1
    assert process_set.included() == (rank == size - 1)
    if rank == size - 1:
        assert process_set.rank() == 0
    assert rr.remove_process_set(process_set) is True
    assert process_set.process_set_id is None
    assert rr.remove_process_set(process_set) is False
    with pytest.raises(ValueError, match="process_set"):
        rr.allreduce(torch.ones(1), process_set=process_set)


def test_ranks_are_sorted(size, add):
    needs(size, 3)
    assert add([2, 0]).ranks == [0, 2]


def test_ids_are_used_again(size):
    needs(size, 3)
    first, second, third = (rr.add_process_set([rank]) for rank in range(3))
    ids = [process_set.process_set_id for process_set in (first, second, third)]
    assert ids == [1, 2, 3]
    rr.remove_process_set(second)
    again = rr.add_process_set([0, 1])
    assert again.process_set_id == 2
    for process_set in (first, third, again):
        rr.remove_process_set(process_set)


def test_duplicates(size, add):
    with pytest.raises(ValueError, match="ranks"):
        rr.add_process_set(list(range(size)))
    needs(size, 2)
    add([size - 1])
    with pytest.raises(ValueError, match="ranks"):
        rr.add_process_set([size - 1])


@pytest.mark.parametrize("ranks", [[], [0, 0], [-1], [1_000], ["0"], 3], ids=str)
def test_bad_ranks(ranks):
    with pytest.raises((ValueError, TypeError), match="rank"):
        rr.add_process_set(ranks)


def test_from_a_communicator(rank, size):
    needs(size, 2)
    from mpi4py import MPI

    comm = WORLD.Split(0 if rank > 0 else MPI.UNDEFINED, rank)
    process_set = rr.add_process_set(rr.ProcessSet(comm))
    assert process_set.ranks == list(range(1, size))
    if process_set.included():
        assert rr.allreduce(torch.ones(1), op=rr.Sum, process_set=process_set).item() == size - 1
        comm.Free()
    rr.remove_process_set(process_set)


def test_outsiders_are_told(rank, size, add):
    needs(size, 2)
    process_set = add(list(range(size - 1)))
    if rank == size - 1:
        for call in (
            lambda: rr.allreduce(torch.ones(1), process_set=process_set),
            lambda: rr.allreduce_(torch.ones(1), process_set=process_set),
            lambda: rr.grouped_allreduce([torch.ones(1)], process_set=process_set),
            lambda: rr.allgather(torch.ones(1), process_set=process_set),
            lambda: rr.broadcast(torch.ones(1), 0, process_set=process_set),
            lambda: rr.reducescatter(torch.ones(1), process_set=process_set),
            lambda: rr.alltoall(torch.ones(1), process_set=process_set),
            lambda: rr.barrier(process_set=process_set),
            lambda: rr.allgather_object(1, process_set=process_set),
        ):
            with pytest.raises(ValueError, match="not a member"):
                call()
    rr.barrier()


def test_roots_are_global_ranks(rank, size, add):
    needs(size, 3)
    process_set = add([1, size - 1])
    if process_set.included():
        for root in (1, size - 1):
            assert_same(
                rr.broadcast(make(rank, 7, torch.int32), root, process_set=process_set),
                make(root, 7, torch.int32),
                "root",
            )
        with pytest.raises(ValueError, match="root_rank"):
            rr.broadcast(torch.ones(1), 0, process_set=process_set)
        assert rr.broadcast_object(rank, size - 1, process_set=process_set) == size - 1


@pytest.mark.quick
@pytest.mark.hosts
@pytest.mark.parametrize("numel", [1, 10_007, several_chunks(torch.float32)])
def test_every_collective(rank, size, numel, add):
    """In two sets that divide the ranks, each over both hosts where there are two."""
    needs(size, 3)
    sets = [add(list(range(begin, size, 2))) for begin in (0, 1)]
    mine = sets[rank % 2]
    members, me = mine.ranks, mine.ranks.index(rank)
    target = {"process_set": mine}
    x = make(rank, numel, torch.float32)
    total = reduced(members, numel, torch.float32, rr.Sum)
    assert_same(rr.allreduce(x, op=rr.Sum, **target), total, "allreduce")
    mean = reduced(members, numel, torch.float32, rr.Average)
    assert_same(rr.allreduce(x, **target), mean, "average over the members", ulps=average_ulps(len(members)))
    assert_same(rr.reducescatter(x, op=rr.Sum, **target), total.tensor_split(len(members))[me], "reducescatter")
    assert_same(rr.allgather(x, **target), torch.cat([make(r, numel, torch.float32) for r in members]), "allgather")
    assert_same(rr.broadcast(x, members[-1], **target), make(members[-1], numel, torch.float32), "broadcast")
    block = make(rank, (len(members), numel), torch.float32)
    parts = torch.stack([make(r, (len(members), numel), torch.float32)[me] for r in members])
    assert_same(rr.alltoall(block, **target), parts, "alltoall")
    rr.barrier(**target)
    assert rr.allgather_object(rank, **target) == members


@pytest.mark.smoke
def test_a_set_of_one(rank, size, add):
    needs(size, 2)
    process_set = add([size - 1])
    if process_set.included():
        x = make(rank, 1_001, torch.float32)
        assert_same(rr.allreduce(x, process_set=process_set), x, "allreduce")
        assert_same(rr.allgather(x, process_set=process_set), x, "allgather")
        assert_same(rr.reducescatter(x, process_set=process_set), x, "reducescatter")
        assert_same(rr.alltoall(x, process_set=process_set), x, "alltoall")
        assert_same(rr.broadcast(x, rank, process_set=process_set), x, "broadcast")
        rr.barrier(process_set=process_set)


def test_a_set_that_waits_does_not_hold_up_another(rank, size, add):
    """[0, last] waits for the last rank, while the world, and [0, 1], go on."""
    needs(size, 3)
    waiting, busy = add([0, size - 1]), add([0, 1])
    x = make(rank, 10_007, torch.float32)
    handle = rr.allreduce_async(x, name="same name", op=rr.Sum, process_set=waiting) if rank == 0 else None
    for _ in range(5):
        if busy.included():
            expected = reduced([0, 1], 10_007, torch.float32, rr.Sum)
            assert_same(rr.allreduce(x, name="same name", op=rr.Sum, process_set=busy), expected, "busy set")
        expected = reduced(range(size), 10_007, torch.float32, rr.Sum)
        assert_same(rr.allreduce(x, name="same name", op=rr.Sum), expected, "world")
    if rank == size - 1:
        handle = rr.allreduce_async(x, name="same name", op=rr.Sum, process_set=waiting)
    if handle is not None:
        expected = reduced([0, size - 1], 10_007, torch.float32, rr.Sum)
        assert_same(rr.synchronize(handle), expected, "waiting set")


def test_ranks_that_disagree_about_a_set(rank, size):
    needs(size, 2)
    with pytest.raises(rr.RingreduceError, match="disagree"):
        rr.add_process_set([0] if rank == 0 else [size - 1])
    assert rr.allreduce(torch.ones(1), op=rr.Sum).item() == size


def test_one_rank_asks_for_what_cannot_be(rank, size):
    """No rank waits for it, and all are told the same."""
    needs(size, 2)
    with pytest.raises(rr.RingreduceError, match="disagree") as raised:
        rr.add_process_set([1_000] if rank == 0 else [0])
    assert len(set(rr.allgather_object(str(raised.value)))) == 1


def test_a_set_with_operations_in_flight_stays(rank, size, add):
    """Whoever has them, all ranks are refused, and the set works as before."""
    needs(size, 3)
    process_set = add([0, size - 1])
    x = make(rank, 10_007, torch.float32)
    target = {"process_set": process_set, "name": "in flight", "op": rr.Sum}
    handle = rr.allreduce_async(x, **target) if rank == 0 else None
    rr.barrier()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"in flight on rank\(s\) \[0\]"):
            rr.remove_process_set(process_set)
    assert process_set.included() == (rank in (0, size - 1))
    if rank == size - 1:
        handle = rr.allreduce_async(x, **target)
    if handle is not None:
        assert_same(rr.synchronize(handle), reduced([0, size - 1], 10_007, torch.float32, rr.Sum), "in flight")
        again = rr.allgather(torch.tensor([rank]), process_set=process_set)
        assert again.tolist() == [0, size - 1]


@pytest.mark.hosts
@pytest.mark.parametrize("step", ["add_set", "split_gpu"])
def test_a_set_that_one_member_cannot_add(rank, size, step, monkeypatch):
    """No rank has it, and the next set gets its number."""
    needs(size, 2)
    context = running.require()

    class Failing:
        """The engine, with a step that fails on the last rank."""

        def __getattr__(self, name: str) -> object:
            return getattr(engine, name)

        def add_set(self, *arguments: object) -> None:
            if step == "add_set" and rank == size - 1:
                raise RuntimeError("no room here")
            engine.add_set(*arguments)

        def split_gpu(self, set_id: int) -> Failing:
            engine.split_gpu(set_id).wait()
            return self

        def wait(self) -> None:
            if rank == size - 1:
                raise RuntimeError("no room here")

    engine = context.engine
    monkeypatch.setattr(context, "engine", Failing())
    process_set = rr.ProcessSet([size - 1])
    with pytest.raises(rr.RingreduceError, match=f"cannot be added: rank {size - 1}: no room here"):
        rr.add_process_set(process_set)
    monkeypatch.undo()
    assert process_set.process_set_id is None
    assert sorted(context.sets) == [0]
    assert rr.add_process_set(process_set).process_set_id == 1
    if process_set.included():
        assert rr.allreduce(torch.ones(1), op=rr.Sum, process_set=process_set).item() == 1
    rr.remove_process_set(process_set)


def test_add_and_remove_many_times(rank, size):
    needs(size, 2)
    for round_ in range(20):
        process_set = rr.add_process_set([round_ % size])
        if process_set.included():
            assert rr.allreduce(torch.ones(1), op=rr.Sum, process_set=process_set).item() == 1
        rr.remove_process_set(process_set)
