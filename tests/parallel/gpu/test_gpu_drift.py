"""The drift guard on the doubles of CUDA and NCCL."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import WORLD
from torch import nn
from training import make as make_model

import ringreduce as rr
from ringreduce._gradients.drift import WINDOWS, DriftGuard
from ringreduce._gradients.drift_gpu import GpuDigests

pytestmark = pytest.mark.once  # as tests/parallel/test_drift.py


@pytest.fixture
def said():
    """The drift guard's warnings on each rank."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: WORLD.allgather([text for one in caught if "drifted" in (text := str(one.message))])


class Job:
    """A guard of parameters on a GPU, and what an optimizer does with it."""

    def __init__(self, fake, parameters) -> None:
        self.parameters = {name: fake.cuda(tensor) for name, tensor in parameters.items()}
        self.guard = DriftGuard(lambda: list(self.parameters.items()), rr.global_process_set)
        self.tail = fake.cuda(torch.zeros(DriftGuard.ELEMENTS))

    def agree(self) -> None:
        if len(set(rr.allgather_object(self.guard.full_digest()))) > 1:
            self.guard.report(whole=True)

    def steps(self, count: int) -> int:
        for step in range(1, count + 1):
            self.guard.stepped()
            self.guard.write(self.tail)
            rr.allreduce_(self.tail)
            if self.guard.differs(self.tail):
                self.guard.report()
                return step
        return 0


PARAMETERS = {
    "float": lambda: torch.linspace(-1, 1, 5000),
    "bfloat16": lambda: torch.linspace(-1, 1, 300).bfloat16(),
    "double": lambda: torch.linspace(-1, 1, 70, dtype=torch.float64),
    "complex": lambda: torch.linspace(-1, 1, 70) * 1j,
    "with gaps": lambda: torch.linspace(-1, 1, 90).view(9, 10)[:, ::2],
    "scalar": lambda: torch.tensor(0.5),
}


# What the guard looks at is the same, whichever way the digests go.
@pytest.mark.parametrize("gpu", ["nccl", pytest.param("host", marks=pytest.mark.thorough)], indirect=True)
@pytest.mark.parametrize("name", PARAMETERS)
def test_each_element_is_looked_at(gpu, rank, size, said, name):
    for place in (0, -1):
        job = Job(gpu, {key: make() for key, make in PARAMETERS.items()})
        job.agree()
        assert job.steps(WINDOWS + 8) == 0
        if rank == 0:
            tensor = job.parameters[name]
            place %= tensor.numel()
            tensor[torch.unravel_index(torch.tensor(place), tensor.shape)] = 3
        found = job.steps(WINDOWS + 8)
        if size > 1:
            assert 0 < found <= WINDOWS + GpuDigests.every, "read a reduction later"
            assert job.steps(WINDOWS) == 0, "it is said once"
        assert isinstance(job.guard._digests, GpuDigests) == (size > 1)
    assert all(f"{name!r} differs" in text for texts in said() for text in texts)
    assert len(said()[0]) == (2 if size > 1 else 0)


def test_nothing_was_broadcast(gpu, rank, size, said):
    job = Job(gpu, {"p": torch.full((100,), float(rank))})
    job.agree()
    assert len(said()[0]) == (size > 1)
    assert all("'p' differs" in text for text in said()[0])


def test_two_changed_signs_do_not_cancel_out(gpu, rank, size, said):
    job = Job(gpu, {"p": torch.linspace(1, 2, 4096, dtype=torch.float64)})
    job.agree()
    if rank == 0:
        job.parameters["p"][10:12] *= -1
    assert (job.steps(WINDOWS + 8) > 0) == (size > 1)


def test_a_captured_step_is_not_looked_at(gpu, rank, size):
    gpu.stream = gpu.new_stream()
    job = Job(gpu, {"p": torch.full((100,), float(rank))})
    with gpu.capture():
        for _ in range(8):
            job.guard.stepped()
            job.guard.write(job.tail)
            assert not job.guard.differs(job.tail)
        assert size == 1 or not job.tail.any()


def test_a_model_that_moves(gpu, rank, size, said):
    tensors = {"p": torch.linspace(-1, 1, 500)}
    guard = DriftGuard(lambda: list(tensors.items()), rr.global_process_set)
    guard.began()
    assert guard._digests.on_gpu is False
    gpu.cuda(tensors["p"])
    tail = gpu.cuda(torch.zeros(DriftGuard.ELEMENTS))
    guard.write(tail)
    assert guard._digests.on_gpu == (size > 1)
    assert not guard.differs(tail)


def test_training(gpu, rank, size, said):
    model = gpu.module(make_model(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))))
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.001), model.named_parameters())
    for step in range(WINDOWS + 20):
        optimizer.zero_grad()
        model(torch.full((2, 4), rank + step % 3 - 1.0)).square().sum().backward()
        optimizer.step()
        if step == 10:
            assert said() == [[]] * size
            if rank == 0:
                model[1].weight.data[0] += 1
    assert len(said()[0]) == (size > 1)
    assert all("'1.weight' differs" in text for text in said()[0])
    assert all(p.isfinite().all() for p in model.parameters())
