"""Ranks that cannot read each other's memory stage large tensors, and say why. One job, one life of it a case."""

from __future__ import annotations

import textwrap

import pytest
from runner.launch import find_launcher

LAUNCHER = find_launcher()
pytestmark = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")

# From then on the system refuses this process the call, as a container's seccomp profile may.
REFUSE = """
    import ctypes, platform, struct

    def refuse_process_vm_readv():
        number = {"x86_64": 310, "aarch64": 270}[platform.machine()]
        load, equal, result = 0x20, 0x15, 0x06
        code = [(load, 0, 0, 0), (equal, 0, 1, number), (result, 0, 0, 0x00050001), (result, 0, 0, 0x7FFF0000)]
        filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
        program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filter))
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        assert prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""

SCRIPT = """
    import os
    import torch
    import ringreduce as rr
    from ringreduce._runtime import running

    def live(case, setting):
        os.environ["RINGREDUCE_SINGLE_COPY"] = setting
        rr.init()
        print(f"{case}: rank {rr.rank()}: '{running.require().staged_because}'")
        each = [torch.arange(1 << 20, dtype=torch.float32) + r for r in range(rr.size())]
        assert torch.equal(rr.allgather(each[rr.rank()]), torch.cat(each))
        assert torch.equal(rr.allreduce(each[rr.rank()], op=rr.Sum), torch.stack(each).sum(0))
        rr.shutdown()

    live("off", "off")
    live("always", "always")
    if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1":
        refuse_process_vm_readv()
    live("refused to rank 1", "always")
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """said(case): a line of each rank."""
    script = tmp_path_factory.mktemp("single_copy") / "script.py"
    script.write_text(textwrap.dedent(REFUSE) + textwrap.dedent(SCRIPT))
    assert LAUNCHER is not None
    done = LAUNCHER.run(3, str(script))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = sorted(done.stdout.splitlines())
    return lambda case: [line.removeprefix(f"{case}: ") for line in lines if line.startswith(f"{case}: ")]


def test_all_read_each_other(said):
    assert said("always") == ["rank 0: ''", "rank 1: ''", "rank 2: ''"]


def test_what_is_refused_to_one_rank_nobody_does(said):
    lines = said("refused to rank 1")
    assert len(lines) == 3
    for line in lines:
        assert "rank 1: the memory of rank 0 cannot be read: process_vm_readv: Operation not permitted" in line


def test_it_can_be_turned_off(said):
    assert said("off") == [f"rank {rank}: 'RINGREDUCE_SINGLE_COPY is off'" for rank in range(3)]
