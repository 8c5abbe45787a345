"""Tests on a real GPU; everything here is skipped, with the reason, where there is none.

python tests/run.py --only gpu        at 1 and 2 ranks
python -m pytest tests/gpu            at 1
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ringreduce
from ringreduce._core import Gpu

LIBRARY = Path(ringreduce.__file__).with_name("libringreduce_cuda.so")


def missing() -> str:
    """Why these tests cannot run, or nothing."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not LIBRARY.is_file():
        return "ringreduce was built without its CUDA library (there was no nvcc)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if reason := missing():
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """CUDA and the kernels, without NCCL; ranks share the first GPU."""
    return Gpu(str(LIBRARY), [], 0)
