"""The public names, and what works, or fails clearly, before `init`."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
import torch
from runner.launch import PATIENCE
from torch import nn

import ringreduce as rr

# What the package promises, one line a theme.
PUBLIC = """
init shutdown is_initialized rank size local_rank local_size cross_rank cross_size
allreduce allreduce_async allreduce_ allreduce_async_
grouped_allreduce grouped_allreduce_async grouped_allreduce_ grouped_allreduce_async_
allgather allgather_async reducescatter reducescatter_async alltoall alltoall_async
broadcast broadcast_async broadcast_ broadcast_async_ barrier barrier_async
send send_async recv recv_async
reduce reduce_async reduce_ reduce_async_ gather gather_async scatter scatter_async
allgather_into allgather_into_async reducescatter_into reducescatter_into_async alltoall_into alltoall_into_async
poll synchronize Handle
broadcast_parameters broadcast_optimizer_state broadcast_object allgather_object
PlanLeftError ProcessSet global_process_set add_process_set remove_process_set
Compression DistributedOptimizer LocalSGD ReduceOp Average Sum Min Max Product RingreduceError RingreduceTimeoutError
check DriftError RankLostError
""".split()  # noqa: SIM905


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter without a launcher's variables."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def clean_environment() -> dict[str, str]:
    prefixes = ("OMPI_", "PMI", "PRTE_", "MPI_", "SLURM_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def test_all_is_what_is_promised():
    assert sorted(rr.__all__) == sorted(PUBLIC)
    assert all(hasattr(rr, name) for name in rr.__all__)
    visible = {name for name, value in vars(rr).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert visible == set(rr.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_documented(name):
    value = getattr(rr, name)
    if callable(value):
        assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (rr.init, "comm process_sets"),
        (rr.allreduce, "tensor name compression op prescale_factor postscale_factor process_set"),
        (rr.allreduce_, "tensor name op prescale_factor postscale_factor process_set"),
        (rr.allreduce_async_, "tensor name op prescale_factor postscale_factor process_set"),
        (rr.grouped_allreduce, "tensors name compression op prescale_factor postscale_factor process_set"),
        (rr.allgather, "tensor name process_set"),
        (rr.broadcast, "tensor root_rank name process_set"),
        (rr.alltoall, "tensor splits name process_set"),
        (rr.reducescatter, "tensor name compression op process_set prescale_factor postscale_factor"),
        (rr.broadcast_object, "obj root_rank name process_set"),
        (rr.check, "model optimizer process_set"),
        (
            rr.DistributedOptimizer,
            "optimizer named_parameters compression backward_passes_per_step op gradient_predivide_factor "
            "num_groups groups sparse_as_dense process_set exchange",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_positional_order(function, parameters):
    assert list(inspect.signature(function).parameters) == parameters.split()


def test_operations_have_the_usual_numbers():
    assert [int(op) for op in (rr.Average, rr.Sum, rr.Min, rr.Max, rr.Product)] == [0, 1, 3, 4, 5]


def test_importing_starts_nothing():
    done = run(
        "import threading, sys, os\n"
        "import torch\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "import ringreduce\n"
        "assert not ringreduce.is_initialized()\n"
        "assert 'mpi4py.MPI' not in sys.modules\n"
        "assert len(os.listdir('/proc/self/task')) == before, 'a thread was started'\n"
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_the_import_says_what_to_install():
    done = run("import sys; sys.modules['torch'] = None; import ringreduce")
    assert done.returncode != 0
    assert "ImportError: ringreduce needs PyTorch" in done.stderr.strip().splitlines()[-1]
    assert "pip install torch" in done.stderr


@pytest.mark.parametrize(
    "call", [rr.rank, rr.size, rr.local_rank, rr.local_size, rr.cross_rank, rr.cross_size, rr.global_process_set.size]
)
def test_topology_before_init(call):
    with pytest.raises(ValueError, match=r"ringreduce\.init\(\)"):
        call()


ONE = torch.ones(2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rr.allreduce(ONE),
        lambda: rr.allreduce_(ONE),
        lambda: rr.allreduce_async(ONE),
        lambda: rr.grouped_allreduce([ONE]),
        lambda: rr.allgather(ONE),
        lambda: rr.broadcast(ONE, 0),
        lambda: rr.broadcast_(ONE, 0),
        lambda: rr.reducescatter(ONE),
        lambda: rr.alltoall(ONE),
        lambda: rr.barrier(),
        lambda: rr.broadcast_object(1),
        lambda: rr.allgather_object(1),
        lambda: rr.add_process_set([0]),
        lambda: rr.broadcast_parameters({"a": ONE}, 0),
        lambda: rr.check({"a": ONE}),
        lambda: rr.broadcast_optimizer_state(torch.optim.SGD([nn.Parameter(ONE)], lr=0.1), 0),
    ],
)
def test_collectives_before_init(call):
    with pytest.raises(rr.RingreduceError, match=r"ringreduce\.init\(\)"):
        call()


def test_shutdown_before_init_does_nothing():
    rr.shutdown()
    assert not rr.is_initialized()


def test_handles_that_are_none():
    assert rr.synchronize(17) is None
    with pytest.raises(ValueError, match="handle"):
        rr.poll(17)


class TestOptimizerArguments:
    """Mistakes that DistributedOptimizer finds before `init`."""

    def setup_method(self):
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            (lambda m: list(m.parameters()), "pairs"),
            (lambda m: [("weight", m.weight, 1), ("bias", m.bias)], "pairs"),
            (lambda m: [(1, m.weight), (2, m.bias)], "pairs"),
            (lambda m: [("a", m.weight), ("a", m.bias)], "unique"),
            (lambda m: [("a", m.weight)], "no name"),
            (lambda m: [], "no name"),
        ],
    )
    def test_names(self, named, message):
        with pytest.raises(ValueError, match=f"named_parameters.*{message}"):
            rr.DistributedOptimizer(self.optimizer, named_parameters=named(self.model))

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"op": rr.Max}, "op"),
            ({"op": 17}, "op"),
            ({"backward_passes_per_step": 0}, "backward_passes_per_step"),
            ({"backward_passes_per_step": 1.5}, "backward_passes_per_step"),
            ({"op": rr.Sum, "gradient_predivide_factor": 2.0}, "gradient_predivide_factor"),
            ({"gradient_predivide_factor": 0.0}, "gradient_predivide_factor"),
            ({"num_groups": -1}, "num_groups"),
            ({"groups": -1}, "groups"),
            ({"groups": "all"}, "groups"),
            ({"groups": [[1]]}, "groups"),
            ({"groups": [[torch.ones(1)]]}, "groups"),
        ],
        ids=str,
    )
    def test_options(self, options, error):
        with pytest.raises((ValueError, TypeError), match=f"^{error}: "):
            rr.DistributedOptimizer(self.optimizer, **options)

    def test_a_parameter_in_two_groups(self):
        groups = [[self.model.weight], [self.model.weight]]
        with pytest.raises(ValueError, match="groups"):
            rr.DistributedOptimizer(self.optimizer, groups=groups)

    def test_not_an_optimizer(self):
        with pytest.raises(TypeError, match="optimizer"):
            rr.DistributedOptimizer(self.model)


@pytest.mark.parametrize("mpi", ["", "sys.modules['mpi4py'] = None\n"], ids=["mpi", "no mpi4py"])
def test_one_process(mpi):
    """A launcher that believes it to be one of three is told of the mistake; without any launcher it runs alone."""
    of_launchers = {
        "OMPI_COMM_WORLD_SIZE": {},
        "PMI_SIZE": {},
        "MPI_LOCALNRANKS": {},
        "SLURM_STEP_NUM_TASKS": {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
        "WORLD_SIZE": {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "MASTER_ADDR": "localhost"},
    }
    # Without its other variables Open MPI starts alone, whatever this one says.
    done = run(
        f"import os, sys\n{mpi}import torch, ringreduce as rr\n"
        f"for variable, others in {of_launchers}.items():\n"
        "    os.environ.update(others, **{variable: '3'})\n"
        "    try:\n"
        "        rr.init()\n"
        "    except rr.RingreduceError as error:\n"
        "        print(error)\n"
        "    for name in (variable, *others):\n"
        "        del os.environ[name]\n"
        "rr.init()\n"
        "print(rr.rank(), rr.size(), rr.local_size(), rr.cross_size(), rr.allreduce(torch.ones(3)).tolist())\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    *told, works = done.stdout.splitlines()
    assert len(told) == len(of_launchers), done.stdout
    for variable, text in zip(of_launchers, told, strict=True):
        assert f"started 3 ranks ({variable}{' of torchrun' * (variable == 'WORLD_SIZE')})" in text
        assert "size 1" in text
        assert "mpirun" in text or mpi
    assert works == "0 1 1 1 [1.0, 1.0, 1.0]"
