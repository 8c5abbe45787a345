"""GPU tensors on the doubles of CUDA and NCCL: the same results as on the CPU, through NCCL and through host memory."""

from __future__ import annotations

import os

import pytest
import torch
from gpu_steps import path
from oracle import make

import ringreduce as rr
from ringreduce._runtime import running

OPS = [rr.Average, rr.Sum, rr.Min, rr.Max, rr.Product]


@pytest.mark.quick
def test_allreduce(gpu, rank):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.int16, torch.uint8):
        for op in OPS:
            x = make(rank, 301, dtype)
            expected = rr.allreduce(x.clone(), op=op)
            result = rr.allreduce(gpu.cuda(x.clone()), op=op)
            assert gpu.holds(result)
            assert torch.equal(result, expected), (dtype, op)
    if rr.size() > 1:
        assert path()[0] == ("host" if "RINGREDUCE_GPU_PATH" in os.environ else "nccl")


def test_bool_and_complex(gpu, rank):
    x = torch.arange(40) % (rank + 2) == 0
    for op in (rr.Sum, rr.Min, rr.Max, rr.Product):
        assert torch.equal(rr.allreduce(gpu.cuda(x.clone()), op=op), rr.allreduce(x, op=op))
    z = make(rank, 50, torch.complex64)
    for op in (rr.Sum, rr.Average, rr.Product):
        torch.testing.assert_close(rr.allreduce(gpu.cuda(z.clone()), op=op), rr.allreduce(z, op=op))


def test_in_place_scaled_and_not_contiguous(gpu, rank):
    x = make(rank, 120, torch.float32).view(10, 12)
    expected = rr.allreduce(x.t(), op=rr.Sum, prescale_factor=0.5, postscale_factor=4.0)
    y = gpu.cuda(x.clone()).t()
    handle = rr.allreduce_async_(y, op=rr.Sum, prescale_factor=0.5, postscale_factor=4.0)
    assert rr.synchronize(handle) is y
    assert torch.equal(y, expected)


def test_grouped_and_any_order(gpu, rank, size):
    tensors = [make(rank, count, torch.float32) for count in (1, 17, 0, 300)]
    expected = rr.grouped_allreduce([t.clone() for t in tensors], op=rr.Sum)
    results = rr.grouped_allreduce([gpu.cuda(t.clone()) for t in tensors], op=rr.Sum)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    order = list(range(12)) if rank % 2 else list(reversed(range(12)))
    handles = {i: rr.allreduce_async(gpu.cuda(torch.full((i + 1,), float(i))), name=f"t{i}", op=rr.Sum) for i in order}
    for i, handle in handles.items():
        assert torch.equal(rr.synchronize(handle), torch.full((i + 1,), float(i * size)))


def test_other_collectives(gpu, rank, size):
    for root in range(size):
        x = gpu.cuda(make(rank, 33, torch.float32))
        assert torch.equal(rr.broadcast(x, root), make(root, 33, torch.float32))
    rows = make(rank, rank * 6, torch.float32).view(rank * 2, 3)  # rank 0 has none
    gathered = rr.allgather(gpu.cuda(rows.clone()))
    assert torch.equal(gathered, rr.allgather(rows))
    for count in (size * 4, size * 4 + 1):
        y = make(rank, count * 2, torch.float32).view(count, 2)
        expected = rr.reducescatter(y, op=rr.Average)
        assert torch.equal(rr.reducescatter(gpu.cuda(y.clone()), op=rr.Average), expected)
    splits = [(rank + to) % 3 for to in range(size)]
    z = make(rank, sum(splits) * 5, torch.float32).view(sum(splits), 5)
    expected, received = rr.alltoall(z, splits)
    result, counts = rr.alltoall(gpu.cuda(z.clone()), splits)
    assert torch.equal(result, expected)
    assert counts.tolist() == received.tolist()
    rr.barrier()


def test_rooted_collectives(gpu, rank, size):
    for root in {0, size - 1}:
        for op, dtype in ((rr.Sum, torch.float32), (rr.Max, torch.int16), (rr.Average, torch.int64)):
            x = gpu.cuda(make(rank, 33, dtype))
            expected = rr.reduce(make(rank, 33, dtype), root, op=op)
            result = rr.reduce(x, root, op=op)
            assert gpu.holds(result)
            assert torch.equal(result, expected)
            assert rr.reduce_(x, root, op=op) is x
            assert torch.equal(x, expected if rank == root else make(rank, 33, dtype))
        rows = make(rank, rank * 6, torch.float32).view(rank * 2, 3)
        assert torch.equal(rr.gather(gpu.cuda(rows.clone()), root), rr.gather(rows, root))
        splits = [target + 1 for target in range(size)] if rank == root else None
        whole = make(root, (sum(splits) if splits else 0, 3), torch.float32)
        assert torch.equal(rr.scatter(gpu.cuda(whole.clone()), root, splits), rr.scatter(whole, root, splits))


def test_into_memory_that_is_there(gpu, rank, size):
    mine = make(rank, (2 * size, 3), torch.float32)
    for call, expected in (
        (lambda output: rr.allgather_into(output, gpu.cuda(mine.clone())), rr.allgather(mine)),
        (lambda output: rr.alltoall_into(output, gpu.cuda(mine.clone())), rr.alltoall(mine)),
        (
            lambda output: rr.reducescatter_into(output, gpu.cuda(mine.clone()), op=rr.Sum),
            rr.reducescatter(mine, op=rr.Sum),
        ),
    ):
        rows = expected.shape[0]
        for sizes in ([rows], [1, rows - 1]):
            pieces = [gpu.cuda(torch.zeros(n, 3)) for n in sizes]
            call(pieces)
            assert torch.equal(torch.cat(pieces), expected)
    with pytest.raises(ValueError, match="output"):
        rr.allgather_into(gpu.cuda(torch.zeros(1 + 2 * size * size, 3)), gpu.cuda(mine.clone()))
    with pytest.raises(ValueError, match="a group is on one device"):
        rr.allgather_into(torch.zeros(2 * size * size, 3), gpu.cuda(mine.clone()))


def test_parameters_and_optimizer_state(gpu, rank):
    model = gpu.module(torch.nn.Linear(4, 3))
    with torch.no_grad():
        model.weight.fill_(rank + 1)
    rr.broadcast_parameters(model.state_dict(), root_rank=0)
    assert torch.equal(model.weight, torch.ones(3, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if rank == 0:
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = gpu.cuda(torch.full_like(parameter, 5.0))
    rr.broadcast_optimizer_state(optimizer, root_rank=0)
    for parameter in model.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.full_like(parameter, 5.0))


def test_process_sets(gpu, rank, size):
    rr.allreduce(gpu.cuda(torch.ones(1)))  # the world has a communicator: the first set splits it
    for ranks in ([0], list(range(size)), list(range(0, size, 2))):
        if ranks == list(range(size)):
            continue
        members = rr.add_process_set(ranks)
        if members.included():
            result = rr.allreduce(gpu.cuda(torch.full((7,), rank + 1.0)), op=rr.Sum, process_set=members)
            assert torch.equal(result, torch.full((7,), float(sum(r + 1 for r in ranks))))
        rr.remove_process_set(members)


def test_autograd(gpu, rank, size):
    x = gpu.cuda(torch.full((5,), rank + 1.0)).requires_grad_()
    (rr.allreduce(x, op=rr.Sum) * 3).sum().backward()
    assert torch.equal(x.grad, torch.full((5,), 3.0 * size))


def test_results_are_copied_and_the_memory_of_the_core_is_freed(start, rank, size):
    fake = start()
    fake.stream = fake.new_stream()
    rr.allreduce(fake.cuda(torch.ones(1)))
    live = fake.double.rr_double_live_blocks()
    for _ in range(3):
        result = rr.allgather(fake.cuda(torch.full((3,), float(rank))))
        assert result.view(size, 3)[:, 0].tolist() == list(range(size))
    handle = rr.allreduce_async_(fake.cuda(torch.ones(1)))
    rr.synchronize(handle)  # behind all that, on the stream of the communication
    assert fake.double.rr_double_live_blocks() == live


def test_one_warning_says_why_nccl_is_not_used(start, rank, size, capfd):
    host_of = running.require().host_of
    cases = [({"nccl_version": 22605}, "too old")]
    if len(set(host_of)) < size:
        cases.append(({"same_pci": 1}, "share the GPU"))
    for settings, why in cases:
        capfd.readouterr()
        fake = start(**settings)
        for _ in range(3):
            assert torch.equal(rr.allreduce(fake.cuda(torch.ones(3)), op=rr.Sum), torch.full((3,), float(size)))
        lines = [line for line in capfd.readouterr().err.splitlines() if "through host memory" in line]
        assert len(lines) == (1 if rank == 0 and size > 1 else 0)
        if size > 1:
            assert path()[0] == "host"
            assert why in path()[1]


def test_bad_devices(start, rank, size):
    fake = start()
    with pytest.raises(ValueError, match=r"tensors\[1\] is on cpu and tensors\[0\] on cuda:"):
        rr.grouped_allreduce([fake.cuda(torch.ones(2)), torch.ones(2)])
    rr.allreduce(fake.cuda(torch.ones(2)))
    other = fake.cuda(torch.ones(2), device=7)
    with pytest.raises(ValueError, match=rf"the tensor is on cuda:7, but this rank communicates on cuda:{rank}"):
        rr.allreduce(other)
    with pytest.raises(
        ValueError, match=rf"tensors\[1\]: the tensor is on cuda:7, but this rank communicates on cuda:{rank}"
    ):
        rr.grouped_allreduce([fake.cuda(torch.ones(2)), other])
    if size > 1:
        x = fake.cuda(torch.ones(2)) if rank else torch.ones(2)
        with pytest.raises(rr.RingreduceError, match=r"(?s)rank 0 submitted .* on cpu.*submitted .* on cuda"):
            rr.allreduce(x, name="mixed")
    assert rr.allreduce(fake.cuda(torch.ones(1)), op=rr.Sum).item() == size
