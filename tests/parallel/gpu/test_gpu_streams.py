"""Streams and captures, on the doubles of CUDA and NCCL."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch
from gpu_steps import TwoDtypes, gradients, path
from runner.fake_gpu import FakeCuda

import ringreduce as rr


def test_gradients_come_on_several_streams(start, rank):
    """Autograd runs a backward on the streams of the forward: here some gradients come on another one, and late."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    x = torch.ones(2, 8) * (rank + 1)
    plain = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    expected = gradients(model, plain, x)
    model.zero_grad()
    del plain
    fake = start()
    fake.module(model)
    late = _LateGradients(fake, list(model.parameters()))
    # In the first pass nothing is launched before its end, where autograd itself orders the streams.
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    for late.on in (False, True, True, True):
        for got, want in zip(gradients(model, optimizer, x), expected, strict=True):
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


def test_what_is_copied_back_is_kept_too(start):
    """An in-place operation on a tensor that is not contiguous works on a copy."""
    fake = start()
    fake.stream = fake.new_stream()
    turned = fake.cuda(torch.ones(2, 3)).t()
    handle = rr.allreduce_async_(turned)
    fake.stream = fake.new_stream()
    rr.synchronize(handle)
    assert (turned.data_ptr(), fake.stream) in fake.recorded


def test_a_capture_that_cannot_be_leaves_the_optimizer_usable(gpu, rank):
    gpu.stream = gpu.new_stream()
    model = gpu.module(torch.nn.Linear(8, 4))
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    x = torch.ones(2, 8) * (rank + 1)
    with gpu.capture(), pytest.raises(ValueError, match="captured in a CUDA graph"):
        gradients(model, optimizer, x)  # the first step
    expected = gradients(model, optimizer, x)
    through_host = path()[0] == "host"
    with gpu.capture():
        if through_host:
            with pytest.raises(ValueError, match="through host memory cannot be captured in a CUDA graph"):
                gradients(model, optimizer, x)
        else:
            gradients(model, optimizer, x)
    optimizer.zero_grad()
    with gpu.capture(), pytest.raises(ValueError, match="captured in a CUDA graph"):
        (model.weight.sum() * 1).backward()  # the bias gets none
    for got, want in zip(gradients(model, optimizer, x), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("part", ["single", "double_"])
def test_a_capture_that_is_refused_late_can_be_ended(start, rank, part):
    """One bucket is launched, the other one cannot be: what was forked into the capture is joined."""
    gpu = start()
    gpu.stream = gpu.new_stream()
    model = gpu.module(TwoDtypes())
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    x = torch.ones(2, 8) * (rank + 1)
    for _ in range(2):
        expected = gradients(model, optimizer, x)
    optimizer.zero_grad()
    inputs = x if part == "single" else x.double()
    with gpu.capture(), pytest.raises(ValueError, match="a parameter got no gradient"):
        getattr(model, part)(inputs).sum().backward()
    for got, want in zip(gradients(model, optimizer, x), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_streams_are_used_again(start):
    """None is destroyed, as torch may record an event on each for as long as a tensor lives; so none may be lost."""
    counts = []
    for _ in range(3):
        fake = start()
        rr.allreduce(fake.cuda(torch.ones(4)))
        counts.append(fake.count("stream_create"))
        assert fake.count("load_kernels") == 1
    assert counts[1:] == [0, 0]
