"""The parallel suite: every rank runs every test, on a library that was initialised once.

    mpirun -np 4 python -m pytest tests/parallel

is enough to run it by hand; tests/run.py adds reports by rank and ends a job in which a rank
failed while its peers wait. RINGREDUCE_TEST_HOSTS=0,1,1,1 makes rank 0 one pretended host and
ranks 1 to 3 another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from runner.rank import launcher_rank

if hosts := os.environ.get("RINGREDUCE_TEST_HOSTS"):  # before ringreduce looks at the environment
    os.environ["RINGREDUCE_HOST_ID"] = hosts.split(",")[launcher_rank()]

# Far beyond what anything here takes, also where other programs want the cores; a hang is found by the runner before.
LIMIT = 240.0
os.environ.setdefault("RINGREDUCE_TIMEOUT", str(LIMIT))

torch.set_num_threads(1)  # the ranks share the cores


@pytest.fixture(scope="session", autouse=True)
def rr() -> Iterator[ModuleType]:
    """ringreduce, initialised for the whole session."""
    import ringreduce

    ringreduce.init()
    yield ringreduce
    ringreduce.shutdown()


@pytest.fixture(scope="session")
def rank(rr: ModuleType) -> int:
    return int(rr.rank())


@pytest.fixture(scope="session")
def size(rr: ModuleType) -> int:
    return int(rr.size())


@pytest.fixture(autouse=True)
def _at_its_number_of_ranks(request: pytest.FixtureRequest, size: int) -> None:
    if size != 2 and request.node.get_closest_marker("pair"):
        pytest.skip("runs at 2 ranks")
