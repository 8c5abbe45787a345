"""GPU tensors on the doubles of CUDA and NCCL: the same results as on the CPU, through NCCL and through host memory."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from fake_gpu import FakeCuda
from oracle import make
from runner.doubles import build, why_not
from training import batches, loss_of, part
from training import make as make_model

import ringreduce as rr
from ringreduce import _context, _gpu

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
OPS = [rr.Average, rr.Sum, rr.Min, rr.Max, rr.Product]
Start = Callable[..., FakeCuda]


@pytest.fixture
def start(rank: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Restarts the library with GPUs; `settings` are those of the doubles."""
    cuda, nccl = build()
    fakes: list[FakeCuda] = []

    def begin(same_gpu: bool = False, **settings: int) -> FakeCuda:
        fake = FakeCuda(str(cuda), 0 if same_gpu else rank)
        fake.double.rr_double_reset()
        for name, value in settings.items():
            fake.set(name, value)
        rr.shutdown()
        monkeypatch.setenv("RINGREDUCE_CUDA_LIBRARY", str(cuda))
        monkeypatch.setenv("RINGREDUCE_NCCL", str(nccl))
        monkeypatch.setattr(_gpu, "backend", fake)
        rr.init()
        fakes.append(fake)
        return fake

    yield begin
    rr.shutdown()
    for fake in fakes:
        fake.free_recorded()
    texts = [fake.misuses() for fake in fakes]
    monkeypatch.undo()
    rr.init()
    assert texts == [""] * len(fakes)


@pytest.fixture(params=["nccl", "host"])
def gpu(request: pytest.FixtureRequest, start: Start, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    if request.param == "host":
        monkeypatch.setenv("RINGREDUCE_GPU_PATH", "host")
    return start()


def path(process_set: rr.ProcessSet = rr.global_process_set) -> tuple[str, str]:
    engine = process_set.usable_engine()
    return engine.gpu_path(process_set.process_set_id or 0)


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


def _train(
    fake: FakeCuda | None, compression: type = rr.Compression.none, passes: int = 1, skip_layer: bool = False
) -> list[torch.Tensor]:
    model = make_model()
    if fake is not None:
        fake.module(model)
    optimizer = rr.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model.named_parameters(),
        compression=compression, backward_passes_per_step=passes,
    )  # fmt: skip
    for step, (x, y) in enumerate(batches(6 * passes)):
        if step % passes == 0:
            optimizer.zero_grad()
        loss = loss_of(model, part(x), part(y))
        if skip_layer and step == 3 and rr.rank() == 0:
            loss = model.after.weight.sum() * 0.1 + model.after.bias.sum()  # most gradients are absent here
        loss.backward()
        if step % passes == passes - 1:
            torch.nn.utils.clip_grad_norm_(
                [p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse], 1.0
            )
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "options", [{}, {"compression": rr.Compression.bf16}, {"passes": 2}, {"skip_layer": True}], ids=str
)
def test_training_is_as_on_the_cpu(gpu, options):
    """The doubles add in rank order, as the CPU does within a host; between hosts it rounds to 16 bits more often."""
    tolerance = 1e-2 if "compression" in options and len(set(_context.require().host_of)) > 1 else 1e-6
    expected = _train(None, **options)
    result = _train(gpu, **options)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_training_on_slow_streams(start):
    expected = _train(None)
    for got, want in zip(_train(start(delay_us=500)), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_steady_step_never_waits_for_the_gpu(start, rank):
    fake = start()
    model = fake.module(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)))
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 8) * rank).sum().backward()
        optimizer.step()

    step()
    step()
    before = {name: fake.count(name) for name in ("host_sync", "pack", "ncclAllReduce")}
    step()
    assert fake.count("host_sync") == before["host_sync"]
    assert fake.count("pack") - before["pack"] == 1  # four gradients, one launch
    assert fake.count("ncclAllReduce") - before["ncclAllReduce"] == (1 if rr.size() > 1 else 0)


def _gradients(model: torch.nn.Module, optimizer: rr.DistributedOptimizer, x: torch.Tensor) -> list[torch.Tensor]:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.synchronize()
    return [p.grad.clone() for p in model.parameters()]


def test_gradients_come_on_several_streams(start, rank):
    """Autograd runs a backward on the streams of the forward: here some gradients come on another one, and late."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    x = torch.ones(2, 8) * (rank + 1)
    plain = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    expected = _gradients(model, plain, x)
    model.zero_grad()
    del plain
    fake = start()
    fake.module(model)
    late = _LateGradients(fake, list(model.parameters()))
    # In the first pass nothing is launched before its end, where autograd itself orders the streams.
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    for late.on in (False, True, True, True):
        for got, want in zip(_gradients(model, optimizer, x), expected, strict=True):
            torch.testing.assert_close(got, want)
    late.remove()


class _LateGradients:
    """The gradient of every other parameter comes on another stream, and gets its values only when that gets there."""

    def __init__(self, fake: FakeCuda, parameters: list[torch.Tensor]) -> None:
        self._fake, self._main, self._side = fake, fake.stream, fake.new_stream()
        self.on = False
        self._kept: list[object] = []
        self._hooks = [p.register_post_accumulate_grad_hook(self._come) for p in parameters[1::2]]
        self._hooks += [p.register_post_accumulate_grad_hook(self._come_on_main) for p in parameters[::2]]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _come_on_main(self, _parameter: torch.Tensor) -> None:
        self._fake.stream = self._main

    def _come(self, parameter: torch.Tensor) -> None:
        self._fake.stream = self._side
        if not self.on:
            return
        grad, values = parameter.grad, parameter.grad.clone()
        grad.zero_()

        def write(_state: object) -> None:
            time.sleep(0.02)
            ctypes.memmove(grad.data_ptr(), values.data_ptr(), values.numel() * 4)

        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(write)
        self._kept += [callback, grad, values]
        side = ctypes.c_void_p(self._side)
        assert self._fake.double.rr_double_enqueue(side, callback, None) == 0


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


def test_nothing_from_before_is_waited_for_in_a_capture(start):
    fake = start()
    fake.stream = fake.new_stream()
    handle = rr.allreduce_async_(fake.cuda(torch.ones(1)))
    while not rr.poll(handle):
        pass
    with fake.capture(), pytest.raises(ValueError, match="was submitted before a CUDA graph captured this stream"):
        rr.synchronize(handle)


def test_buffers_are_kept_on_the_streams_that_use_them(start):
    fake = start()
    fake.stream = fake.new_stream()
    tensor = fake.cuda(torch.ones(4))
    handle = rr.allreduce_async_(tensor)
    fake.stream = fake.new_stream()
    rr.synchronize(handle)
    streams = {stream for address, stream in fake.recorded if address == tensor.data_ptr()}
    assert fake.stream in streams
    assert len(streams) == 2  # and the one of the communication


def test_a_capture_that_cannot_be_leaves_the_optimizer_usable(gpu, rank):
    gpu.stream = gpu.new_stream()
    model = gpu.module(torch.nn.Linear(8, 4))
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    x = torch.ones(2, 8) * (rank + 1)
    with gpu.capture(), pytest.raises(ValueError, match="captured in a CUDA graph"):
        _gradients(model, optimizer, x)  # the first step
    expected = _gradients(model, optimizer, x)
    through_host = path()[0] == "host"
    with gpu.capture():
        if through_host:
            with pytest.raises(ValueError, match="through host memory cannot be captured in a CUDA graph"):
                _gradients(model, optimizer, x)
        else:
            _gradients(model, optimizer, x)
    optimizer.zero_grad()
    with gpu.capture(), pytest.raises(ValueError, match="captured in a CUDA graph"):
        (model.weight.sum() * 1).backward()  # the bias gets none
    for got, want in zip(_gradients(model, optimizer, x), expected, strict=True):
        torch.testing.assert_close(got, want)


class _TwoDtypes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.single, self.double_ = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.single(x).double() + self.double_(x.double())


def test_an_optimizer_outlives_a_fault_between_two_launches(start, rank, size, monkeypatch):
    if size == 1:
        pytest.skip("NCCL is not asked where there is one rank")
    monkeypatch.setenv("RINGREDUCE_TIMEOUT", "2")
    fake = start()
    model = fake.module(_TwoDtypes())
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    x = torch.ones(2, 8) * (rank + 1)
    expected = _gradients(model, optimizer, x)
    calls = fake.count("ncclAllReduce")
    _gradients(model, optimizer, x)
    assert fake.count("ncclAllReduce") == calls + 2  # buckets
    fake.fail("ncclAllReduce", 2, 1)
    with pytest.raises(rr.RingreduceError, match="ncclAllReduce failed"):
        _gradients(model, optimizer, x)
    rr.shutdown()
    rr.init()
    for got, want in zip(_gradients(model, optimizer, x), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_the_arena_is_pinned_while_a_plan_goes_through_it(start, size, monkeypatch):
    if size == 1:
        pytest.skip("one rank has nothing to reduce through host memory")
    monkeypatch.setenv("RINGREDUCE_GPU_PATH", "host")
    fake = start()
    model = fake.module(torch.nn.Linear(8, 4))
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    for _ in range(2):
        _gradients(model, optimizer, torch.ones(1, 8))
    assert fake.count("host_register") == 1
    assert fake.count("host_unregister") == 0
    del optimizer
    rr.shutdown()
    assert fake.count("host_unregister") == 1


def test_streams_are_used_again(start):
    """None is destroyed, as torch may record an event on each for as long as a tensor lives; so none may be lost."""
    counts = []
    for _ in range(3):
        fake = start()
        rr.allreduce(fake.cuda(torch.ones(4)))
        counts.append(fake.count("stream_create"))
        assert fake.count("load_kernels") == 1
    assert counts[1:] == [0, 0]


def test_one_warning_says_why_nccl_is_not_used(start, rank, size, capfd):
    host_of = _context.require().host_of
    cases = [({"nccl_version": 21203}, "too old")]
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


@pytest.mark.parametrize("fault", ["refused", "asynchronous", "hang"])
def test_faults_of_nccl_end_on_every_rank(start, size, monkeypatch, fault):
    if size == 1:
        pytest.skip("NCCL is not asked where there is one rank")
    monkeypatch.setenv("RINGREDUCE_TIMEOUT", "2")
    fake = start()
    rr.allreduce(fake.cuda(torch.ones(4)))
    if fault == "refused":
        fake.fail("ncclAllReduce", 2)
    else:
        fake.fail("nccl_async" if fault == "asynchronous" else "nccl_hang", 6)

    def broken() -> None:
        handle = rr.allreduce_async(fake.cuda(torch.ones(4)), name="broken")
        while not rr.poll(handle):
            pass
        rr.synchronize(handle)
        rr.allreduce(torch.ones(1))

    with pytest.raises(rr.RingreduceError) as caught:
        broken()
    assert "broken" in str(caught.value)
    assert {"refused": "ncclAllReduce failed", "asynchronous": "NCCL failed", "hang": "has not finished on the GPU"}[
        fault
    ] in str(caught.value)
    with pytest.raises(rr.RingreduceError):
        rr.allreduce(torch.ones(1))
