"""A rank that is killed in the middle of an operation, or goes with an exception: an error on all others names it."""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

import pytest
from runner.doubles import build, why_not
from runner.launch import PATIENCE, ROOT, find_launcher

LAUNCHER = find_launcher()
pytestmark = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")

# The launcher ends a job that has lost a rank: survivors ignore its first, friendly signal and
# have what is left of a second until the next one.
PREAMBLE = """
    import os, signal, sys, time
    import torch
    import ringreduce as rr

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.path.insert(0, os.environ["TESTS"])
    rr.init()

    def lose(submit):
        began = time.monotonic()
        try:
            submit()
        except rr.RankLostError as error:
            with open(f"{rr.rank()}.tmp", "w") as file:
                file.write(f"{time.monotonic() - began:.2f} s: {error}")
            os.rename(file.name, f"{rr.rank()}.error")
"""

ON_CPU = """
    if rr.rank() == 2:
        rr.barrier()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    rr.barrier()
    lose(lambda: rr.allreduce(torch.ones(1 << 20), name="lost"))
"""

# It waits for the others' errors, so that no launcher is quicker.
RAISES = """
    rr.barrier()
    if rr.rank() == 2:
        try:
            try:
                raise ValueError("no such batch: 7")
            finally:
                rr.shutdown()
        except ValueError:
            while not all(os.path.exists(f"{rank}.error") for rank in (0, 1)):
                time.sleep(0.01)
            sys.exit(3)
    lose(lambda: rr.allreduce(torch.ones(1 << 20), name="lost"))
"""

# All read rank 2's memory, over and over, when it is killed.
READING = """
    import threading

    if rr.rank() == 2:
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGKILL]).start()
    mine = torch.ones(1 << 22)
    def read():
        while True:
            rr.allgather(mine, name="lost")
    lose(read)
"""

# All have agreed and NCCL runs, when the rank whose GPU does not get there is killed.
ON_GPU = """
    from runner.fake_gpu import FakeCuda

    fake = FakeCuda(os.environ["RINGREDUCE_CUDA_LIBRARY"], rr.rank()).take_over()
    rr.allreduce(fake.cuda(torch.ones(4)))
    if rr.rank() == 2:
        fake.double.rr_double_stall_all(1)
    calls = fake.count("ncclAllReduce")
    handle = rr.allreduce_async(fake.cuda(torch.ones(1 << 20)), name="lost")
    if rr.rank() == 2:
        while fake.count("ncclAllReduce") == calls:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def finish():
        while not rr.poll(handle):
            time.sleep(0.01)
        rr.synchronize(handle)

    lose(finish)
"""


SCRIPTS = {"cpu": ON_CPU, "cpu, reading": READING, "gpu": ON_GPU, "raises": RAISES}


@pytest.mark.parametrize("where", SCRIPTS)
def test_every_survivor_has_an_error(tmp_path, where):
    environment = {"TESTS": str(ROOT / "tests"), "RINGREDUCE_SINGLE_COPY": "always"}
    if where == "gpu":
        if reason := why_not():
            pytest.skip(reason)
        cuda, nccl = build()
        environment |= {"RINGREDUCE_CUDA_LIBRARY": str(cuda), "RINGREDUCE_NCCL": str(nccl)}
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(SCRIPTS[where]))
    assert LAUNCHER is not None
    with subprocess.Popen(
        LAUNCHER.command(3, str(script)), cwd=tmp_path, env=LAUNCHER.env(environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as job:  # fmt: skip
        try:
            output, _ = job.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            job.terminate()  # or the end of this block would wait for it
            pytest.fail(f"the job hangs; it printed:\n{job.communicate()[0]}")
    assert job.returncode != 0
    for rank in (0, 1):
        found = Path(tmp_path, f"{rank}.error")
        assert found.exists(), output
        assert "lost" in found.read_text()
        died = r"rank 2 \(process \d+ on host \S+\) has died"
        gone = r"rank 2 (has shut down )?after ValueError: no such batch: 7 \(script.py:\d+\)"
        assert re.search(gone if where == "raises" else died, found.read_text())
