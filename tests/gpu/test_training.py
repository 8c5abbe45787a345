"""Collectives and training on real GPUs: against the CPU's results, in stream order, without host waits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("NCCL_MULTI_RANK_GPU_ENABLE", "1")  # two ranks may have one GPU between them

DTYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128,
]  # fmt: skip
EXACT = 2  # values are small whole numbers: sums are exact in every dtype


@pytest.fixture(scope="module")
def rr() -> Iterator[ModuleType]:
    import ringreduce

    ringreduce.init()
    yield ringreduce
    ringreduce.shutdown()


def values(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    return ((torch.arange(count) * 3 + rank) % EXACT + 1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_allreduce(rr, dtype):
    each = [values(rank, 1003, dtype) for rank in range(rr.size())]
    for op, expected in (
        (rr.Sum, torch.stack(each).sum(0).to(dtype)),
        (rr.Product, torch.stack(each).prod(0).to(dtype)),
    ):
        assert torch.equal(rr.allreduce(each[rr.rank()].cuda(), op=op).cpu(), expected)
    if not dtype.is_complex:
        assert torch.equal(rr.allreduce(each[rr.rank()].cuda(), op=rr.Max).cpu(), torch.stack(each).amax(0))
        assert torch.equal(rr.allreduce(each[rr.rank()].cuda(), op=rr.Min).cpu(), torch.stack(each).amin(0))
    own = each[rr.rank()]
    torch.testing.assert_close(rr.allreduce(own.cuda()).cpu(), rr.allreduce(own))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_collectives(rr, dtype):
    rank, size = rr.rank(), rr.size()
    rows = values(rank, 5 * rank, dtype).view(rank, 5)
    assert torch.equal(rr.allgather(rows.cuda()).cpu(), rr.allgather(rows))
    for root in range(size):
        assert torch.equal(rr.broadcast(values(rank, 9, dtype).cuda(), root).cpu(), values(root, 9, dtype))
    for count in (4 * size, 4 * size + 1):
        x = values(rank, count, dtype)
        assert torch.equal(rr.reducescatter(x.cuda(), op=rr.Sum).cpu(), rr.reducescatter(x, op=rr.Sum))
    splits = [(rank + to) % 3 for to in range(size)]
    x = values(rank, sum(splits), dtype)
    result, counts = rr.alltoall(x.cuda(), splits)
    expected, expected_counts = rr.alltoall(x, splits)
    assert torch.equal(result.cpu(), expected)
    assert counts.tolist() == expected_counts.tolist()
    group = [values(rank, count, dtype) for count in (1, 0, 1000, 17)]
    for got, tensor in zip(rr.grouped_allreduce([t.cuda() for t in group], op=rr.Sum), group, strict=True):
        assert torch.equal(got.cpu(), rr.allreduce(tensor, op=rr.Sum))


def test_bool(rr):
    each = [(torch.arange(999) + rank) % 3 == 0 for rank in range(rr.size())]
    own = each[rr.rank()].cuda()
    for op in (rr.Sum, rr.Max, rr.Product, rr.Min):
        assert torch.equal(rr.allreduce(own, op=op).cpu(), rr.allreduce(each[rr.rank()], op=op))
    assert torch.equal(rr.allgather(own).cpu(), torch.cat(each))


def test_process_sets_and_barrier(rr):
    """The world's communicator is there by then: NCCL splits it, and the world goes on."""
    own = torch.full((5,), rr.rank() + 1.0, device="cuda")
    everyone = rr.allreduce(own, op=rr.Sum)
    for member in range(rr.size()):
        alone = rr.add_process_set([member])
        if alone.included():
            assert torch.equal(rr.allreduce(own, op=rr.Sum, process_set=alone), own)
        rr.barrier()
        rr.remove_process_set(alone)
        assert torch.equal(rr.allreduce(own, op=rr.Sum), everyone)


def test_order_of_streams_under_load(rr):
    """The input comes late on one stream, the result is used on another, memory is used again at once."""
    side, other = torch.cuda.Stream(), torch.cuda.Stream()
    for round_ in range(30):
        with torch.cuda.stream(side):
            torch.cuda._sleep(2_000_000)
            x = torch.full((1 << 20,), float(rr.rank() + round_), device="cuda")
            handle = rr.allreduce_async(x, op=rr.Sum, name=f"load{round_}")
            del x
            torch.full((1 << 20,), -1.0, device="cuda")  # would take the memory over
        with torch.cuda.stream(other):
            total = rr.synchronize(handle).sum()
        other.synchronize()
        expected = sum(rank + round_ for rank in range(rr.size())) * float(1 << 20)
        assert total.item() == expected


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def model(device: str) -> Net:
    torch.manual_seed(3)
    return Net().to(device)


def optimizer_of(rr: ModuleType, net: nn.Module, **options: object) -> torch.optim.Optimizer:
    plain = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    wrapped: torch.optim.Optimizer = rr.DistributedOptimizer(plain, net.named_parameters(), **options)
    return wrapped


def batch(rr: ModuleType, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + int(rr.rank()))
    return torch.randn(8, 32, generator=generator)


def test_training_equals_the_cpu(rr):
    results = []
    for device in ("cpu", "cuda"):
        net = model(device)
        optimizer = optimizer_of(rr, net)
        for step in range(5):
            optimizer.zero_grad()
            net(batch(rr, step).to(device)).square().mean().backward()
            optimizer.step()
        results.append([p.detach().cpu() for p in net.parameters()])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-5)


def test_grad_scaler_and_autocast(rr):
    net = model("cuda")
    optimizer, scaler = optimizer_of(rr, net), torch.amp.GradScaler("cuda")
    first = None
    for step in range(10):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = net(batch(rr, step % 2).cuda()).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        first = loss.item() if first is None else first
    assert loss.item() < first
    sums = rr.allgather(torch.stack([p.double().sum() for p in net.parameters()]).unsqueeze(0))
    assert torch.equal(sums, sums[:1].expand_as(sums))


@pytest.mark.parametrize("culprit", [0, 1])
def test_one_rank_s_gradients_are_not_finite_and_all_skip_the_step(rr, culprit):
    if culprit >= rr.size():
        pytest.skip("there is no such rank")
    net = model("cuda")
    optimizer, scaler = optimizer_of(rr, net), torch.amp.GradScaler("cuda", init_scale=1024.0)
    before = [p.detach().clone() for p in net.parameters()]
    for step, is_finite in enumerate((False, True)):
        x = batch(rr, step).cuda()
        if not is_finite and rr.rank() == culprit:
            x[0, 0] = torch.inf
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = net(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 512.0
        changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
        assert all(changed) if is_finite else not any(changed)
    sums = rr.allgather(torch.stack([p.double().sum() for p in net.parameters()]).unsqueeze(0))
    assert torch.equal(sums, sums[:1].expand_as(sums))


def test_a_steady_step_does_not_wait_for_the_gpu(rr):
    net = model("cuda")
    optimizer, x = optimizer_of(rr, net), batch(rr, 0).cuda()

    def step() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    step()
    step()
    if rr.size() > 1 and net and rr.global_process_set.engine.gpu_path(0)[0] == "host":
        pytest.skip("through host memory the host takes part")
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_in_a_graph(rr):
    net = model("cuda")
    optimizer, x = optimizer_of(rr, net), batch(rr, 0).cuda()

    def step() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    if rr.size() > 1 and rr.global_process_set.engine.gpu_path(0)[0] == "host":
        pytest.skip("a step through host memory cannot be captured")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    before = [p.detach().clone() for p in net.parameters()]
    graph.replay()
    torch.cuda.synchronize()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_negotiated_operation_in_a_graph_is_an_error(rr):
    x = torch.ones(4, device="cuda")
    rr.allreduce(x)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="cannot be captured in a CUDA graph"), torch.cuda.graph(graph):
        rr.allreduce(x)
