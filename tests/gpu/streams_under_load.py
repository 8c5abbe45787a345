"""Collectives and training steps from several busy streams; every result is compared, exactly.

    stream 0   load │ input │ submit ─┐                        load │ wait, compare (of stream 3)
    stream 1   load │ input │ submit ─┼─► training step ─►     load │ wait, compare (of stream 0)
    stream 2   ...   in an order of each rank's own            what is dropped is allocated anew at once

    python streams_under_load.py [--rounds N] [--count ELEMENTS] [--side OF_A_MATRIX] [--on-doubles]

The numbers are whole and small, so that every dtype has them and no order of a sum matters. The
host does not wait for the GPU before the end, so nothing but the order of streams keeps memory
that is read or written from what comes next in it. There is no record_stream() here: ringreduce does it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ringreduce as rr

STREAMS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.float16, torch.float64, torch.uint8)
RATE = 0.25  # of learning; a power of two, so parameters stay exact


class Cuda:
    """Streams of torch's, and what keeps each busy."""

    device = "cuda"

    def __init__(self, side: int) -> None:
        # The default one, too: its address is 0, and it is not a stream like others.
        self._streams = [torch.cuda.default_stream(), *(torch.cuda.Stream() for _ in range(STREAMS - 1))]
        self._load = [torch.ones(side, side, device="cuda") for _ in range(STREAMS)]

    def on(self, stream: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[stream])

    def busy(self, stream: int) -> None:
        for _ in range(3):
            self._load[stream] @ self._load[stream]  # its result is dropped: memory moves as well

    def follow(self, stream: int, other: int) -> None:
        """The one stream waits for the other."""
        self._streams[stream].wait_stream(self._streams[other])

    def place(self, tensor: Tensor) -> Tensor:
        return tensor

    def finish(self) -> None:
        torch.cuda.synchronize()


class Doubles(Cuda):
    """The same without a GPU: one stream, and CPU tensors that count as on a GPU (tests/runner/fake_gpu.py)."""

    device = "cpu"

    def __init__(self, side: int) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from runner.fake_gpu import FakeCuda

        self._fake = FakeCuda(os.environ["RINGREDUCE_CUDA_LIBRARY"], rr.rank()).take_over()
        self._fake.double.rr_double_use_device(rr.rank())

    def on(self, stream: int) -> AbstractContextManager[Any]:
        return nullcontext()

    def busy(self, stream: int) -> None: ...

    def follow(self, stream: int, other: int) -> None: ...

    def place(self, tensor: Tensor) -> Tensor:
        return self._fake.cuda(tensor)

    def finish(self) -> None:
        assert self._fake.misuses() == ""


@dataclass
class Numbers:
    """Tensors of 0, 1, 2 and 3, different on every rank, which any rank can make."""

    gpu: Cuda
    count: int
    dtype: torch.dtype
    seed: int

    def of(self, rank: int) -> Tensor:
        return ((torch.arange(self.count, device=self.gpu.device) + self.seed + 5 * rank) % 4).to(self.dtype)

    def own(self) -> Tensor:
        return self.gpu.place(self.of(rr.rank()))

    def each(self) -> list[Tensor]:
        return [self.of(rank) for rank in range(rr.size())]

    def total(self) -> Tensor:
        return torch.stack(self.each()).sum(0).to(self.dtype)

    def poison(self) -> None:
        """Takes memory of this size, if some is free, and spoils it."""
        self.gpu.place(torch.full((self.count,), 99, dtype=self.dtype, device=self.gpu.device))


@dataclass
class Flight:
    """A collective under way, submitted on `stream`."""

    stream: int
    numbers: Numbers
    handle: rr.Handle[Any]
    expected: Callable[[], Sequence[Tensor]]


def allreduce(stream: int, n: Numbers, name: str) -> Flight:
    return Flight(stream, n, rr.allreduce_async(n.own(), op=rr.Sum, name=name), lambda: [n.total()])


def allreduce_in_place(stream: int, n: Numbers, name: str) -> Flight:
    return Flight(stream, n, rr.allreduce_async_(n.own(), op=rr.Sum, name=name), lambda: [n.total()])


def grouped_allreduce(stream: int, n: Numbers, name: str) -> Flight:
    handle = rr.grouped_allreduce_async(n.own().tensor_split(5), op=rr.Sum, name=name)
    return Flight(stream, n, handle, lambda: n.total().tensor_split(5))


def broadcast(stream: int, n: Numbers, name: str) -> Flight:
    root = n.seed % rr.size()
    return Flight(stream, n, rr.broadcast_async(n.own(), root, name=name), lambda: [n.of(root)])


def allgather(stream: int, n: Numbers, name: str) -> Flight:
    return Flight(stream, n, rr.allgather_async(n.own(), name=name), lambda: [torch.cat(n.each())])


def reducescatter(stream: int, n: Numbers, name: str) -> Flight:
    handle = rr.reducescatter_async(n.own(), op=rr.Sum, name=name)
    return Flight(stream, n, handle, lambda: [n.total().tensor_split(rr.size())[rr.rank()]])


def alltoall(stream: int, n: Numbers, name: str) -> Flight:
    def expected() -> list[Tensor]:
        return [torch.cat([one.tensor_split(rr.size())[rr.rank()] for one in n.each()])]

    own = n.own()
    splits = [part.numel() for part in own.tensor_split(rr.size())]
    return Flight(stream, n, rr.alltoall_async(own, splits, name=name), expected)


COLLECTIVES = (
    allreduce, allgather, reducescatter, grouped_allreduce, allreduce_in_place, broadcast, alltoall,
)  # fmt: skip


class Comparison:
    """Counts wrong elements without waiting for the GPU; each stream has a count of its own."""

    def __init__(self, gpu: Cuda) -> None:
        self._wrong = [torch.zeros((), dtype=torch.int64, device=gpu.device) for _ in range(STREAMS)]
        self.tensors = 0

    def compare(self, stream: int, got: Tensor, expected: Tensor) -> None:
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        self._wrong[stream] += (got != expected).sum()
        self.tensors += 1

    def wrong(self) -> int:
        return sum(int(count) for count in self._wrong)


class Training:
    """A sum of products: the gradients are the inputs. Each step is on another stream than the last."""

    def __init__(self, gpu: Cuda, count: int) -> None:
        sizes = [count, 1, count // 3 + 1, 1000, count]
        self._gpu, self._stream = gpu, 0
        self._parameters = [nn.Parameter(gpu.place(torch.zeros(size, device=gpu.device))) for size in sizes]
        self._expected = [torch.zeros(size, device=gpu.device) for size in sizes]
        plain = torch.optim.SGD(self._parameters, lr=RATE)
        names = [(f"p{i}", parameter) for i, parameter in enumerate(self._parameters)]
        self._optimizer = rr.DistributedOptimizer(plain, names, op=rr.Sum)

    def step(self, round_: int, comparison: Comparison) -> None:
        before, self._stream = self._stream, round_ % STREAMS
        self._gpu.follow(self._stream, before)
        with self._gpu.on(self._stream):
            self._gpu.busy(self._stream)
            numbers = [Numbers(self._gpu, p.numel(), p.dtype, round_ + i) for i, p in enumerate(self._parameters)]
            self._optimizer.zero_grad()
            sum((p * n.own()).sum() for p, n in zip(self._parameters, numbers, strict=True)).backward()
            self._optimizer.step()
            for parameter, expected, n in zip(self._parameters, self._expected, numbers, strict=True):
                expected -= RATE * n.total()
                comparison.compare(self._stream, parameter.detach(), expected)


def land(gpu: Cuda, flight: Flight, comparison: Comparison) -> None:
    """Waits for a collective and compares it, on another stream than it was submitted on."""
    stream = (flight.stream + 1) % STREAMS
    with gpu.on(stream):
        result = rr.synchronize(flight.handle)
        results = result if isinstance(result, list) else [result[0] if isinstance(result, tuple) else result]
        del flight.handle, result  # and with them the input
        with gpu.on(flight.stream):
            flight.numbers.poison()
        gpu.busy(stream)  # so that the results are dropped before they are compared
        for got, expected in zip(results, flight.expected(), strict=True):
            comparison.compare(stream, got, expected)
    del results, got  # while another stream is current than those that they came from and were used on
    for used in (stream, flight.stream):
        with gpu.on(used):
            flight.numbers.poison()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--count", type=int, default=1 << 20)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--on-doubles", action="store_true")
    options = parser.parse_args()
    rr.init()
    gpu = (Doubles if options.on_doubles else Cuda)(options.side)
    comparison, training = Comparison(gpu), Training(gpu, options.count)
    gpu.finish()
    for round_ in range(options.rounds):
        flights = []
        for turn in range(STREAMS):
            stream = (turn + rr.rank()) % STREAMS
            with gpu.on(stream):
                gpu.busy(stream)
                numbers = Numbers(gpu, options.count + stream, DTYPES[(round_ + stream) % len(DTYPES)], round_)
                collective = COLLECTIVES[(round_ + stream) % len(COLLECTIVES)]
                flights.append(collective(stream, numbers, f"{round_} {stream}"))
        training.step(round_, comparison)
        for flight in reversed(flights):
            land(gpu, flight, comparison)
    gpu.finish()
    wrong = comparison.wrong()
    path = rr.global_process_set.usable_engine().gpu_path(0)[0]
    print(f"rank {rr.rank()} of {rr.size()}, {path}: {comparison.tensors} tensors, {wrong} elements wrong", flush=True)
    rr.shutdown()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
