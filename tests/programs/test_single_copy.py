"""Ranks that cannot read each other's memory stage large tensors, and say why."""

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

    if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == os.environ["REFUSED"]:
        refuse_process_vm_readv()
    rr.init()
    print(f"rank {rr.rank()}: '{running.require().staged_because}'")
    each = [torch.arange(1 << 20, dtype=torch.float32) + r for r in range(rr.size())]
    assert torch.equal(rr.allgather(each[rr.rank()]), torch.cat(each))
    assert torch.equal(rr.allreduce(each[rr.rank()], op=rr.Sum), torch.stack(each).sum(0))
"""


def said(tmp_path, size, **environment: str) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(REFUSE) + textwrap.dedent(SCRIPT))
    assert LAUNCHER is not None
    done = LAUNCHER.run(size, str(script), **{"RINGREDUCE_SINGLE_COPY": "always", "REFUSED": "", **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))


def test_all_read_each_other(tmp_path):
    assert said(tmp_path, 3) == ["rank 0: ''", "rank 1: ''", "rank 2: ''"]


def test_what_is_refused_to_one_rank_nobody_does(tmp_path):
    lines = said(tmp_path, 3, REFUSED="1")
    assert len(lines) == 3
    for line in lines:
        assert "rank 1: the memory of rank 0 cannot be read: process_vm_readv: Operation not permitted" in line


def test_it_can_be_turned_off(tmp_path):
    assert said(tmp_path, 2, RINGREDUCE_SINGLE_COPY="off") == [
        f"rank {rank}: 'RINGREDUCE_SINGLE_COPY is off'" for rank in (0, 1)
    ]
