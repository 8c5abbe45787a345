"""`ringreduce doctor` where there is no GPU: the tests' doubles of CUDA and NCCL, and CPU tensors for the GPU's.

RINGREDUCE_CUDA_LIBRARY and RINGREDUCE_NCCL name the doubles.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from runner.fake_gpu import FakeCuda

from ringreduce.doctor import checks, command


def main() -> int:
    """The command on GPU 0, 1, ... of the doubles, by rank."""
    fake = FakeCuda(os.environ["RINGREDUCE_CUDA_LIBRARY"], command.launched_rank()).take_over()
    fake.double.rr_double_use_device(fake.device)
    checks.gpu_in_torch = lambda: ""
    status = command.main(sys.argv[1:])
    assert fake.misuses() == ""
    return status


if __name__ == "__main__":
    sys.exit(main())
