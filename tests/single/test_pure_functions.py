"""The decisions of the Python layer that are pure functions."""

from __future__ import annotations

import pytest
import torch

from ringreduce._gradients.layout import lay_out, view_like
from ringreduce._ops.agreement import difference
from ringreduce._ops.memory import may_overlap
from ringreduce._runtime.launcher import check_size
from ringreduce.errors import RingreduceError

F32, F64 = torch.float32, torch.float64


def test_buckets_fill_in_order():
    buckets = lay_out([3, 2, 1, 0], [100] * 4, [F32] * 4, first_bytes=400, bucket_bytes=900)
    assert [bucket.members for bucket in buckets] == [[3], [2, 1, 0]]


def test_views_begin_on_cache_lines_and_the_tail_follows():
    (bucket,) = lay_out([0, 1, 2], [5, 17, 0], [F32] * 3)
    assert bucket.offsets == [0, 16, 48]
    assert bucket.end == 48
    assert bucket.elements == 51


def test_a_bucket_has_one_dtype():
    buckets = lay_out([0, 1, 2, 3], [1000] * 4, [F32, F64, F32, F64], first_bytes=10**6)
    assert [(bucket.dtype, bucket.members) for bucket in buckets] == [(F32, [0, 2]), (F64, [1, 3])]


def test_buckets_are_ordered_by_when_they_fill():
    buckets = lay_out([0, 1, 2], [10, 10_000, 10], [F32, F64, F32], first_bytes=1000)
    assert [bucket.members for bucket in buckets] == [[1], [0, 2]]


@pytest.mark.parametrize("numel", [0, 1, 15, 16, 17])
def test_no_parameter_is_lost(numel):
    order = list(range(50))
    buckets = lay_out(order, [numel] * 50, [F32] * 50, first_bytes=64, bucket_bytes=300)
    assert [index for bucket in buckets for index in bucket.members] == order


@pytest.mark.parametrize(
    "parameter",
    [
        torch.empty(3, 4),
        torch.empty(()),
        torch.empty(0, 3),
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(3, 4).t(),
        torch.empty(1, 4, 1).transpose(0, 2),
    ],
)
def test_views_have_the_strides_of_the_parameter(parameter):
    view = view_like(torch.arange(200.0), 16, parameter)
    assert view.shape == parameter.shape
    assert view.stride() == parameter.stride()
    if view.numel():
        assert view.min() == 16
        assert view.max() == 15 + view.numel()


def test_a_parameter_with_gaps_gets_a_dense_view():
    view = view_like(torch.arange(200.0), 0, torch.empty(4, 8)[:, :3])
    assert view.is_contiguous()
    assert view.shape == (4, 3)


def test_differences_name_parameter_and_ranks():
    text = difference({0: [("w", "(2,)"), ("b", "(1,)")], 1: [("w", "(3,)"), ("b", "(1,)")], 2: [("w", "(3,)")]})
    assert text == "'w' is (2,) on rank(s) 0, (3,) on rank(s) 1, 2; 'b' is (1,) on rank(s) 0, 1, absent on rank(s) 2"


def test_differences_are_cut_short():
    text = difference({rank: [(f"p{i}", str(rank)) for i in range(9)] for rank in range(20)})
    assert "and 4 more" in text
    text = difference({rank: [("p", str(rank // 10))] for rank in range(20)})
    assert "0, 1, 2, 3, 4, 5, 6, 7, ... (10 ranks)" in text


def test_the_same_parameters_in_another_order():
    assert "different orders" in difference({0: [("a", "1"), ("b", "1")], 1: [("b", "1"), ("a", "1")]})


@pytest.mark.parametrize(
    ("size", "environment"),
    [
        (1, {}),
        (4, {"OMPI_COMM_WORLD_SIZE": "4"}),
        (4, {"OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "2"}),
        (4, {"SLURM_STEP_NUM_TASKS": "1"}),
        (4, {"PMIX_RANK": "3", "MPI_LOCALNRANKS": "2"}),
        (1, {"PMI_SIZE": "", "OMPI_COMM_WORLD_SIZE": "many"}),
        # The shell of salloc, the script of sbatch: there are tasks, but nobody has started them.
        (1, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}),
        (1, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291"}),
        (1, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}),
        (1, {"WORLD_SIZE": "4"}),  # somebody's own
        (1, {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "here", "OMPI_COMM_WORLD_SIZE": "1"}),  # a pod of several
        (4, {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "here", "OMPI_COMM_WORLD_SIZE": "4"}),
        (1, {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4"}),  # mpirun -np 1 in srun --pty bash
    ],
)
def test_sizes_that_fit(size, environment):
    check_size(size, environment, "")


@pytest.mark.parametrize(
    ("size", "environment"),
    [
        (1, {"OMPI_COMM_WORLD_SIZE": "4"}),
        (1, {"PMI_SIZE": "4"}),
        (1, {"PMIX_RANK": "3"}),
        (2, {"MPI_LOCALNRANKS": "4"}),
        (1, {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "here"}),
        (1, {"WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none", "SLURM_STEP_NUM_TASKS": "1"}),  # srun -n1 torchrun
        (1, {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}),
        (1, {"SLURM_STEP_NUM_TASKS": "4"}),
        (1, {"FLUX_JOB_SIZE": "4"}),
        (1, {"PALS_RANKID": "3"}),
        (1, {"HOROVOD_SIZE": "4"}),
    ],
)
def test_sizes_that_do_not(size, environment):
    with pytest.raises(RingreduceError, match=f"started 4 ranks .* size {size}: because"):
        check_size(size, environment, "because")


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.empty(3, 4), False),
        (torch.empty(3, 4).t()[::2], False),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), False),
        (torch.empty(()), False),
        (torch.empty(1, 3).expand(1, 3), False),
        (torch.empty(3, 0).expand(3, 0), False),
        (torch.empty(1, 3).expand(4, 3), True),
        (torch.empty(()).expand(2), True),
        (torch.empty(9).unfold(0, 3, 1), True),
        (torch.empty(9).unfold(0, 3, 3), False),
    ],
)
def test_memory_that_is_there_twice(tensor, expected):
    assert may_overlap(tensor.shape, tensor.stride()) is expected
