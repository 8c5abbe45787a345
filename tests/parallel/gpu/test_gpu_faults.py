"""What goes wrong on GPUs ends on every rank, on the doubles of CUDA and NCCL."""

from __future__ import annotations

import pytest
import torch
from gpu_steps import TwoDtypes, gradients
from oracle import WORLD
from runner.fake_gpu import FakeCuda

import ringreduce as rr


def broken(fake: FakeCuda, fault: str, code: int) -> str:
    """The error of an operation in which NCCL fails; later ones fail, too."""
    fake.fail(fault, code)

    def submit() -> None:
        handle = rr.allreduce_async(fake.cuda(torch.ones(4)), name="broken")
        while not rr.poll(handle):
            pass
        rr.synchronize(handle)
        rr.allreduce(torch.ones(1))

    with pytest.raises(rr.RingreduceError) as caught:
        submit()
    with pytest.raises(rr.RingreduceError):
        rr.allreduce(torch.ones(1))
    return str(caught.value)


@pytest.mark.parametrize(
    ("fault", "code", "text"), [("ncclAllReduce", 2, "ncclAllReduce failed"), ("nccl_async", 6, "NCCL failed")]
)
def test_faults_of_nccl_end_on_every_rank(start, size, fault, code, text):
    if size == 1:
        pytest.skip("NCCL is not asked where there is one rank")
    fake = start()
    rr.allreduce(fake.cuda(torch.ones(4)))
    error = broken(fake, fault, code)
    assert "broken" in error
    assert text in error


def test_nccl_that_hangs_ends_on_every_rank(start, size, monkeypatch):
    """A busy machine may not come as far as the GPU within the limit: then it gets more time."""
    if size == 1:
        pytest.skip("NCCL is not asked where there is one rank")
    for limit in ("2", "20", "200"):
        monkeypatch.setenv("RINGREDUCE_TIMEOUT", limit)
        fake = start()
        try:
            rr.allreduce(fake.cuda(torch.ones(4)))
            text = broken(fake, "nccl_hang", 6)
        except rr.RingreduceError as error:
            text = str(error)
        if all(WORLD.allgather("broken" in text and "has not finished on the GPU" in text)):
            return
    pytest.fail(text)


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
