"""What goes wrong on GPUs ends on every rank, on the doubles of CUDA and NCCL."""

from __future__ import annotations

import pytest
import torch
from gpu_steps import TwoDtypes, gradients

import ringreduce as rr


@pytest.mark.parametrize("fault", ["refused", "asynchronous", "hang"])
def test_faults_of_nccl_end_on_every_rank(start, size, monkeypatch, fault):
    if size == 1:
        pytest.skip("NCCL is not asked where there is one rank")
    if fault == "hang":
        monkeypatch.setenv("RINGREDUCE_TIMEOUT", "5")
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


def test_an_optimizer_outlives_a_fault_between_two_launches(start, rank, size):
    if size == 1:
        pytest.skip("NCCL is not asked where there is one rank")
    fake = start()
    model = fake.module(TwoDtypes())
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    x = torch.ones(2, 8) * (rank + 1)
    expected = gradients(model, optimizer, x)
    calls = fake.count("ncclAllReduce")
    gradients(model, optimizer, x)
    assert fake.count("ncclAllReduce") == calls + 2  # buckets
    fake.fail("ncclAllReduce", 2, 1)
    with pytest.raises(rr.RingreduceError, match="ncclAllReduce failed"):
        gradients(model, optimizer, x)
    rr.shutdown()
    rr.init()
    for got, want in zip(gradients(model, optimizer, x), expected, strict=True):
        torch.testing.assert_close(got, want)
