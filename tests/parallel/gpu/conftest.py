"""GPU tensors on the doubles of CUDA and NCCL."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from runner.doubles import build, why_not
from runner.fake_gpu import FakeCuda

import ringreduce as rr
from ringreduce._ops import gpus, plain

Start = Callable[..., FakeCuda]


@pytest.fixture
def start(rank: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Restarts the library with GPUs; `settings` are those of the doubles."""
    if reason := why_not():
        pytest.skip(reason)
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
        monkeypatch.setattr(gpus, "backend", fake)
        monkeypatch.setattr(plain, "_call", fake.refusing(plain._call))
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
