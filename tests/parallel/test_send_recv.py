"""send and recv: exact values in every dtype and size, order, tags, any source, process sets, and what goes wrong."""

from __future__ import annotations

import signal
from random import Random

import pytest
import torch
from oracle import DTYPES, WORLD, every_dtype, make, raw, short

import ringreduce as rr
from ringreduce._runtime import running

SMALL = 4096  # bytes of the largest message that is sent at once


def neighbours(rank: int, size: int) -> tuple[int, int]:
    return (rank + 1) % size, (rank - 1) % size


def around(rank: int, size: int, mine: torch.Tensor, tag: int = 0) -> torch.Tensor:
    """What the rank before has sent, as this one sends to the rank behind."""
    behind, before = neighbours(rank, size)
    got = torch.empty_like(mine)
    handles = [rr.send_async(mine, behind, tag), rr.recv_async(got, before, tag)]
    assert rr.synchronize(handles[1]) == before
    assert rr.synchronize(handles[0]) is None
    return got


def numbers(source: int, dest: int, index: int, numel: int) -> torch.Tensor:
    return (torch.arange(numel) * 7 + source * 100_003 + dest * 1_009 + index).to(torch.int64)


OTHERS = [dtype for dtype in DTYPES if dtype is not torch.bfloat16]


@pytest.mark.hosts
@pytest.mark.parametrize(
    "dtype", [*every_dtype(OTHERS), pytest.param(torch.bfloat16, marks=pytest.mark.smoke)], ids=short
)
def test_dtypes_and_sizes(rank, size, dtype):
    small = SMALL // dtype.itemsize
    _, before = neighbours(rank, size)
    for numel in (0, 1, 17, small, small + 1, 40_009, (4 << 20) // dtype.itemsize):
        mine = make(rank, numel, dtype)
        kept = mine.clone()
        assert raw(around(rank, size, mine)) == raw(make(before, numel, dtype)), numel
        assert torch.equal(mine, kept)


@pytest.mark.hosts
def test_blocking_ring(rank, size):
    """Rank 0 sends first; nobody is asked before."""
    behind, before = neighbours(rank, size)
    for numel in (3, 100_000):
        token = torch.zeros(numel, dtype=torch.int64)
        if rank == 0 and size > 1:
            rr.send(torch.ones(numel, dtype=torch.int64), behind)
            assert rr.recv(token, before) == before
            assert token.unique().tolist() == [size]
        elif size > 1:
            assert rr.recv(token, before) == before
            rr.send(token + 1, behind)


def test_to_oneself(rank):
    for numel in (5, 200_000):
        sent = rr.send_async(make(rank, numel, torch.float32), rank, tag=3)
        got = torch.empty(numel)
        assert rr.recv(got, rank, tag=3) == rank
        rr.synchronize(sent)
        assert torch.equal(got, make(rank, numel, torch.float32))


@pytest.mark.smoke
@pytest.mark.hosts
def test_alltoall_of_messages(rank, size):
    """Everybody to everybody, in an order that differs from rank to rank."""
    counts = (1, 300, 513, 20_000)
    jobs = [(peer, index) for peer in range(size) for index in range(len(counts))]
    order = Random(rank).sample(jobs, len(jobs))
    out = {job: numbers(rank, *job, counts[job[1]]) for job in jobs}
    into = {job: torch.empty(counts[job[1]], dtype=torch.int64) for job in jobs}
    handles = []
    for peer, index in order:
        handles.append(rr.send_async(out[peer, index], peer, index))
    for peer, index in Random(rank + 100).sample(jobs, len(jobs)):
        handles.append(rr.recv_async(into[peer, index], peer, index))
    for handle in Random(rank + 200).sample(handles, len(handles)):
        rr.synchronize(handle)
    for peer, index in jobs:
        assert torch.equal(into[peer, index], numbers(peer, rank, index, counts[index]))


@pytest.mark.hosts
def test_order_and_tags(rank, size):
    """Of one tag in order, whatever the sizes; of several tags in any."""
    behind, before = neighbours(rank, size)
    sizes = [Random(index).choice((1, 50, 512, 513, 9_000)) for index in range(120)]
    sends = [rr.send_async(numbers(rank, behind, i, n), behind, tag=i % 3) for i, n in enumerate(sizes)]
    for tag in (2, 0, 1):
        for index in range(tag, len(sizes), 3):
            got = torch.empty(sizes[index], dtype=torch.int64)
            rr.recv(got, before, tag)
            assert torch.equal(got, numbers(before, rank, index, sizes[index])), index
    for handle in sends:
        rr.synchronize(handle)


@pytest.mark.smoke
@pytest.mark.hosts
def test_any_source(rank, size):
    rounds, numel = 6, 700
    if rank == 0:
        seen = [0] * size
        for _ in range(rounds * (size - 1)):
            got = torch.empty(numel, dtype=torch.int64)
            source = rr.recv(got, tag=11)
            assert torch.equal(got, numbers(source, 0, seen[source], numel))
            seen[source] += 1
            rr.send(torch.tensor(seen[source]), source, tag=12)
        assert seen == [0] + [rounds] * (size - 1)
    else:
        for index in range(rounds):
            rr.send(numbers(rank, 0, index, numel), 0, tag=11)
            answer = torch.empty((), dtype=torch.int64)
            assert rr.recv(answer, 0, tag=12) == 0
            assert answer.item() == index + 1


@pytest.mark.hosts
def test_beside_collectives(rank, size):
    """Collectives are in flight before, between and after messages, in another order on each rank."""
    behind, before = neighbours(rank, size)
    for numel in (10, 50_000):
        mine, got = numbers(rank, behind, 0, numel), torch.empty(numel, dtype=torch.int64)
        steps = ["sum", "send", "recv", "gather"]
        handles = {}
        for step in Random(rank + numel).sample(steps, 4):
            if step == "sum":
                handles[step] = rr.allreduce_async(torch.full((numel,), float(rank)), name="sum", op=rr.Sum)
            elif step == "gather":
                handles[step] = rr.allgather_async(mine, name="gather")
            elif step == "send":
                handles[step] = rr.send_async(mine, behind)
            else:
                handles[step] = rr.recv_async(got, before)
        for step in Random(rank).sample(steps, 4):
            result = rr.synchronize(handles[step])
            if step == "sum":
                assert result.unique().tolist() == [float(sum(range(size)))]
            elif step == "gather":
                assert torch.equal(result[before * numel :][:numel], numbers(before, rank, 0, numel))
        assert torch.equal(got, numbers(before, rank, 0, numel))


def test_a_message_waits_for_no_collective(rank, size):
    """Rank 1 comes to the allreduce only after it has had the message that rank 0 sends behind it."""
    if size < 2:
        pytest.skip("needs 2 ranks")
    for numel in (4, 100_000):
        if rank == 0:
            handle = rr.allreduce_async(torch.ones(30_000), name="late", op=rr.Sum)
            rr.send(torch.full((numel,), 5.0), 1)
        else:
            if rank == 1:
                got = torch.empty(numel)
                rr.recv(got, 0)
                assert got.unique().tolist() == [5.0]
            handle = rr.allreduce_async(torch.ones(30_000), name="late", op=rr.Sum)
        assert rr.synchronize(handle)[0].item() == size


def test_many_small_ones_from_one_rank(rank, size):
    """More than there is room for: the rest waits, and nothing is lost."""
    behind, before = neighbours(rank, size)
    sends = [rr.send_async(torch.tensor([rank, i]), behind, tag=1) for i in range(5_000)]
    got = torch.empty(2, dtype=torch.int64)
    for i in range(5_000):
        rr.recv(got, before, tag=1)
        assert got.tolist() == [before, i]
    for handle in sends:
        rr.synchronize(handle)


def test_tensors_that_are_not_plain(rank, size):
    behind, before = neighbours(rank, size)
    for mine, into in (
        (make(rank, (30, 40), torch.float32).t(), torch.zeros(80, 30)[::2]),
        (make(rank, (30, 40), torch.complex64).conj(), torch.zeros(40, 30, dtype=torch.complex64).t()),
        (make(rank, (1200,), torch.bool), torch.zeros(20, 60, dtype=torch.bool)),
    ):
        handle = rr.send_async(mine, behind)
        rr.recv(into, before)
        rr.synchronize(handle)
        shape = (40, 30) if mine.dtype == torch.float32 else (30, 40) if mine.dtype == torch.complex64 else (1200,)
        theirs = make(before, (1200,) if mine.dtype == torch.bool else (30, 40), mine.dtype)
        theirs = theirs.t() if mine.dtype == torch.float32 else theirs.conj() if mine.dtype.is_complex else theirs
        assert theirs.shape == shape
        assert torch.equal(into.reshape(-1), theirs.reshape(-1))


def test_autograd(rank, size):
    behind, before = neighbours(rank, size)
    leaf = torch.full((3,), float(rank), requires_grad=True)
    handle = rr.send_async(leaf, behind)
    with pytest.raises(ValueError, match="requires grad"):
        rr.recv(leaf, before)
    got = torch.zeros(3)
    weight = torch.ones(3, requires_grad=True)
    product = (weight * got).sum()  # keeps `got` for the gradient of `weight`
    assert rr.recv(got, before) == before
    rr.synchronize(handle)
    assert got.tolist() == [before] * 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.no_grad():
        handle = rr.send_async(leaf, behind)
        rr.recv(leaf, before)
        rr.synchronize(handle)
    assert leaf.tolist() == [before] * 3


@pytest.mark.once
def test_a_handle_that_is_dropped(rank, size):
    """The message goes on, and its tensor lives as long as that takes."""
    behind, before = neighbours(rank, size)
    for _ in range(3):
        rr.send_async(numbers(rank, behind, 0, 300_000), behind)
    junk = [torch.zeros(300_000, dtype=torch.int64) for _ in range(3)]
    for _ in range(3):
        got = torch.empty(300_000, dtype=torch.int64)
        rr.recv(got, before)
        assert torch.equal(got, numbers(before, rank, 0, 300_000))
    del junk


@pytest.mark.hosts
@pytest.mark.parametrize("numel", [5, 5_000])
def test_mismatches(rank, size, numel):
    """An error on the receiver that names both sides, and on the sender of what is large; then all goes on."""
    behind, before = neighbours(rank, size)
    for wrong in (torch.zeros(numel + 1), torch.zeros(numel, dtype=torch.int32), torch.zeros(0)):
        handle = rr.send_async(torch.ones(numel), behind, tag=2)
        kept = wrong.clone()
        with pytest.raises(
            rr.RingreduceError,
            match=rf"recv from rank {before} \(tag 2\): the tensor has {wrong.numel()} elements of "
            rf"{short(wrong.dtype)}, but rank {before} has sent {numel} elements of float32",
        ):
            rr.recv(wrong, before, tag=2)
        assert torch.equal(wrong, kept)
        if numel == 5:
            rr.synchronize(handle)
        else:
            with pytest.raises(rr.RingreduceError, match=rf"send to rank {behind} \(tag 2\).*{wrong.numel()} elements"):
                rr.synchronize(handle)
    assert around(rank, size, torch.full((3,), rank), tag=2).tolist() == [before] * 3


@pytest.mark.once
def test_bad_arguments(rank, size):
    x = torch.zeros(2)
    for call, error, match in (
        (lambda: rr.send(x, size), ValueError, rf"dest is {size}, which is not a global rank"),
        (lambda: rr.send(x, -1), ValueError, "dest"),
        (lambda: rr.send(x, None), TypeError, "dest"),
        (lambda: rr.send(x, "0"), TypeError, "dest"),
        (lambda: rr.send(x, 0, tag=-1), ValueError, "tag"),
        (lambda: rr.send(x, 0, tag=2**31), ValueError, "tag"),
        (lambda: rr.recv(x, 0, tag=1.5), TypeError, "tag"),
        (lambda: rr.recv(x, size), ValueError, "source is"),
        (lambda: rr.recv_async(x, -2), ValueError, "source"),
        (lambda: rr.send([1.0], 0), TypeError, "tensor"),
        (lambda: rr.recv(x.to_sparse(), 0), ValueError, "dense"),
        (lambda: rr.recv(torch.zeros(1).expand(4), 0), ValueError, "repeat memory"),
        (lambda: rr.send(torch.zeros(2, dtype=torch.uint16), 0), ValueError, "dtype"),
    ):
        with pytest.raises(error, match=match):
            call()
    assert running.require().engine.set_idle(0)


def test_a_time_out_says_what_is_missing(rank, size):
    behind, before = neighbours(rank, size)
    got = torch.zeros(4)
    handle = rr.recv_async(got, before, tag=30)
    with pytest.raises(
        rr.RingreduceTimeoutError, match=rf"recv from rank {before} \(tag 30\).*rank {before} has sent nothing"
    ):
        rr.synchronize(handle, timeout=0.05)
    assert not rr.poll(handle)
    assert f"recv from rank {before} (tag 30)" in running.require().engine.state()
    rr.barrier()
    rr.send(torch.full((4,), float(rank)), behind, tag=30)
    assert rr.synchronize(handle) == before
    assert got.tolist() == [before] * 4


@pytest.mark.once
@pytest.mark.parametrize("plain", [True, False])
def test_an_interrupted_recv_takes_no_message(rank, size, plain):
    behind, before = neighbours(rank, size)

    def interrupt(*_):
        raise KeyboardInterrupt

    old, got = torch.zeros(2, 3), torch.zeros(6)
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            rr.recv(old if plain else old.t(), before, tag=40)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert running.require().engine.set_idle(0)
    rr.barrier()
    handle = rr.send_async(torch.full((6,), float(rank)), behind, tag=40)
    assert rr.recv(got, before, tag=40) == before
    rr.synchronize(handle)
    assert got.tolist() == [before] * 6
    assert old.unique().tolist() == [0]


def test_process_sets(rank, size):
    if size < 2:
        pytest.skip("needs 2 ranks")
    members = [0, size - 1]
    process_set = rr.add_process_set(members) if size > 2 else rr.global_process_set
    if rank in members:
        other = members[1 - members.index(rank)]
        got = torch.empty(2)
        handle = rr.send_async(torch.full((2,), float(rank)), other, process_set=process_set)
        assert rr.recv(got, process_set=process_set) == other
        rr.synchronize(handle)
        assert got.tolist() == [other] * 2
        if size > 2:
            with pytest.raises(
                ValueError, match=r"dest is 1, which is not a global rank of the process set \(ranks 0, "
            ):
                rr.send(got, 1, process_set=process_set)
    elif size > 2:
        with pytest.raises(ValueError, match="not a member"):
            rr.send(torch.zeros(1), 0, process_set=process_set)
        with pytest.raises(ValueError, match="not a member"):
            rr.recv(torch.zeros(1), 0, process_set=process_set)
    rr.remove_process_set(process_set)


def test_a_set_with_messages_in_flight_stays(rank, size):
    """Sent and not received, or waited for: on all ranks an error, and the set goes on."""
    if size < 3:
        pytest.skip("needs 3 ranks")
    process_set = rr.add_process_set([0, 2])
    got = torch.empty(1)
    if rank == 0:
        rr.send(torch.tensor([8.0]), 2, process_set=process_set)
    with pytest.raises(ValueError, match="of 1 that rank 0 has sent to rank 2, 0 were received"):
        rr.remove_process_set(process_set)
    handle = rr.recv_async(got, tag=5, process_set=process_set) if rank == 0 else None
    with pytest.raises(ValueError, match="in flight"):
        rr.remove_process_set(process_set)
    if rank == 2:
        rr.recv(got, 0, process_set=process_set)
        assert got.item() == 8.0
        rr.send(torch.tensor([9.0]), 0, tag=5, process_set=process_set)
    if handle is not None:
        assert rr.synchronize(handle) == 2
        assert got.item() == 9.0
    assert rr.remove_process_set(process_set)


def test_random_programs(rank, size):
    """All ranks draw the same messages; each posts its part in an order of its own, and waits in another."""
    for seed in range(3):
        draw = Random(seed)
        sent: dict[tuple[int, int, int], int] = {}
        mine = []
        for _ in range(300):
            source, dest, tag = draw.randrange(size), draw.randrange(size), draw.randrange(3)
            numel = draw.choice((0, 1, 30, 512, 513, 2_000, 30_000))
            index = sent[source, dest, tag] = sent.get((source, dest, tag), -1) + 1
            if source == rank:
                mine.append(("send", dest, tag, index, numel))
            if dest == rank:
                mine.append(("recv", source, tag, index, numel))
        # Of one peer and tag in order; else shuffled.
        lanes: dict[tuple[str, int, int], list[tuple[str, int, int, int, int]]] = {}
        for one in mine:
            lanes.setdefault(one[:3], []).append(one)
        shuffle, handles = Random(seed * size + rank), []
        while lanes:
            lane = shuffle.choice(list(lanes))
            what, peer, tag, index, numel = lanes[lane].pop(0)
            if not lanes[lane]:
                del lanes[lane]
            if what == "send":
                handles.append((rr.send_async(numbers(rank, peer, index + 10 * tag, numel), peer, tag), None, None))
            else:
                got = torch.empty(numel, dtype=torch.int64)
                handles.append((rr.recv_async(got, peer, tag), got, numbers(peer, rank, index + 10 * tag, numel)))
        shuffle.shuffle(handles)
        for handle, got, expected in handles:
            rr.synchronize(handle)
            assert got is None or torch.equal(got, expected)
    WORLD.Barrier()
