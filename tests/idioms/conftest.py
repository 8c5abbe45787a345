"""One test that lasts: see search.py. Ranks are started as those of tests/parallel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

os.environ.setdefault("RINGREDUCE_TIMEOUT", "120")  # a rank that waits longer hangs, on a busy machine too
torch.set_num_threads(1)  # the ranks share the cores


@pytest.fixture(scope="session")
def rr() -> Iterator[ModuleType]:
    """ringreduce, initialised for the whole session."""
    import ringreduce

    ringreduce.init()
    yield ringreduce
    ringreduce.shutdown()
