"""Whether each path works: shared memory, between hosts, NCCL, host memory for GPU tensors.

Every check is a small real collective with a result known beforehand. A check that fails does not
keep the others from running.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch

import ringreduce as rr
from ringreduce import _core
from ringreduce._ops import gpus
from ringreduce._runtime import running
from ringreduce.doctor import nccl
from ringreduce.doctor.check import FAILED, OK, SKIPPED, Check
from ringreduce.doctor.facts import gpu_in_torch

_BYTES = 4096  # of a segment that is made to see that it can be


class Skip(Exception):
    """There is nothing to check here."""


def run(begin: Callable[[str], None]) -> Iterator[Check]:
    """All checks of this rank, in order; `begin` is told what is being tried.

    Under a launcher all ranks run the same checks. The library runs afterwards if it can.
    """
    for name, check in CHECKS.items():
        begin(name)
        try:
            yield Check(name, OK, check())
        except Skip as reason:
            yield Check(name, SKIPPED, str(reason))
        except Exception as error:
            yield Check(name, FAILED, f"{type(error).__name__}: {error}")


def merge(everyone: list[list[Check]]) -> list[Check]:
    """One list of all ranks' checks: the worst of each, with the ranks that had it."""
    merged = []
    for of_ranks in zip(*everyone, strict=True):
        failed = {rank: check for rank, check in enumerate(of_ranks) if check.status == FAILED}
        if failed:
            text = "; ".join(f"rank {rank}: {check.text}" for rank, check in failed.items())
            merged.append(Check(of_ranks[0].name, FAILED, text))
        else:
            merged.append(of_ranks[0])
    return merged


def _settings() -> str:
    _core.load_settings()
    return ""


def _segments() -> str:
    works, problems = [], []
    for kind in ("memfd", "posix"):
        try:
            _core.Segment.create(kind, _BYTES, _BYTES).unlink()
            works.append(kind)
        except (RuntimeError, OSError) as error:
            problems.append(f"{kind}: {error}")
    if not works:
        raise RuntimeError("; ".join(problems))
    return ", ".join([f"{kind} works" for kind in works] + problems)


def _start() -> str:
    rr.init()
    hosts = len(set(running.require().host_of))
    if rr.size() == 1:
        return "1 rank (mpirun -np 2 ringreduce doctor looks at several)"
    return f"{rr.size()} ranks on {hosts} host(s)"


def _collectives(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Compares three collectives of the world with what they must give."""
    size, rank = rr.size(), rr.rank()
    for count in (1, 5000):
        each = [torch.arange(count, dtype=torch.float32) + r for r in range(size)]
        own = make(each[rank])
        _expect("allreduce", rr.allreduce(own, op=rr.Sum), torch.stack(each).sum(0))
        _expect("allgather", rr.allgather(own), torch.cat(each))
        _expect("broadcast", rr.broadcast(own, size - 1), each[-1])


def _expect(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(got.cpu(), expected):
        raise RuntimeError(f"{what} gave a wrong result")


def _running() -> None:
    if not rr.is_initialized():
        raise Skip("the library did not start")


def _on_cpu() -> str:
    _running()
    _collectives(lambda tensor: tensor)
    return "allreduce, allgather and broadcast are right"


def _single_copy() -> str:
    """No fault if it is not there: large tensors are staged then."""
    _running()
    if reason := running.require().staged_because:
        raise Skip(f"large tensors are staged: {reason}")
    each = [torch.arange(1 << 20, dtype=torch.float32) + r for r in range(rr.size())]
    _expect("allgather", rr.allgather(each[rr.rank()]), torch.cat(each))
    return "the ranks of this host can read each other's memory"


def _between_hosts() -> str:
    _running()
    if len(set(running.require().host_of)) == 1:
        raise Skip("all ranks are on one host")
    rr.allreduce(torch.ones(1 << 20), op=rr.Sum)
    return "4 MiB went round"


def _to_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return gpus.backend.empty(tensor.shape, tensor.dtype).copy_(tensor)


def _nccl_itself() -> str:
    """Each rank by itself: with one rank ringreduce copies, and does not come to call NCCL."""
    _running()
    if reason := gpu_in_torch():
        raise Skip(reason)
    numbers = torch.arange(5000, dtype=torch.float32)
    source, result = _to_gpu(numbers), _to_gpu(torch.zeros(5000))
    index = gpus.backend.index(source)
    gpu = gpus.attached(index)
    if gpu.nccl_problem:
        raise RuntimeError(gpu.nccl_problem)
    stream = gpus.backend.current_stream(index)
    try:
        with nccl.Communicator(gpu.nccl_path, 0, 1, lambda own: own) as alone:
            # Not a sum: of one rank that is a copy for NCCL too, while an average is a kernel of its own.
            alone.check("ncclAllReduce", alone.all_reduce(source, result, nccl.AVERAGE, stream)())
            gpus.backend.joined(stream)
            _expect("ncclAllReduce", result, numbers)
    except nccl.NcclError as error:
        hint = "with NCCL_DEBUG=WARN it says why; RINGREDUCE_GPU_PATH=host does without it"
        raise RuntimeError(f"{error}; {hint}") from None
    where = f"{nccl.show_version(gpu.nccl_version)}, {gpu.nccl_path}, GPU {gpu.device}"
    return f"{where}: an all-reduce of one rank is right"


def _on_gpu() -> str:
    _running()
    if reason := gpu_in_torch():
        raise Skip(reason)
    _collectives(_to_gpu)
    context = running.require()
    if rr.size() == 1:
        return "allreduce, allgather and broadcast are right; with one rank they copy, without NCCL"
    path, why = context.engine.gpu_path(0)
    if path == "host" and "share the GPU" in why:
        raise Skip(f"right, but through host memory: {why}")
    if path == "host":
        raise RuntimeError(f"NCCL is not used: {why}")
    return "allreduce, allgather and broadcast are right, through NCCL"


def _gpu_through_host() -> str:
    """The same with NCCL out of the way, in a life of the library of its own."""
    _running()
    if (reason := gpu_in_torch()) or rr.size() == 1:
        raise Skip(reason or "there is one rank")
    rr.shutdown()
    before = os.environ.get("RINGREDUCE_GPU_PATH")
    os.environ["RINGREDUCE_GPU_PATH"] = "host"
    try:
        rr.init()
        _collectives(_to_gpu)
    finally:
        rr.shutdown()
        del os.environ["RINGREDUCE_GPU_PATH"]
        if before is not None:
            os.environ["RINGREDUCE_GPU_PATH"] = before
        rr.init()
    return "allreduce, allgather and broadcast are right"


def _cuda_library() -> str:
    if reason := gpu_in_torch():
        raise Skip(reason)
    if problem := _core.Gpu.probe(str(gpus.LIBRARY))["problem"]:
        raise RuntimeError(f"{problem}; build ringreduce where nvcc is (docs/tuning.md)")
    return "loaded"


CHECKS: dict[str, Callable[[], str]] = {
    "settings": _settings,
    "shared memory": _segments,
    "start": _start,
    "collectives on CPU tensors": _on_cpu,
    "single copy": _single_copy,
    "collectives between hosts": _between_hosts,
    "CUDA library": _cuda_library,
    "NCCL": _nccl_itself,
    "collectives on GPU tensors": _on_gpu,
    "GPU tensors through host memory": _gpu_through_host,
}
