"""Shared memory where it is hard to get: PID namespaces of their own, a small /dev/shm. Needs root for both."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from runner.launch import PATIENCE, clean_environment, find_launcher

LAUNCHER = find_launcher()


def _may_unshare() -> bool:
    try:
        command = ["unshare", "-m", "-p", "-f", "--mount-proc", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine"),
    pytest.mark.skipif(not _may_unshare(), reason="needs namespaces, and so root"),
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Open MPI's own shared memory cannot bear such ranks, and messages through it need /dev/shm.
NO_SHARED_MEMORY_IN_MPI = {"OMPI_MCA_btl": "tcp,self"}

PREAMBLE = """
import ctypes, os, struct, sys, tempfile

def refuse_memfd():
    # seccomp, as sandboxes do: memfd_create gives ENOSYS.
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
    program = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(len(program), ctypes.cast(code, ctypes.c_void_p)))) == 0

if "APART" in os.environ and "INSIDE" not in os.environ:
    os.environ["INSIDE"] = "1"
    os.execvp("unshare", ["unshare", "-m", "-p", "-f", "--mount-proc", sys.executable, __file__])
if "NO_MEMFD" in os.environ:
    refuse_memfd()
import torch
import ringreduce as rr
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(size, code, shm="1G", **environment): `code` under mpirun, with a /dev/shm of that size."""

    def start(size: int, code: str, shm: str = "1G", **environment: str) -> subprocess.CompletedProcess[str]:
        assert LAUNCHER is not None
        script = tmp_path / "script.py"
        script.write_text(PREAMBLE + textwrap.dedent(code))
        mount = f'mount -t tmpfs -o size={shm} tmpfs /dev/shm && exec "$@"'
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", mount, "sh", *LAUNCHER.command(size, str(script))],
            env=LAUNCHER.env({**NO_SHARED_MEMORY_IN_MPI, **environment}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return start


def said(done: subprocess.CompletedProcess[str], word: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if word in line]


def test_files_of_others_stay_as_they_are(run):
    """Where each rank has a /proc of its own, /proc/PID/fd/N of the leader leads to a file of somebody else.

    Each rank has the same file open under many numbers, so that all that is shared later would hit it.
    """
    code = """
    from ringreduce._core import Segment
    rr.init()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"A" * (32 << 20))
        file.flush()
        keep = [open(file.name, "r+b") for _ in range(60)]
        rr.barrier()
        model = torch.nn.Linear(100, 100)
        optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
        model(torch.ones(1, 100)).sum().backward()
        optimizer.step()
        both = rr.add_process_set([1, 2])
        if both.included():
            print("sum", rr.allreduce(torch.ones(100_000), op=rr.Sum, process_set=both).sum().item())
        # And when it is asked to on purpose.
        for opened in keep:
            path = f"/proc/{os.getpid()}/fd/{opened.fileno()}"
            try:
                Segment.open((path, 1, 2, 3), 1 << 20)
            except rr.RingreduceError:
                pass
            else:
                print("opened a file of somebody else")
        rr.barrier()
        file.seek(0)
        print("intact", file.read() == b"A" * (32 << 20))
    """
    done = run(3, code, APART="1")
    assert len(said(done, "intact True")) == 3, done.stdout + done.stderr
    assert len(said(done, "sum 200000.0")) == 2
    assert not said(done, "opened a file")


@pytest.mark.thorough
def test_one_way_of_sharing_for_the_whole_job(run):
    """The world found that /proc leads nowhere: later segments do not try it again."""
    code = """
    from ringreduce import _core
    rr.init()
    create, kinds = _core.Segment.create, []
    class Watched:
        @staticmethod
        def create(kind, *sizes):
            kinds.append(kind)
            return create(kind, *sizes)
        open = staticmethod(_core.Segment.open)
    from ringreduce._runtime import segments
    segments.Segment = Watched
    rr.add_process_set([0])
    print("kinds", kinds)
    """
    done = run(2, code, APART="1")
    assert sorted(said(done, "kinds")) == ["kinds ['posix']", "kinds []"], done.stdout + done.stderr
    done = run(2, code)
    assert sorted(said(done, "kinds")) == ["kinds ['memfd']", "kinds []"], done.stdout + done.stderr


@pytest.mark.parametrize(("ranks", "needed"), [(2, 153), pytest.param(4, 306, marks=pytest.mark.thorough)])
def test_training_in_the_shared_memory_that_docker_gives(run, ranks, needed):
    """64 MiB, with a process set; then a model that does not fit."""
    code = """
    rr.init()
    pair = rr.add_process_set([rr.size() - 1])
    def train(rows):
        model = torch.nn.Linear(1000, rows, bias=False)
        optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
        model(torch.ones(1, 1000)).sum().backward()
        optimizer.step()
    rr.allreduce(torch.ones(1 << 20))
    train(1000)
    print("trained")
    try:
        train(20_000)
    except rr.RingreduceError as error:
        print("told:", error)
    print("sum", rr.allreduce(torch.ones(1 << 20), op=rr.Sum).max().item())
    """
    done = run(ranks, code, shm="64M", NO_MEMFD="1")
    assert len(said(done, "trained")) == ranks, done.stdout + done.stderr
    told = said(done, "told:")
    assert len(told) == ranks, done.stdout + done.stderr
    assert len(set(told)) == 1
    assert f"{needed} MiB of shared memory are needed, and /dev/shm has 64 MiB in all" in told[0]
    assert "docker run --shm-size=" in told[0]
    assert len(said(done, f"sum {ranks}.0")) == ranks


@pytest.mark.thorough
def test_not_even_enough_to_begin_with(run):
    code = """
    try:
        rr.init()
    except rr.RingreduceError as error:
        print("told:", error)
    """
    done = run(4, code, shm="2M", NO_MEMFD="1")
    assert done.returncode == 0, done.stderr  # whoever catches it may end as usual
    told = said(done, "told:")
    assert len(told) == 4, done.stdout + done.stderr
    assert len(set(told)) == 1
    assert "memfd_create" in told[0]
    assert "/dev/shm has 2 MiB in all" in told[0]


def test_more_operations_in_flight_than_there_is_memory_for(run):
    """Each has its data in the table, and some find no room there: an error, and no SIGBUS."""
    code = """
    rr.init()
    handles = []
    try:
        for i in range(4000):
            handles.append(rr.allreduce_async(torch.ones(1000), name=f"{rr.rank()} {i}", op=rr.Sum))
            if i == 100:
                rr.barrier()  # or the quicker rank takes all the memory before the other begins
    except rr.RingreduceError as error:
        print("told:", error, flush=True)
    print("in flight", len(handles) > 100, len(handles) < 4000, flush=True)
    """
    done = run(2, code, shm="16M", NO_MEMFD="1")
    assert len(said(done, "in flight True True")) == 2, done.stdout + done.stderr
    assert all("/dev/shm has 16 MiB in all" in line for line in said(done, "told:"))
    assert len(said(done, "told:")) == 2


@pytest.mark.thorough
def test_with_a_memfd_the_size_of_dev_shm_does_not_count(run):
    code = "rr.init()\nprint('sum', rr.allreduce(torch.ones(1 << 20), op=rr.Sum).max().item())"
    done = run(2, code, shm="64K")
    assert len(said(done, "sum 2.0")) == 2, done.stdout + done.stderr


@pytest.mark.thorough
def test_the_process_that_shares_has_not_left_a_name():
    """Where a POSIX segment is all there is: nothing stays in /dev/shm once all have it."""
    script = PREAMBLE + "rr.init(); print([n for n in os.listdir('/dev/shm') if str(os.getpid()) in n])"
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment({"NO_MEMFD": "1"}), capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
