"""`ringreduce doctor`, run as users run it: alone, under mpirun, and where something is broken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from runner.launch import clean_environment, find_launcher

from ringreduce.doctor import checks, show
from ringreduce.doctor.checks import FAILED, OK, SKIPPED, Check

LAUNCHER = find_launcher()
DOCTOR = ("-m", "ringreduce", "doctor")


def alone(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *DOCTOR, *arguments], capture_output=True, text=True, timeout=100, check=False,
        env=clean_environment(environment),
    )  # fmt: skip


def test_alone():
    done = alone()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "collectives on CPU tensors       ok" in done.stdout
    assert done.stdout.endswith("All works.\n")


@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_all_ranks_in_one_document():
    done = LAUNCHER.run(3, *DOCTOR, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert len(document["ranks"]) == 3
    assert len({rank["pid"] for rank in document["ranks"]}) == 3
    found = {check["name"]: check for check in document["checks"]}
    assert found["start"]["text"] == "3 ranks on 1 host(s)"
    assert found["collectives between hosts"]["status"] == SKIPPED
    assert {"versions", "libraries", "MPI", "GPUs", "limits", "settings"} <= document.keys()


def test_a_broken_setting_is_named():
    done = alone(RINGREDUCE_CHUNK_BYTES="5x")
    assert done.returncode == 1
    assert "RINGREDUCE_CHUNK_BYTES is '5x'" in done.stdout
    assert "Does not work: settings, start." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_wrong_launcher_is_named():
    done = alone(PMI_SIZE="4", PMI_RANK="0")
    assert done.returncode == 1
    assert "the launcher started 4 ranks (PMI_SIZE)" in done.stdout


@pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")
def test_a_rank_that_hangs_does_not_hang_doctor(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nimport ringreduce as rr\nfrom ringreduce.doctor import command\nrr.init()\n"
        "if rr.rank() == 1:\n    time.sleep(60)\nsys.exit(command.main(['--timeout', '2']))\n"
    )
    done = LAUNCHER.run(2, str(script), timeout=50)
    assert done.returncode != 0
    assert "collectives on CPU tensors: no end after 2 s" in done.stderr
    assert "rank 1 has not submitted it" in done.stderr


def test_bad_option():
    done = alone("--timeout", "0")
    assert done.returncode == 2
    assert "--timeout: expected a number of seconds above 0" in done.stderr


def test_a_library_that_is_none_of_ours(tmp_path):
    done = alone("--json", RINGREDUCE_CUDA_LIBRARY=str(tmp_path / "nothing.so"))
    document = json.loads(done.stdout)
    assert "cannot be loaded" in document["libraries"]["CUDA library's problem"]
    assert document["ok"] is True  # torch has no GPU here, or the check says so
    assert document["libraries"]["CUDA library"].endswith("nothing.so")


def test_the_worst_of_all_ranks_counts():
    merged = checks.merge(
        [[Check("a", OK, "fine"), Check("b", SKIPPED, "no")], [Check("a", FAILED, "why"), Check("b", SKIPPED)]]
    )
    assert merged == [Check("a", FAILED, "rank 1: why"), Check("b", SKIPPED, "no")]
    assert not show.works(merged)
