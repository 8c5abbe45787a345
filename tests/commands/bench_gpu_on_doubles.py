"""benchmarks/gpu.py where there is no GPU: the tests' doubles of CUDA and NCCL, and host memory.

    python bench_gpu_on_doubles.py DOUBLES ...     DOUBLES: the directory with both

Its jobs are this program again. What is measured means nothing, but all of it runs: the kernels
and the submission through the doubles, the step on the CPU.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import gpu
from benchmarks.on_gpu import jobs, models, step
from benchmarks.on_gpu.device import Found, GpuDevice
from ringreduce import cli
from ringreduce._core import Gpu
from ringreduce._ops.submit import Request
from ringreduce._runtime import running
from ringreduce.bench import launch
from ringreduce.bench.job import Job
from ringreduce.bench.models import Model
from ringreduce.doctor import nccl

GPUS = 2
DOUBLES = Path(sys.argv.pop(1))
CUDA, NCCL = str(DOUBLES / "libcuda_double.so"), str(DOUBLES / "libnccl_double.so")
double = ctypes.CDLL(CUDA)
nothing = ctypes.c_void_p(None)


class HostDevice(GpuDevice):
    """A GPU of the double. Tensors are torch's on the CPU."""

    count = GPUS
    stream = 0
    l2_bytes = 1 << 20

    @classmethod
    def of_rank(cls, local_rank):
        double.rr_double_use_device(local_rank)
        return cls(Gpu(CUDA, [NCCL], local_rank), torch.device("cpu"))

    def describe(self):
        probed = Gpu.probe(CUDA)
        versions = {"driver": None, "driver_cuda": probed["driver"], "cuda_runtime": probed["runtime"]}
        version = nccl.show_version(self.gpu.nccl_version)
        return versions | {"gpu": probed["devices"][0][0], "gpus": GPUS, "torch_cuda": None, "nccl": version}

    def first_operation(self):
        engine = running.require().engine
        engine.attach_gpu(self.gpu)
        ones = torch.ones(4)
        place = [(ones.data_ptr(), 4)]
        (operation,) = engine.submit(0, "allreduce", [Request(None, place, place, [(4,)], 7, keep=ones)], stream=0)
        operation.wait()
        operation.join(0)
        self.synchronize()

    def peak_memory(self):
        return 0

    def synchronize(self):
        assert double.rr_double_stream_synchronize(nothing) == 0

    def mark(self):
        self.synchronize()
        return time.perf_counter()

    def passed(self, mark):
        return False

    def between(self, begin, end):
        return end - begin

    def hold(self, seconds):
        pass


def command(mpirun, np, script, *arguments):
    return [mpirun, "-np", str(np), sys.executable, __file__, str(DOUBLES), *arguments]


def tiny(name):
    return Model(name, lambda: nn.Linear(8, 8), lambda: (torch.randn(4, 8), torch.randn(4, 8)), nn.functional.mse_loss)


if __name__ == "__main__":
    jobs.find = lambda: Found(GPUS, 22703, 1 << 30, [])
    jobs.GpuDevice = HostDevice
    launch.command = command
    over_gloo = Job.start_torch
    Job.start_torch = lambda self, backend, device_id: over_gloo(self)
    step.GPU_MODELS.update({name: tiny(name) for name in models.GPU_MODELS})
    status = cli.run(gpu.gpu, "benchmarks/gpu.py")
    assert double.rr_double_misuses() == 0
    sys.exit(status)
