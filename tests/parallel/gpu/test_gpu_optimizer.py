"""DistributedOptimizer on the doubles of CUDA and NCCL: it trains as on the CPU, and never waits."""

from __future__ import annotations

import pytest
import torch
from gpu_steps import gradients
from runner.fake_gpu import FakeCuda
from training import batches, loss_of, part
from training import make as make_model

import ringreduce as rr
from ringreduce._lifecycle import bootstrap
from ringreduce._runtime import running


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
    tolerance = 1e-2 if "compression" in options and len(set(running.require().host_of)) > 1 else 1e-6
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
    before = {name: fake.count(name) for name in ("host_sync", "nccl_in_progress", "pack", "ncclAllReduce")}
    step()
    assert fake.count("host_sync") == before["host_sync"]
    assert fake.count("nccl_in_progress") == before["nccl_in_progress"]  # NCCL has enqueued it within the hook
    assert fake.count("pack") - before["pack"] == 1  # four gradients, one launch
    assert fake.count("ncclAllReduce") - before["ncclAllReduce"] == (1 if rr.size() > 1 else 0)


def test_the_arena_is_pinned_while_a_plan_goes_through_it(start, size, monkeypatch):
    if size == 1:
        pytest.skip("one rank has nothing to reduce through host memory")
    monkeypatch.setenv("RINGREDUCE_GPU_PATH", "host")
    fake = start()
    model = fake.module(torch.nn.Linear(8, 4))
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    for _ in range(2):
        gradients(model, optimizer, torch.ones(1, 8))
    assert fake.count("host_register") == 1
    assert fake.count("host_unregister") == 0
    del optimizer
    rr.shutdown()
    assert fake.count("host_unregister") == 1


class _Within(torch.autograd.Function):
    """Calls something in backward()."""

    @staticmethod
    def forward(ctx, x, call):
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            ctx.call()
        return grad, None


def test_a_gradient_that_comes_after_its_bucket_was_launched_is_an_error(gpu, size, monkeypatch):
    """The ranks would learn of it from marks that nobody reads at once on a GPU."""
    monkeypatch.setattr(bootstrap, "_CLOSE_TIMEOUT_S", 1.0)  # what NCCL has begun does not end
    if size == 1:
        pytest.skip("one rank alone accumulates where the gradient is")
    model = gpu.module(torch.nn.ModuleList([torch.nn.Linear(600, 600), torch.nn.Linear(600, 600)]))
    optimizer = rr.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), num_groups=4
    )
    x = torch.ones(2, 600)
    model[1](model[0](x)).sum().backward()
    optimizer.zero_grad()
    inner = lambda: model[1](torch.ones(1, 600)).sum().backward()  # noqa: E731
    hidden = _Within.apply(model[0](x), inner)
    with pytest.raises((AssertionError, rr.PlanLeftError), match="came again"):  # of this rank, or of a quicker one
        model[1](hidden).sum().backward()
